"""Graphs whose answers can be checked, in four shapes: every node is a sum or a product of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from gateway.delegator.plan import Plan
from gateway.demo.worker_server import sum_of

__all__ = ["SHAPES", "Drawn", "drawn"]

# Kind of work: how hard it is, and how long its answer may be. Only the large model masters `reason`.
_KINDS = {"extract": (0.3, 90), "summarise": (0.55, 150), "reason": (0.9, 260)}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A graph with its right answer."""

    shape: str
    number: int
    plan: Plan
    answer: str

    @property
    def is_chain(self) -> bool:
        """Whether nothing in it can be done at once."""
        return self.shape == "chain"


class _Sketch:
    """A graph while it is drawn."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.nodes: list[dict[str, Any]] = []
        self._values: list[int] = []

    def add(self, kind: str, needs: Sequence[int] = ()) -> int:
        operation, operand = (
            self._random.choice(("add", "multiply") if needs else ("add",)),
            self._random.randint(2, 99),
        )
        difficulty, tokens = _KINDS[kind]
        self._values.append(sum_of(operation, operand, [self._values[need] for need in needs]))
        self.nodes.append(
            {
                "id": f"n{len(self.nodes)}",
                "kind": kind,
                "goal": f"{operation} {operand} at difficulty {difficulty}",
                "needs": [f"n{need}" for need in needs],
                "inputs": [{"name": f"n{need}", "source": f"n{need}", "path": ""} for need in needs],
                "min_quality": difficulty,
                "est_tokens": round(tokens * self._random.uniform(0.7, 1.4)),
                "optional": False,
                "cacheable": False,
            }
        )
        return len(self.nodes) - 1

    @property
    def answer(self) -> str:
        return str(self._values[-1])


def _chain(sketch: _Sketch, random: Random) -> None:
    last: tuple[int, ...] = ()
    for _ in range(random.randint(4, 6)):
        last = (sketch.add(random.choice(list(_KINDS)), last),)


def _map_reduce(sketch: _Sketch, random: Random) -> None:
    parts = [sketch.add("summarise", (sketch.add("extract"),)) for _ in range(random.randint(3, 6))]
    sketch.add("reason", parts)


def _diamond(sketch: _Sketch, random: Random) -> None:
    question = sketch.add("reason")
    found = [sketch.add(random.choice(("extract", "summarise")), (question,)) for _ in range(random.randint(3, 5))]
    sketch.add("extract", (sketch.add("reason", found),))


def _layered(sketch: _Sketch, random: Random) -> None:
    above: list[int] = []
    for _ in range(3):
        layer = []
        for _ in range(random.randint(2, 4)):
            needs = sorted(random.sample(above, min(len(above), random.randint(1, 2)))) if above else []
            layer.append(sketch.add(random.choice(list(_KINDS)), needs))
        # What nobody below reads would be paid for nothing: the next layer's first node reads it.
        read = {int(need[1:]) for node in sketch.nodes for need in node["needs"]}
        above = [*(job for job in above if job not in read), *layer]
    sketch.add("reason", above)


SHAPES: dict[str, Callable[[_Sketch, Random], None]] = {
    "chain": _chain,
    "map-reduce": _map_reduce,
    "diamond": _diamond,
    "layered": _layered,
}


def drawn(shape: str, number: int, seed: int) -> Drawn:
    """Return the graph of this number; the same for the same seed."""
    random = Random(f"{seed}:{shape}:{number}")
    sketch = _Sketch(random)
    SHAPES[shape](sketch, random)
    document = {"version": 1, "nodes": sketch.nodes, "output": sketch.nodes[-1]["id"]}
    return Drawn(shape, number, Plan.model_validate(document), sketch.answer)

"""Graphs and sellers to measure delegation on. Speeds, prices and quality floors are assumptions, published with the
figures; all randomness comes from the generator handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gateway.bidder.task import UNITS_PER_TOKEN
from gateway.delegator.schedule import Graph, Way

__all__ = ["FAMILIES", "HANDSHAKE_S", "SELLERS", "Drawn", "Seller", "baseline", "premium"]

HANDSHAKE_S = 0.35
"""What paying adds to a call."""

_ATOMIC = 10**6
_TEXT = frozenset({"format", "extract", "summarise", "reason", "code"})


@dataclass(frozen=True, slots=True)
class Seller:
    """A seller: price per ten units of work, work per second, how hard a task it masters, slots, and kinds of work."""

    name: str
    price: float
    speed: float
    quality: float
    slots: int
    kinds: frozenset[str]


SELLERS = (
    Seller("cpu-text", 0.06, 3.0, 0.40, 8, frozenset({"format", "extract"})),
    Seller("small", 0.25, 2.2, 0.60, 8, _TEXT),
    Seller("mid", 1.00, 1.3, 0.78, 6, _TEXT),
    Seller("large", 4.00, 0.8, 0.96, 4, _TEXT),
    Seller("large-fast", 9.0, 1.9, 0.96, 4, _TEXT),
    Seller("img-slow", 0.80, 0.9, 0.90, 2, frozenset({"image"})),
    Seller("img-fast", 3.0, 3.5, 0.92, 2, frozenset({"image"})),
)
_SLOTS = {seller.name: seller.slots for seller in SELLERS}
_NEED = {
    "format": (0.2, 0.35),
    "extract": (0.3, 0.55),
    "summarise": (0.5, 0.75),
    "reason": (0.7, 0.95),
    "code": (0.72, 0.95),
    "image": (0.5, 0.9),
}
_WORK = {"format": 3, "extract": 4, "summarise": 8, "reason": 14, "code": 18, "image": 12}

Random = np.random.Generator


@dataclass(slots=True)
class Drawn:
    """A graph while it is drawn: what each job needs, and how much work and quality it takes."""

    random: Random
    needs: list[tuple[int, ...]] = field(default_factory=list)
    _jobs: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, kind: str, needs: Sequence[int] = ()) -> int:
        """Add a job and return its number."""
        work = _WORK[kind] * float(self.random.lognormal(0, 0.4))
        self._jobs.append((kind, work, float(self.random.uniform(*_NEED[kind]))))
        self.needs.append(tuple(needs))
        return len(self.needs) - 1

    def graph(self) -> Graph:
        """Return the graph with every seller that masters a job as a way of doing it."""
        ways = [
            [
                Way(seller.name, work / seller.speed + HANDSHAKE_S, units(work * seller.price / 10))
                for seller in SELLERS
                if kind in seller.kinds and seller.quality >= need
            ]
            for kind, work, need in self._jobs
        ]
        return Graph(self.needs, ways, _SLOTS)


def baseline(graph: Graph) -> list[int]:
    """Return the standard model for every job, or what comes next to it where it cannot do one."""
    return _at(graph, "large", "img-slow")


def premium(graph: Graph) -> list[int]:
    """Return the premium fast model for every job."""
    return _at(graph, "large-fast", "img-fast")


def units(tokens: float) -> int:
    """Return an amount of the simulation in units."""
    return round(tokens * _ATOMIC) * (UNITS_PER_TOKEN // _ATOMIC)


def _at(graph: Graph, *wanted: str) -> list[int]:
    assignment = []
    for ways in graph.ways:
        names = [way.seller for way in ways]
        assignment.append(next((names.index(name) for name in wanted if name in names), 0))
    return assignment


def _chain(random: Random) -> Graph:
    drawn, last = Drawn(random), ()
    for kind in random.choice(["extract", "summarise", "reason", "code", "format"], 6):
        last = (drawn.add(str(kind), last),)  # type: ignore[assignment]
    return drawn.graph()


def _map_reduce(random: Random) -> Graph:
    drawn, documents = Drawn(random), int(random.integers(4, 17))
    summaries = [drawn.add("summarise", (drawn.add("extract"),)) for _ in range(documents)]
    groups = [drawn.add("summarise", summaries[start : start + 4]) for start in range(0, documents, 4)]
    drawn.add("format", (drawn.add("reason", groups),))
    return drawn.graph()


def _research(random: Random) -> Graph:
    drawn = Drawn(random)
    question = drawn.add("reason")
    found = [drawn.add("extract", (question,)) for _ in range(5)]
    notes = [drawn.add("summarise", (found[first], found[first + 1])) for first in (0, 2, 3)]
    outline = drawn.add("reason", notes)
    sections = [drawn.add("summarise" if number else "reason", (outline,)) for number in range(4)]
    pictures = [drawn.add("image", (outline,)) for _ in range(2)]
    drawn.add("format", (drawn.add("summarise", sections + pictures),))
    return drawn.graph()


def _code(random: Random) -> Graph:
    drawn = Drawn(random)
    specification, count = drawn.add("reason"), int(random.integers(3, 7))
    modules = [drawn.add("code", (specification,)) for _ in range(count)]
    tests = [drawn.add("code", (module,)) for module in modules]
    drawn.add("format", (drawn.add("reason", tests),))
    return drawn.graph()


def _rag(random: Random) -> Graph:
    drawn = Drawn(random)
    question = drawn.add("extract")
    found = [drawn.add("extract", (question,)) for _ in range(4)]
    ranked = drawn.add("summarise", found)
    drawn.add("format", (drawn.add("reason", (ranked,)),))
    return drawn.graph()


def _layered(random: Random) -> Graph:
    drawn, kinds = Drawn(random), list(_WORK)
    above: list[int] = []
    for _ in range(int(random.integers(3, 8))):
        layer: list[int] = []
        for _ in range(int(random.integers(1, 7))):
            needs = [job for job in above if random.random() < 0.45]
            if not needs and above:
                needs = [above[int(random.integers(len(above)))]]
            layer.append(drawn.add(str(random.choice(kinds)), needs))
        above = layer
    return drawn.graph()


FAMILIES: dict[str, Callable[[Random], Graph]] = {
    "chain": _chain,
    "rag": _rag,
    "map_reduce": _map_reduce,
    "research": _research,
    "code": _code,
    "layered": _layered,
}

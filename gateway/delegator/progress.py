"""Where the nodes of a run stand, and what may start now. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.delegator.journal import Attempt
from gateway.delegator.plan import Node, Plan
from gateway.delegator.schedule import Assignment, Graph, upward_ranks

__all__ = ["Planned", "Progress"]


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the ways each of its nodes can be bought, in the order of `plan.nodes`, and which way comes first."""

    plan: Plan
    graph: Graph
    assignment: Assignment


class Progress:
    """A run's nodes by what is known of them.

    `results` are answers; `failed` nodes will have none, `unknown` ones perhaps. `open` are attempts that were intended
    and have no end, by node. `tried` are the sellers asked in this round.
    """

    def __init__(self, planned: Planned) -> None:
        self.results: dict[str, str] = {}
        self.failed: set[str] = set()
        self.unknown: set[str] = set()
        self.open: dict[str, list[Attempt]] = defaultdict(list)
        self.tried: dict[str, list[str]] = defaultdict(list)
        self._made: Counter[str] = Counter()
        self.use(planned)

    def use(self, planned: Planned) -> None:
        """Go on by another plan: what is answered stays answered, what failed may be tried again."""
        self.planned = planned
        self._places = planned.plan.places
        self._ranks = upward_ranks(planned.graph, planned.assignment)
        self._optional = {node.id for node in planned.plan.nodes if node.optional}
        self.failed.clear()
        self.tried.clear()

    def count(self, attempt: Attempt, *, in_round: int) -> None:
        """Take note of an attempt that is made, or was."""
        self._made[attempt.node_id] = max(self._made[attempt.node_id], attempt.number + 1)
        if attempt.round == in_round:
            self.tried[attempt.node_id].append(attempt.offer)

    def next_number(self, node_id: str) -> int:
        """Return the number of a node's next attempt; numbers go on through the rounds, as keys are made of them."""
        return self._made[node_id]

    @property
    def urgent_first(self) -> Sequence[Node]:
        """The nodes, those with the longest path after them first."""
        return sorted(self.planned.plan.nodes, key=lambda node: -self._ranks[self._places[node.id]])

    def place(self, node: Node) -> int:
        """Return a node's number in graph and assignment."""
        return self._places[node.id]

    def rest_s(self, node: Node) -> float:
        """Return the length of the longest path after a node."""
        place = self.place(node)
        return self._ranks[place] - self.planned.graph.ways[place][self.planned.assignment[place]].takes_s

    def slices(self) -> Iterator[tuple[str, int]]:
        """Yield what each node that is not done is planned to cost, the urgent first."""
        for node in self.urgent_first:
            if node.id not in self.results and node.id not in self.open:
                place = self.place(node)
                yield node.id, self.planned.graph.ways[place][self.planned.assignment[place]].price_units

    def is_settled(self, node: Node) -> bool:
        """Tell whether nothing more is to be done for a node now."""
        return node.id in self.results or node.id in self.failed or node.id in self.unknown

    def is_hopeless(self, node: Node) -> bool:
        """Tell whether a node needs a result that will never come. Optional ones are done without."""
        return any(need in self.failed and need not in self._optional for need in node.needs)

    def is_ready(self, node: Node) -> bool:
        """Tell whether all that a node waits for has ended."""
        return all(need in self.results or need in self.failed for need in node.needs)

    @property
    def is_lost(self) -> bool:
        """Whether the output will not come by this plan."""
        return self.planned.plan.output in self.failed

    @property
    def missing(self) -> Sequence[str]:
        """The nodes without an answer, in the plan's order."""
        return [node.id for node in self.planned.plan.nodes if node.id not in self.results]

    @property
    def answers(self) -> Mapping[str, str]:
        """Every answer there is, by node."""
        return self.results

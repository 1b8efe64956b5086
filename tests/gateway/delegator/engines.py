"""Plans of a few nodes, a seller that stands in for the pool, and an engine to carry runs out with."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.plan import Node, Plan, parse_plan
from gateway.delegator.replan import Replan
from gateway.delegator.run import Answer, CallNode, Limits, NodeEvent, Planned, run_plan
from gateway.delegator.schedule import Graph, Way

__all__ = ["FORK", "WAYS", "Engine", "Seller", "plan", "planned"]

WAYS = [Way("cheap", 1.0, 10), Way("dear", 0.5, 30)]


def plan(**needs: list[str]) -> Plan:
    """Return a plan of these nodes, each reading all it needs; the last is the output. `opt_…` is optional."""
    nodes = [
        {
            "id": name,
            "kind": "summarise",
            "goal": f"do {name}",
            "needs": each,
            "inputs": [{"name": need, "source": need, "path": ""} for need in each],
            "min_quality": 0.5,
            "est_tokens": 10,
            "optional": name.startswith("opt"),
            "cacheable": False,
        }
        for name, each in needs.items()
    ]
    return parse_plan(json.dumps({"version": 1, "nodes": nodes, "output": nodes[-1]["id"]}))


FORK = plan(a=[], b=[], c=["a", "b"])


def planned(of: Plan) -> Planned:
    places = of.places
    graph = Graph([[places[need] for need in node.needs] for node in of.nodes], [WAYS] * len(of.nodes))
    return Planned(of, graph, [0] * len(of.nodes))


class Seller:
    """Stands in for the pool and its sellers: under one key it is paid once, and answers the same for ever.

    What stands in `fails` for a node is raised, the first first. A call of a node in `waits_for` ends after that event.
    """

    def __init__(self) -> None:
        self.paid: Counter[str] = Counter()
        self.asked: list[Attempt] = []
        self.at_once = self.most_at_once = 0
        self.fails: dict[str, list[BaseException]] = {}
        self.waits_for: dict[str, asyncio.Event] = {}

    async def __call__(self, node: Node, attempt: Attempt) -> Answer:
        self.asked.append(attempt)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            # Once for every other call that may begin at the same time.
            await asyncio.sleep(0.01)
            if node.id in self.waits_for and attempt.offer == WAYS[0].seller:
                await self.waits_for[node.id].wait()
        finally:
            self.at_once -= 1
        if self.fails.get(node.id):
            raise self.fails[node.id].pop(0)
        self.paid[attempt.key] = attempt.price_units
        return Answer(f"result of {node.id}", attempt.price_units)

    @property
    def spent(self) -> int:
        return sum(self.paid.values())

    def offers(self, node_id: str) -> list[str]:
        """Return the sellers that were asked for a node, in order."""
        return [attempt.offer for attempt in self.asked if attempt.node_id == node_id]


_numbers = itertools.count(1)
Carry = Callable[[Planned, CallNode, Journal, Run, Limits, Replan | None], AsyncIterator[NodeEvent]]


def in_this_process(
    planned: Planned, call_node: CallNode, journal: Journal, run: Run, limits: Limits, replan: Replan | None
) -> AsyncIterator[NodeEvent]:
    """Carry out by asyncio alone."""
    return run_plan(planned, call_node, journal, run, limits, replan=replan)


@dataclass
class Engine:
    """Something that carries out one run, in a journal, and takes it up again. `told` is what has happened so far."""

    journal: Journal
    carry: Carry = in_this_process
    tenant: str = "t"
    run_id: str = field(default_factory=lambda: f"r{next(_numbers)}")
    told: list[NodeEvent] = field(default_factory=list)

    def has_done(self, node_id: str) -> bool:
        """Tell whether a node is done, and the run knows it: the journal does a moment before."""
        return any((event.node_id, event.happening) == (node_id, "done") for event in self.told)

    async def carry_out(
        self,
        of: Plan,
        seller: CallNode,
        *,
        budget: int = 1_000,
        deadline_s: float | None = None,
        parallel: int = 16,
        replan: Replan | None = None,
    ) -> list[NodeEvent]:
        run = Run(self.run_id, self.tenant, of.model_dump_json(), "", budget, None, time.time_ns() // 1_000_000)
        self.journal.begin(run)
        limits = Limits(budget, deadline_s, parallel)
        self.told = []
        async for event in self.carry(planned(of), seller, self.journal, run, limits, replan):
            self.told.append(event)
        return self.told

    async def resume(self, of: Plan, seller: CallNode, *, budget: int = 1_000) -> list[NodeEvent]:
        run = self.journal.take_over(self.run_id)
        return [event async for event in self.carry(planned(of), seller, self.journal, run, Limits(budget), None)]

    @property
    def run(self) -> Run:
        return self.journal.find(self.run_id)

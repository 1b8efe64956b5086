"""The ways in which each node of a plan could be bought: at which model, for how much at most, how soon. Pure.

A way is planned at one seller and pays its price at most. Who answers in the end is for the worker's own bid, among all
sellers of that model who ask no more, by what is known of them when the call is made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from buyer.budgets import shown_units
from gateway.bidder.rule import SPREAD_MIN_S, SPREAD_SHARE
from gateway.delegator.gate import Overheads, Single, Verdict, worth_delegating
from gateway.delegator.limits import RETRY_PERCENT, WAYS_MAX
from gateway.delegator.plan import Node, Plan, PlanInvalid, one_node_plan
from gateway.delegator.progress import Planned
from gateway.delegator.schedule import (
    Assignment,
    BudgetInfeasible,
    Graph,
    Way,
    carry_out,
    cheapest,
    cost_units,
    fastest,
    upgraded,
    upward_ranks,
)
from gateway.delegator.settings import DelegateSettings
from gateway.wishes import BYTES_PER_TOKEN, work_of_tokens

__all__ = [
    "DeadlineInfeasible",
    "NotForSale",
    "Priced",
    "Wish",
    "alone",
    "judge",
    "model_of",
    "plan_course",
    "wishes_of",
]

# What a worker's prompt holds besides its goal and its inputs.
_PREAMBLE_TOKENS = 80
_ANSWERED = Way("", 0.0, 0)
# Of a path on which all is answered, so that it can be divided by.
_SHORTEST_S = 1e-6
# A course is planned to end this share into the time it has.
_AIM_SHARE = 0.9


class NotForSale(PlanInvalid):
    """No model that was bought is fit for a node."""

    code = "plan_not_for_sale"
    remedy = "buy from a seller of a stronger model, or change `delegate.models` in gateway.yaml"


class DeadlineInfeasible(PlanInvalid):
    """Even with every part done in the fastest way, the plan takes longer than it may."""

    code = "deadline_infeasible"
    remedy = "allow more time, or ask for less"


@dataclass(frozen=True, slots=True)
class Priced:
    """One purchase as a worker sees it: its price, and the work a second it has been seen to do, waiting included."""

    model: str
    seller: str
    price_units: int
    work_per_s: float

    @property
    def name(self) -> str:
        """How a way and an attempt are named that are planned there; `model_of` takes it apart."""
        return f"{self.model}@{self.seller}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a worker asks of the bidder: when it needs its answer, and whether all the others wait for it.

    `avoid` are purchases that failed it before.
    """

    deadline_s: float
    is_urgent: bool
    avoid: frozenset[str] = frozenset()


def model_of(offer: str) -> str:
    """Return the model of an offer's name."""
    return offer.rpartition("@")[0]


def plan_course(
    plan: Plan,
    offers: Sequence[Priced],
    settings: DelegateSettings,
    *,
    budget_units: int,
    deadline_s: float | None = None,
    is_soonest: bool = False,
    answered: Collection[str] = (),
) -> Planned:
    """Return who does what: cheap work cheaply, and speed bought where the whole gets shorter.

    It is bought until the deadline is met; without one, or with `is_soonest`, for as long as the budget lasts. Nodes
    that are `answered` cost nothing more. A share of the budget is kept for calls that must be repeated. Raises
    `NotForSale`, `BudgetInfeasible` with the missing amount, `DeadlineInfeasible`.
    """
    graph = _graph(plan, offers, settings, answered)
    least = cost_units(graph, cheapest(graph))
    if least > budget_units:
        raise BudgetInfeasible(
            f"the cheapest way to do all of it takes {shown_units(least)}, and {shown_units(budget_units)} is left of "
            f"the budget: {shown_units(least - budget_units)} is missing",
            missing_units=least - budget_units,
        )
    soonest_s = carry_out(graph, fastest(graph)).takes_s
    if deadline_s is not None and soonest_s > deadline_s:
        raise DeadlineInfeasible(f"the fastest way takes {soonest_s:.2f} s, and {deadline_s:.2f} s are left for it")
    for_upgrades = max(least, budget_units * (100 - RETRY_PERCENT) // 100)
    aim_s = None if deadline_s is None or is_soonest else deadline_s * _AIM_SHARE
    return Planned(plan, graph, upgraded(graph, budget_units=for_upgrades, deadline_s=aim_s))


def wishes_of(planned: Planned, deadline_s: float | None = None) -> Mapping[str, Wish]:
    """Return for each node when its answer is needed so that the whole is in time.

    Nodes that others do not wait for have all the time that the longest path leaves them, unless nodes wait for a turn:
    then the next one waits for each.
    """
    graph, assignment = planned.graph, planned.assignment
    ranks, before = upward_ranks(graph, assignment), _begins_s(graph, assignment)
    longest_s = max(start + rank for start, rank in zip(before, ranks, strict=True))
    whole_s = carry_out(graph, assignment).takes_s
    has_turns = whole_s > longest_s + _SHORTEST_S
    late_s = 0.0 if deadline_s is None else max(deadline_s - whole_s, 0.0)
    wishes = {}
    for job, node in enumerate(planned.plan.nodes):
        takes_s = graph.ways[job][assignment[job]].takes_s
        path_s = max(before[job] + ranks[job], _SHORTEST_S)
        spread_s, free_s = SPREAD_SHARE * takes_s + SPREAD_MIN_S, 0.0 if has_turns else longest_s - path_s
        # Of the time that is not needed, each node gets as much as it takes of the longest path through it.
        wishes[node.id] = Wish(
            takes_s + spread_s + free_s * takes_s / path_s + late_s * takes_s / max(whole_s, _SHORTEST_S), free_s <= 0
        )
    return wishes


def alone(plan: Plan, task: str) -> Plan:
    """Return the plan of not delegating what `plan` would: one call as demanding as the most demanding part."""
    whole = one_node_plan(task, sum(node.est_tokens for node in plan.nodes))
    (node,) = whole.nodes
    demanding = max(node.min_quality for node in plan.nodes)
    return whole.model_copy(update={"nodes": [node.model_copy(update={"min_quality": demanding})]})


def judge(planned: Planned, single: Planned, *, deadline_s: float | None = None) -> Verdict:
    """Tell whether to carry a plan out or make one call of it. The planner is paid either way by now."""
    course, one = (carry_out(each.graph, each.assignment) for each in (planned, single))
    # A prompt of ours repeats what the parts need, so nothing is added for context here: `_work` has counted it.
    overheads = Overheads(planner_s=0.0, planner_units=0, context_share=0.0)
    return worth_delegating(course, Single(one.takes_s, one.price_units), overheads, deadline_s=deadline_s)


def _graph(plan: Plan, offers: Sequence[Priced], settings: DelegateSettings, answered: Collection[str]) -> Graph:
    if not offers:
        raise NotForSale(
            "nothing that was bought can be spent now",
            remedy="run `farebox buy NAME --endpoint URL --model MODEL --count N --max-price P`; see `farebox status`",
        )
    places, nodes = plan.places, {node.id: node for node in plan.nodes}
    ways = [
        [_ANSWERED] if node.id in answered else _ways(place, node, _work(node, nodes), offers, settings)
        for place, node in enumerate(plan.nodes)
    ]
    fitness = {offer.name: settings.fitness_of(offer.model) for offer in offers}
    slots = {name: each.slots for name, each in fitness.items() if each is not None and each.slots is not None}
    return Graph([[places[need] for need in node.needs] for node in plan.nodes], ways, slots, settings.parallel)


def _ways(place: int, node: Node, work: float, offers: Sequence[Priced], settings: DelegateSettings) -> Sequence[Way]:
    """Return a way for each seller of a fit model, the cheapest first."""
    ways = []
    for offer in offers:
        fitness = settings.fitness_of(offer.model)
        if fitness is not None and fitness.quality >= node.min_quality and node.kind in fitness.kinds:
            ways.append(Way(offer.name, work / offer.work_per_s, offer.price_units))
    if not ways:
        raise NotForSale(
            f"nodes[{place}] ({node.id}): no model that was bought does {node.kind.value!r} at quality "
            f"{node.min_quality:g}"
        )
    return sorted(ways, key=lambda way: (way.price_units, way.takes_s))[:WAYS_MAX]


def _work(node: Node, nodes: Mapping[str, Node]) -> float:
    """Return the work of one call: what it writes, and what it reads of its goal and of others' answers."""
    read = _PREAMBLE_TOKENS + len(node.goal.encode()) / BYTES_PER_TOKEN
    read += sum(nodes[each.source].est_tokens for each in node.inputs)
    return work_of_tokens(node.est_tokens, read)


def _begins_s(graph: Graph, assignment: Assignment) -> list[float]:
    """Return when each job can begin at the earliest."""
    begins = [0.0] * graph.size
    for job in graph.order:
        begins[job] = max(
            (begins[need] + graph.ways[need][assignment[need]].takes_s for need in graph.needs[job]), default=0.0
        )
    return begins

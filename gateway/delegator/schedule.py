"""Who does what: cheap work to cheap sellers, and speed bought where it shortens the whole. Pure.

A graph is jobs by number, the jobs each waits for, and for each job the ways it can be done. An assignment is one way a
job. Seconds are floats and estimates; money is integers, and no assignment ever costs more than the budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from contracts.errors import FareboxError
from gateway.delegator.limits import UPGRADE_TRIALS_MAX

__all__ = [
    "Assignment",
    "BudgetInfeasible",
    "Course",
    "Graph",
    "Span",
    "Way",
    "carry_out",
    "cheapest",
    "cost_units",
    "earliest_finish",
    "fastest",
    "next_way",
    "upgraded",
    "upward_ranks",
]

# Jobs within this share of the critical path's length count as critical: ties should not hide an upgrade.
_NEARLY_CRITICAL = 0.93
_LEAST_GAIN_S = 1e-6

Assignment = Sequence[int]
"""For each job, the place of its way among `Graph.ways[job]`."""


class BudgetInfeasible(FareboxError):
    """Even the cheapest way of doing everything costs more than the budget. Nothing was paid."""

    code = "budget_infeasible"
    http_status = 402
    exit_code = 4
    remedy = "raise the budget by the missing amount, or ask for less"

    def __init__(self, message: str, *, missing_units: int) -> None:
        super().__init__(message)
        self.missing_units = missing_units


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing a job: at which seller, in how many seconds if nothing goes wrong, for how much at most."""

    seller: str
    takes_s: float
    price_units: int


@dataclass(frozen=True)
class Graph:
    """Jobs. `needs[job]` are those it waits for; `ways[job]` is not empty and ordered by price, then time.

    `slots` says how many calls a seller should have at a time; a seller without an entry takes any number. At most
    `width` jobs are done at once.
    """

    needs: Sequence[Sequence[int]]
    ways: Sequence[Sequence[Way]]
    slots: Mapping[str, int] = field(default_factory=dict)
    width: int | None = None

    @property
    def size(self) -> int:
        """How many jobs there are."""
        return len(self.needs)

    @cached_property
    def has_turns(self) -> bool:
        """Whether a job may have to wait although all that it needs is done."""
        bounds = [*self.slots.values(), *([] if self.width is None else [self.width])]
        return any(bound < self.size for bound in bounds)

    @cached_property
    def followers(self) -> list[list[int]]:
        """For each job, those that wait for it."""
        followers: list[list[int]] = [[] for _ in self.needs]
        for job, needs in enumerate(self.needs):
            for need in needs:
                followers[need].append(job)
        return followers

    @cached_property
    def order(self) -> list[int]:
        """All jobs, each after those it waits for."""
        missing = [len(needs) for needs in self.needs]
        free = [job for job, count in enumerate(missing) if not count]
        order: list[int] = []
        while free:
            order.append(job := free.pop())
            for follower in self.followers[job]:
                missing[follower] -= 1
                if not missing[follower]:
                    free.append(follower)
        assert len(order) == self.size, "a plan is checked for circles before it is scheduled"
        return order


@dataclass(frozen=True, slots=True)
class Span:
    """One attempt at a job: which way, from when to when, in seconds since the start."""

    job: int
    way: int
    starts_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class Course:
    """How a graph was carried out: when it ended, what it cost, and every attempt.

    `is_whole`: every job was done. A job that fails when no money is left to repeat it ends the course without.
    """

    takes_s: float
    price_units: int
    spans: Sequence[Span]
    is_whole: bool = True


Luck = Callable[[int, int, int], tuple[float, bool]]
"""(job, way, attempt) → how long it really takes, and whether it fails. A failed attempt costs like any other."""


def cost_units(graph: Graph, assignment: Assignment) -> int:
    """Return what an assignment costs at most, if nothing is repeated."""
    return sum(ways[way].price_units for ways, way in zip(graph.ways, assignment, strict=True))


def cheapest(graph: Graph) -> list[int]:
    """Return the cheapest way of each job."""
    return [min(range(len(ways)), key=lambda way: ways[way].price_units) for ways in graph.ways]


def fastest(graph: Graph) -> list[int]:
    """Return the fastest way of each job."""
    return [min(range(len(ways)), key=lambda way: ways[way].takes_s) for ways in graph.ways]


def upward_ranks(graph: Graph, assignment: Assignment) -> list[float]:
    """Return, for each job, the time from its start to the end of all that waits for it: the urgent first."""
    ranks = [0.0] * graph.size
    for job in reversed(graph.order):
        rest_s = max((ranks[follower] for follower in graph.followers[job]), default=0.0)
        ranks[job] = graph.ways[job][assignment[job]].takes_s + rest_s
    return ranks


def carry_out(
    graph: Graph,
    assignment: Assignment,
    ranks: Sequence[float] | None = None,
    *,
    width: int | None = None,
    luck: Luck | None = None,
    budget_units: int | None = None,
) -> Course:
    """Return the course of an assignment: whatever is ready starts, the urgent first, while its seller has a slot.

    At most `width` jobs run at once, or as many as the graph says. A failed attempt is repeated by `next_way`, with
    what the budget still allows after everything that is yet to be done.
    """
    ranks = upward_ranks(graph, assignment) if ranks is None else ranks
    width = graph.width if width is None else width
    missing = [len(needs) for needs in graph.needs]
    ready = [(-ranks[job], job) for job, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    free, way_of = dict(graph.slots), list(assignment)
    tried: list[list[str]] = [[] for _ in graph.needs]
    running: list[tuple[float, int, float, bool]] = []
    spans: list[Span] = []
    now_s, price, left = 0.0, 0, graph.size
    # What the jobs that are not done will cost as they are planned now.
    planned = cost_units(graph, assignment)
    while left:
        held = []
        while ready:
            urgency, job = heapq.heappop(ready)
            way = graph.ways[job][way_of[job]]
            if not free.get(way.seller, 1) or len(running) == width:
                held.append((urgency, job))
                continue
            if way.seller in free:
                free[way.seller] -= 1
            takes_s, fails = (way.takes_s, False) if luck is None else luck(job, way_of[job], len(tried[job]))
            heapq.heappush(running, (now_s + takes_s, job, now_s, fails))
        for entry in held:
            heapq.heappush(ready, entry)
        now_s, job, started_s, fails = heapq.heappop(running)
        way = graph.ways[job][way_of[job]]
        if way.seller in free:
            free[way.seller] += 1
        price += way.price_units
        planned -= way.price_units
        spans.append(Span(job, way_of[job], started_s, now_s))
        if fails:
            room = None if budget_units is None else budget_units - price - planned
            tried[job].append(way.seller)
            again = next_way(graph.ways[job], assignment[job], tried[job], room)
            if again is None:
                return Course(now_s, price, spans, is_whole=False)
            way_of[job] = again
            planned += graph.ways[job][again].price_units
            heapq.heappush(ready, (-ranks[job], job))
            continue
        left -= 1
        for follower in graph.followers[job]:
            missing[follower] -= 1
            if not missing[follower]:
                heapq.heappush(ready, (-ranks[follower], follower))
    return Course(now_s, price, spans)


def next_way(ways: Sequence[Way], assigned: int, tried: Sequence[str], room_units: int | None) -> int | None:
    """Return the way to try next, of those that cost at most `room_units`: None when there is none.

    The assigned way comes first, then the sellers that were not asked yet, the next dearer before the next cheaper; a
    seller is asked again only when all were.
    """
    affordable = [way for way, each in enumerate(ways) if room_units is None or each.price_units <= room_units]
    untried = [way for way in affordable if ways[way].seller not in tried]
    return min(untried or affordable, key=lambda way: (way < assigned, abs(way - assigned)), default=None)


def earliest_finish(graph: Graph) -> list[int]:
    """Return HEFT's assignment: in order of mean upward rank, each job where it would be done first, at any price."""
    means = [sum(way.takes_s for way in ways) / len(ways) for ways in graph.ways]
    ranks = [0.0] * graph.size
    for job in reversed(graph.order):
        ranks[job] = means[job] + max((ranks[follower] for follower in graph.followers[job]), default=0.0)
    free_at = {seller: [0.0] * slots for seller, slots in graph.slots.items()}
    ends, assignment = [0.0] * graph.size, [0] * graph.size
    for job in sorted(range(graph.size), key=lambda job: -ranks[job]):
        ready_s = max((ends[need] for need in graph.needs[job]), default=0.0)
        best: tuple[float, int, int | None] | None = None
        for way, each in enumerate(graph.ways[job]):
            slots = free_at.get(each.seller)
            slot = None if slots is None else min(range(len(slots)), key=slots.__getitem__)
            starts_s = ready_s if slots is None or slot is None else max(ready_s, slots[slot])
            if best is None or starts_s + each.takes_s < best[0]:
                best = starts_s + each.takes_s, way, slot
        assert best is not None
        ends[job], assignment[job], slot = best
        if slot is not None:
            free_at[graph.ways[job][assignment[job]].seller][slot] = ends[job]
    return assignment


def upgraded(graph: Graph, *, budget_units: int | None = None, deadline_s: float | None = None) -> list[int]:
    """Return the cheapest assignment, made faster where a coin saves most time of the whole.

    Upgrades go on until the deadline is met, or without one while they help and the budget lasts. Raises
    `BudgetInfeasible` when not even the cheapest is within the budget. A deadline that cannot be met is for the caller
    to notice.
    """
    assignment = cheapest(graph)
    cost = cost_units(graph, assignment)
    if budget_units is not None and cost > budget_units:
        missing = cost - budget_units
        raise BudgetInfeasible(
            f"the cheapest way to do all of it takes {cost} units, the budget is {budget_units}", missing_units=missing
        )
    faster = _faster(graph, assignment, budget_units, deadline_s)
    if not graph.has_turns:
        return faster
    # Trials reckon with the least that waiting for turns can cost: aim lower by what it does cost.
    if deadline_s is not None and (ends_s := carry_out(graph, faster).takes_s) > deadline_s:
        faster = _faster(graph, faster, budget_units, deadline_s * deadline_s / ends_s)
    return min(assignment, faster, key=lambda each: carry_out(graph, each).takes_s)


def _faster(graph: Graph, given: Assignment, budget_units: int | None, deadline_s: float | None) -> list[int]:
    """Return an assignment with the upgrades that save most time a coin, one after the other."""
    assignment = list(given)
    cost, takes_s, trials = cost_units(graph, assignment), _least_s(graph, assignment), 0
    while deadline_s is None or takes_s > deadline_s:
        best: tuple[float, int, int, float, int] | None = None
        for job in _critical(graph, assignment, takes_s):
            kept = assignment[job]
            for way, each in enumerate(graph.ways[job]):
                more = each.price_units - graph.ways[job][kept].price_units
                if each.takes_s >= graph.ways[job][kept].takes_s - _LEAST_GAIN_S:
                    continue
                if budget_units is not None and cost + more > budget_units:
                    continue
                if (trials := trials + 1) > UPGRADE_TRIALS_MAX:
                    return assignment
                assignment[job] = way
                would_take_s = _least_s(graph, assignment)
                assignment[job] = kept
                gain = (takes_s - would_take_s) / max(more, 1)
                if would_take_s < takes_s - _LEAST_GAIN_S and (best is None or gain > best[0]):
                    best = gain, job, way, would_take_s, more
        if best is None:
            break
        _, job, way, takes_s, more = best
        assignment[job] = way
        cost += more
    return assignment


def _least_s(graph: Graph, assignment: Assignment) -> float:
    """Return the least that an assignment can take: its longest path, or all the work through what there are turns of.

    Where no job has to wait for a turn, that is what it takes.
    """
    longest_s = max(upward_ranks(graph, assignment))
    if not graph.has_turns:
        return longest_s
    total_s, by_seller = 0.0, dict.fromkeys(graph.slots, 0.0)
    for ways, way in zip(graph.ways, assignment, strict=True):
        total_s += ways[way].takes_s
        if ways[way].seller in by_seller:
            by_seller[ways[way].seller] += ways[way].takes_s
    shares_s = [work_s / graph.slots[seller] for seller, work_s in by_seller.items()]
    return max(longest_s, *shares_s, 0.0 if graph.width is None else total_s / graph.width)


def _critical(graph: Graph, assignment: Assignment, least_s: float) -> Sequence[int]:
    """Return the jobs on a longest path, or nearly so: only they are worth making faster.

    Where the whole takes longer than that path, jobs wait for a turn, and each that ends sooner lets another begin.
    """
    ranks = upward_ranks(graph, assignment)
    before = [0.0] * graph.size
    for job in graph.order:
        before[job] = max(
            (before[need] + graph.ways[need][assignment[need]].takes_s for need in graph.needs[job]), default=0.0
        )
    longest_s = max(before[job] + ranks[job] for job in range(graph.size))
    if least_s > longest_s + _LEAST_GAIN_S:
        return range(graph.size)
    return [job for job in range(graph.size) if before[job] + ranks[job] >= longest_s * _NEARLY_CRITICAL]

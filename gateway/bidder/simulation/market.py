"""A market to measure choosers in: six sellers, three tiers each, prices that rise with load, hidden bad spells.

Discrete events, no network. Everything random is drawn before a run from one seed, so that every policy meets the same
tasks, the same crowd of other buyers and the same luck, and differences are paired. A seller serves its queue by tier
and never interrupts work; a call that is bought affects the queues that later calls meet. Outcomes reach the buyer
when the work ends, not before.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.bidder.task import TIERS, UNITS_PER_TOKEN, Offer, Outcome, Task

__all__ = ["Crowd", "Ended", "Live", "Load", "Result", "Shock", "World", "play"]

Array = NDArray[Any]

TIER_PRICE = (1.7, 1.0, 0.65)
_TIERS = len(TIERS)
_NEVER = 1e18
# Money in the simulation is a float of whole tokens; at the policies' door it becomes units.
_ATOMIC = 10**6
_UNITS_PER_ATOMIC = UNITS_PER_TOKEN // _ATOMIC


@dataclass(frozen=True, slots=True)
class Shock:
    """From task `at` on, `seller` takes `slowdown` times as long, or is dead (`slowdown` None: no answer is good)."""

    at: int
    seller: int
    slowdown: float | None


@dataclass(frozen=True, slots=True)
class Crowd:
    """The other buyers of one seller: when their calls come, how long each takes, and in which tier."""

    arrives_s: list[float]
    takes_s: list[float]
    tier: list[int]


@dataclass(frozen=True, slots=True)
class Load:
    """How the crowd's rate moves: a daily wave on a base, times bursts."""

    base: float
    period_s: float
    phase: float
    edges_s: Array
    factors: Array

    def rate(self, at_s: float) -> float:
        """Return calls per second at a moment."""
        wave = 1 + 0.3 * math.sin(2 * math.pi * at_s / self.period_s + self.phase)
        return float(self.base * wave * self.factors[np.searchsorted(self.edges_s, at_s, "right") - 1])


class World:
    """Everything that was drawn for one seed. Arrays are by task, by seller, or by task and seller."""

    def __init__(self, seed: int, tasks: int, sellers: int = 6, shocks: Sequence[Shock] = ()) -> None:
        random = np.random.default_rng(seed)
        self.tasks, self.sellers = tasks, sellers
        self._draw_tasks(random)
        self._draw_sellers(random)
        utilisation = random.uniform(0.55, 0.92, sellers)
        self.crowds: list[Crowd] = []
        self.loads: list[Load] = []
        self._spells: list[tuple[Array, Array]] = []
        for seller in range(sellers):
            self._draw_crowd(random, seller, float(utilisation[seller]))
        self.takes_s = self.work[:, None] / self.speed[None] * random.gamma(6, 1 / 6, (tasks, sellers))
        self.luck = random.random((tasks, sellers))
        self.charge_luck = random.random((tasks, sellers))
        self.published_every_s = random.uniform(1.0, 4.0, sellers)
        self._dead_from = np.full(sellers, tasks)
        for shock in shocks:
            if shock.slowdown is None:
                self._dead_from[shock.seller] = shock.at
            else:
                self.takes_s[shock.at :, shock.seller] *= shock.slowdown

    def _draw_tasks(self, random: np.random.Generator) -> None:
        count = self.tasks
        self.arrives_s: Array = np.cumsum(random.exponential(1.0, count))
        self.ends_s = float(self.arrives_s[-1]) + 400
        self.work: Array = np.clip(random.lognormal(0.0, 0.6, count), 0.15, 8)
        self.difficulty: Array = random.beta(2, 3, count)
        self.priority: Array = random.choice(3, count, p=[0.2, 0.5, 0.3])
        patience = np.array([0.8, 1.3, 6])[self.priority]
        self.slack_s: Array = self.work * random.uniform(1.5, 6, count) * patience + 1.0
        worth = np.log(np.array([6.0, 3.5, 1.8])[self.priority])
        self.value: Array = self.work * random.lognormal(worth, 0.35)
        self.cap: Array = self.value * random.uniform(0.6, 1.0, count)

    def _draw_sellers(self, random: np.random.Generator) -> None:
        """Fast sellers are dear and good, with noise."""
        count = self.sellers
        rank = np.linspace(-1, 1, count)
        self.speed: Array = np.exp(0.75 * rank + random.normal(0, 0.15, count))
        self.slots: Array = random.integers(3, 9, count)
        self.base_price: Array = 0.9 * np.exp(0.55 * rank + random.normal(0, 0.12, count))
        self.price_slope: Array = random.uniform(0.2, 0.9, count)
        self.skill: Array = 3.2 + 1.1 * rank + random.normal(0, 0.25, count)
        self.weakness: Array = 4.2 - 2.0 * rank + random.normal(0, 0.3, count)
        self.charges_failures: Array = random.choice([0.0, 0.0, 0.5, 1.0], count)
        self.reputation: Array = np.clip(0.9 + random.normal(0, 0.06, count), 0.5, 1)

    def _draw_crowd(self, random: np.random.Generator, seller: int, utilisation: float) -> None:
        speed = float(self.speed[seller])
        base = utilisation * (float(self.slots[seller]) * speed)
        period_s, phase = random.uniform(600, 1800), random.uniform(0, 6.28)
        edges, states = _two_states(random, self.ends_s, calm_s=250, other_s=60)
        load = Load(base, period_s, phase, edges, np.where(states, 1.45, 0.92))
        # The first stretch, before any change, is at the base rate.
        load.factors[0] = 1.0
        peak = base * 1.35 * 1.45
        arrives = np.cumsum(random.exponential(1 / peak, int(self.ends_s * peak * 1.1) + 50))
        arrives = arrives[arrives < self.ends_s]
        wave = 1 + 0.3 * np.sin(2 * np.pi * arrives / period_s + phase)
        rate = base * wave * load.factors[np.searchsorted(edges, arrives, "right") - 1]
        arrives = arrives[random.random(len(arrives)) < rate / peak]
        takes = random.exponential(1 / speed, len(arrives))
        tier = random.choice(3, len(arrives), p=[0.15, 0.6, 0.25])
        self.crowds.append(Crowd([*arrives.tolist(), _NEVER], [*takes.tolist(), 0.0], [*tier.tolist(), 0]))
        self.loads.append(load)
        self._spells.append(_two_states(random, self.ends_s, calm_s=900, other_s=90))

    def p_ok(self, task: int, seller: int) -> float:
        """Return the true chance that a seller's answer to a task is good."""
        if task >= self._dead_from[seller]:
            return 0.0
        edges, states = self._spells[seller]
        is_bad = states[np.searchsorted(edges, self.arrives_s[task], "right") - 1]
        skill = self.skill[seller] - self.weakness[seller] * self.difficulty[task]
        return float(1 / (1 + math.exp(-skill)) * (0.45 if is_bad else 0.99))

    def task(self, index: int) -> Task:
        """Return a task as a chooser is told of it."""
        return Task(
            work=float(self.work[index]),
            slack_s=float(self.slack_s[index]),
            value_units=_units(float(self.value[index])),
            cap_units=_units(float(self.cap[index])),
            difficulty=float(self.difficulty[index]),
            priority=int(self.priority[index]),
        )


class Live:
    """One seller at work: its slots, and a queue for each tier."""

    __slots__ = ("_crowd", "_next", "busy", "queues", "slots", "started")

    def __init__(self, slots: int, crowd: Crowd) -> None:
        self.slots = slots
        self.busy: list[float] = []
        self.queues: tuple[list[tuple[float, int | None]], ...] = ([], [], [])
        # Our own calls that began: (task, when it will end).
        self.started: list[tuple[int, float]] = []
        self._crowd = crowd
        self._next = 0

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return sum(map(len, self.queues))

    def advance(self, until_s: float) -> None:
        """Let time pass."""
        crowd, busy, queues = self._crowd, self.busy, self.queues
        index = self._next
        while True:
            arrival, end = crowd.arrives_s[index], busy[0] if busy else _NEVER * 10
            if arrival > until_s and end > until_s:
                break
            if end <= arrival:
                heapq.heappop(busy)
                for queue in queues:
                    if queue:
                        takes, own = queue.pop(0)
                        heapq.heappush(busy, end + takes)
                        if own is not None:
                            self.started.append((own, end + takes))
                        break
            else:
                if len(busy) < self.slots:
                    heapq.heappush(busy, arrival + crowd.takes_s[index])
                else:
                    queues[crowd.tier[index]].append((crowd.takes_s[index], None))
                index += 1
        self._next = index

    def submit(self, now_s: float, takes_s: float, tier: int, task: int) -> None:
        """Take one of our calls."""
        if len(self.busy) < self.slots:
            heapq.heappush(self.busy, now_s + takes_s)
            self.started.append((task, now_s + takes_s))
        else:
            self.queues[tier].append((takes_s, task))


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one task. `paid` and `utility` in whole tokens."""

    task: int
    offer: Offer
    outcome: Outcome
    at_s: float
    is_good: bool
    utility: float


Choice = Callable[[int, Task, list[Offer], list[Live], float], int | None]
"""(task number, task, offers by seller and tier, the sellers as they are, now) → the place of an offer, or None."""


@dataclass(slots=True)
class Result:
    """A run: utility, payment and success by task, and which offer was bought (-1: none)."""

    utility: Array
    paid: Array
    good: Array
    bought: Array
    over_cap: int = 0


@dataclass(slots=True)
class _Bought:
    offer: Offer
    is_ok: bool
    is_charged: bool


@dataclass(slots=True)
class _Floor:
    """The market while it is open."""

    world: World
    sellers: list[Live]
    ends: list[tuple[float, int]] = field(default_factory=list)
    bought: dict[int, _Bought] = field(default_factory=dict)
    published: list[tuple[float, float, float]] = field(default_factory=list)

    def advance(self, until_s: float) -> Iterator[Ended]:
        """Let time pass, and yield what ended in it, in order."""
        for seller in self.sellers:
            seller.advance(until_s)
            for task, end_s in seller.started:
                heapq.heappush(self.ends, (end_s, task))
            seller.started.clear()
        while self.ends and self.ends[0][0] <= until_s:
            end_s, task = heapq.heappop(self.ends)
            yield self._ended(task, end_s)

    def _ended(self, task: int, end_s: float) -> Ended:
        world, bought = self.world, self.bought.pop(task)
        latency_s = end_s - float(world.arrives_s[task])
        paid_units = bought.offer.price_units if bought.is_ok or bought.is_charged else 0
        is_good = bought.is_ok and latency_s <= world.slack_s[task]
        utility = (float(world.value[task]) if is_good else 0.0) - paid_units / UNITS_PER_TOKEN
        return Ended(task, bought.offer, Outcome(latency_s, bought.is_ok, paid_units), end_s, is_good, utility)

    def offers(self, task: int, now_s: float) -> list[Offer]:
        """Return what every seller asks for a task in each tier. What they publish of their queues is a little old."""
        world = self.world
        offers = []
        for number, seller in enumerate(self.sellers):
            busy, waiting, slots = len(seller.busy), seller.waiting, seller.slots
            seen_s, queue, share = self.published[number]
            if now_s - seen_s > world.published_every_s[number]:
                queue, share = waiting / slots, busy / slots
                self.published[number] = now_s, queue, share
            occupancy = min((busy + waiting) / slots, 4.0)
            unit_price = float(world.base_price[number]) * (1 + float(world.price_slope[number]) * occupancy**2 * 0.45)
            for tier in range(_TIERS):
                price = unit_price * TIER_PRICE[tier] * float(world.work[task])
                offers.append(
                    Offer(
                        name=f"{number}.{tier}",
                        seller=str(number),
                        price_units=_units(price),
                        tier=tier,
                        speed=float(world.speed[number]),
                        queue_per_slot=queue,
                        busy_share=share,
                        reputation=float(world.reputation[number]),
                    )
                )
        return offers

    def buy(self, task: int, place: int, offer: Offer, now_s: float) -> None:
        """Send a task to a seller."""
        world, (number, tier) = self.world, divmod(place, _TIERS)
        is_ok = bool(world.luck[task, number] < world.p_ok(task, number))
        is_charged = bool(world.charge_luck[task, number] < world.charges_failures[number])
        self.bought[task] = _Bought(offer, is_ok, is_charged)
        self.sellers[number].submit(now_s, float(world.takes_s[task, number]), tier, task)


def play(world: World, choice: Choice, observe: Callable[[Ended], None] | None = None) -> Result:
    """Run all tasks of a world past a chooser, telling it of each outcome when it is there."""
    sellers = [Live(int(slots), crowd) for slots, crowd in zip(world.slots, world.crowds, strict=True)]
    floor = _Floor(world, sellers, published=[(-math.inf, 0.0, 0.0)] * world.sellers)
    count = world.tasks
    result = Result(np.zeros(count), np.zeros(count), np.zeros(count, bool), np.full(count, -1))

    def note(ended: Ended) -> None:
        result.utility[ended.task] = ended.utility
        result.paid[ended.task] = ended.outcome.paid_units / UNITS_PER_TOKEN
        result.good[ended.task] = ended.is_good

    for index in range(count):
        now_s = float(world.arrives_s[index])
        for ended in floor.advance(now_s):
            note(ended)
            if observe is not None:
                observe(ended)
        task, offers = world.task(index), floor.offers(index, now_s)
        if min(offer.price_units for offer in offers) > task.cap_units:
            continue
        place = choice(index, task, offers, sellers, now_s)
        if place is None:
            continue
        result.over_cap += offers[place].price_units > task.cap_units
        result.bought[index] = place
        floor.buy(index, place, offers[place], now_s)
    for ended in floor.advance(world.ends_s):
        note(ended)
    return result


def _two_states(random: np.random.Generator, until_s: float, *, calm_s: float, other_s: float) -> tuple[Array, Array]:
    """Return when a thing that is calm or not changes, and the state from each change on."""
    at_s, state = 0.0, 0
    edges, states = [0.0], [0]
    while at_s < until_s:
        at_s += random.exponential(calm_s if state == 0 else other_s)
        state ^= 1
        edges.append(at_s)
        states.append(state)
    return np.array(edges), np.array(states)


def _units(amount: float) -> int:
    return round(amount * _ATOMIC) * _UNITS_PER_ATOMIC

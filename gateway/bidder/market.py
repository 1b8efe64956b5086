"""What is remembered of a market: how each seller has answered, and what its prices were. No clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

from gateway.bidder.limits import SELLERS_MAX
from gateway.bidder.task import Offer, Outcome, Task

__all__ = ["Market", "Memory"]

# How far one observation moves a moving average.
_SLOWDOWN_STEP = 0.15
_OK_STEP = 0.1
_PRICE_STEP = 0.02
_SPEED_STEP = 0.1

# Before anything is known: most answers are good, and take as long as an idle seller takes.
OK_AT_FIRST = 0.85
SLOWDOWN_AT_FIRST = 1.0
SPEED_AT_FIRST = 1.0
REPUTATION_UNKNOWN = 0.9
LONG_AGO_S = 600.0
# What a seller says of its speed outside of this is not believed.
SPEED_MIN, SPEED_MAX = 1e-3, 1e6
_PACE_MIN = 1e-3
_LATENCY_MIN_S, _LATENCY_MAX_S = 1e-6, 1e6
UNMET = -1
QUEUE_MAX = 1e3

QUEUE_SHARE = (0.25, 0.8, 1.6)
"""How much of the queue a tier waits for: those ahead of it, and for the last tier also those who come later."""


@dataclass(slots=True)
class Memory:
    """One seller. `number`: its place in the order in which they were met, or `UNMET`. Some averages are by tier."""

    number: int
    ok: float = OK_AT_FIRST
    speed: float = SPEED_AT_FIRST
    speeds_seen: int = 0
    failed_at_s: float | None = None
    slowdown: dict[int, float] = field(default_factory=dict)
    unit_price: dict[int, float] = field(default_factory=dict)

    def since_failure_s(self, now_s: float) -> float:
        """Return the time since its last bad answer, `LONG_AGO_S` at most. A clock that went back counts as now."""
        if self.failed_at_s is None:
            return LONG_AGO_S
        return min(max(now_s - self.failed_at_s, 0.0), LONG_AGO_S)


class Market:
    """The memory of all sellers, bounded: past `SELLERS_MAX` the one that was met first is forgotten."""

    def __init__(self) -> None:
        self._sellers: dict[str, Memory] = {}
        self._met = 0

    def of(self, seller: str) -> Memory:
        """Return what is known of a seller; of one never met, what is usual. Changes nothing."""
        return self._sellers.get(seller) or Memory(UNMET)

    def _meet(self, seller: str) -> Memory:
        memory = self._sellers.get(seller)
        if memory is None:
            if len(self._sellers) >= SELLERS_MAX:
                del self._sellers[next(iter(self._sellers))]
            memory = self._sellers[seller] = Memory(self._met)
            self._met += 1
        return memory

    def speed_of(self, offer: Offer) -> float:
        """Return the work per second of an idle seller: what it publishes, else what was seen of it."""
        published = offer.speed
        if published is not None and SPEED_MIN <= published <= SPEED_MAX:
            return published
        return self.of(offer.seller).speed

    def pace_of(self, offer: Offer) -> float:
        """Return the work per second to be had of a seller now: its usual waiting, and what must be done again."""
        memory = self.of(offer.seller)
        slowdown = max(memory.slowdown.get(offer.tier, SLOWDOWN_AT_FIRST), _PACE_MIN)
        return self.speed_of(offer) * max(memory.ok, _PACE_MIN) / slowdown

    def see(self, task: Task, offer: Offer) -> None:
        """Note the price of an offer, bought or not."""
        memory, unit_price = self._meet(offer.seller), offer.price / task.work
        known = memory.unit_price.get(offer.tier)
        memory.unit_price[offer.tier] = unit_price if known is None else known + _PRICE_STEP * (unit_price - known)

    def observe(self, task: Task, offer: Offer, outcome: Outcome, now_s: float) -> None:
        """Note what became of a call that was bought at `offer` and ended at `now_s`."""
        memory = self._meet(offer.seller)
        seen = min(max(outcome.latency_s, _LATENCY_MIN_S), _LATENCY_MAX_S) if isfinite(outcome.latency_s) else None
        if seen is None:
            return
        speed_of_seller = self.speed_of(offer)
        speed_is_ours = speed_of_seller != offer.speed
        slowdown = seen * speed_of_seller / task.work
        known = memory.slowdown.get(offer.tier, SLOWDOWN_AT_FIRST)
        # A wait that was given up says only "at least so long".
        if not outcome.is_censored or slowdown > known:
            memory.slowdown[offer.tier] = known + _SLOWDOWN_STEP * (slowdown - known)
        # A refusal is quick, and says nothing of how quick the work is.
        if speed_is_ours and outcome.is_ok and not outcome.is_censored:
            speed = min(max((task.work + _work_ahead(offer)) / seen, SPEED_MIN), SPEED_MAX)
            # The first answers say more than the guess they replace. Times are averaged, not speeds: one slow answer
            # costs more than a quick one saves.
            memory.speeds_seen += 1
            step = max(_SPEED_STEP, 1 / memory.speeds_seen)
            memory.speed = 1 / ((1 - step) / memory.speed + step / speed)
            memory.slowdown[offer.tier] = SLOWDOWN_AT_FIRST
        memory.ok += _OK_STEP * (outcome.is_ok - memory.ok)
        if not outcome.is_ok:
            memory.failed_at_s = now_s


def _work_ahead(offer: Offer) -> float:
    """Return the work that a call waits for in the queue its seller told of, in calls of ordinary work."""
    queue = offer.queue_per_slot
    if queue is None or not 0 <= queue <= QUEUE_MAX:
        return 0.0
    return queue * QUEUE_SHARE[min(max(offer.tier, 0), len(QUEUE_SHARE) - 1)]

"""What is to be bought, and what could be bought for it. Plain values; the market fills them in, policies only read.

Money is in units that all tokens share, whole tokens times 10^36 as in `buyer.budgets`; an order among offers may be
computed in floats of whole tokens, a comparison with a cap never is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from contracts.tiers import TIERS

__all__ = [
    "NORMAL",
    "PRIORITIES",
    "TIERS",
    "UNITS_PER_TOKEN",
    "Decision",
    "Observation",
    "Offer",
    "Outcome",
    "Task",
    "tokens",
]

UNITS_PER_TOKEN = 10**36

PRIORITIES = TIERS
"""A task's priority, by its number: the same words as a seller's service classes, of which a lower one is served first
and costs more.
"""
NORMAL = 1


@dataclass(frozen=True, slots=True)
class Task:
    """One call to be placed.

    `work` is its size in units that every seller's `speed` is per second of: 1.0 is an ordinary call. `difficulty` is 0
    to 1, 0.5 where nobody knows. `slack_s` is the time from now to its deadline, `value_units` what an answer in time
    is worth, and `cap_units` what it may cost at most.
    """

    work: float
    slack_s: float
    value_units: int
    cap_units: int
    difficulty: float = 0.5
    priority: int = NORMAL

    @property
    def value(self) -> float:
        """The value in whole tokens."""
        return tokens(self.value_units)


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to have a task done: a seller's tier at a price that is known before paying.

    `name` tells the offers of one call apart, for example the name of a purchase. What a seller publishes about itself
    is None where it does not: `speed` in work per second, `queue_per_slot` and `busy_share` of its slots,
    `reputation` 0 to 1. `price_units` is the most that can be charged.
    """

    name: str
    seller: str
    price_units: int
    tier: int = 1
    speed: float | None = None
    queue_per_slot: float | None = None
    busy_share: float | None = None
    reputation: float | None = None

    @property
    def price(self) -> float:
        """The price in whole tokens."""
        return tokens(self.price_units)

    @property
    def arm(self) -> str:
        """The seller and its tier, which is what is learnt about."""
        return f"{self.seller}#{self.tier}"


@dataclass(frozen=True, slots=True)
class Observation:
    """What a seller showed of one tier without a decision: its price, and its queue."""

    seller: str
    tier: int
    price_units: int
    queue_per_slot: float
    busy_share: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call that was bought: how long it took, whether the answer was good, what was charged.

    `is_censored`: nobody waited for the end, so that it took longer than `latency_s`.
    """

    latency_s: float
    is_ok: bool
    paid_units: int
    is_censored: bool = False

    def is_good(self, task: Task) -> bool:
        """Tell whether the answer was right and in time."""
        return self.is_ok and not self.is_censored and self.latency_s <= task.slack_s


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a task.

    `offer` is what to buy, and None to `wait` or `skip`. `propensity` is the exact probability with which this action
    was going to be taken, exploration included. `p_good` is the estimated chance of a right answer in time and
    `utility` the expected value less the price, in whole tokens; both None where the policy estimates none.
    """

    action: Literal["buy", "wait", "skip"]
    policy: str
    reason: str
    offer: Offer | None = None
    propensity: float = 1.0
    is_exploration: bool = False
    p_good: float | None = None
    utility: float | None = None


def tokens(units: int) -> float:
    """Return an amount in whole tokens, for ordering and for people; infinity where no float is large enough."""
    try:
        return units / UNITS_PER_TOKEN
    except OverflowError:
        return math.inf

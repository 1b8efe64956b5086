"""What a policy sees of one offer for one task: eighteen numbers, the same for learning and for deciding. Pure.

A row is a tuple in the order of `FEATURES`. Nothing of a prompt or an answer is among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log, nan

from gateway.bidder.market import QUEUE_MAX, REPUTATION_UNKNOWN, SLOWDOWN_AT_FIRST, UNMET, Market
from gateway.bidder.task import TIERS, Offer, Task

__all__ = ["FEATURES", "FEATURE_SCHEMA", "Row", "View", "column", "view_of"]

Row = tuple[float, ...]

FEATURES = (
    "price",
    "price_over_value",
    "unit_price",
    "unit_price_vs_ewma",
    "log_work",
    "slack_s",
    "slack_over_nominal",
    "difficulty",
    "tier",
    "queue_per_slot",
    "busy_share",
    "slowdown",
    "ok",
    "since_failure_s",
    "reputation",
    "seller",
    "speed",
    "priority",
)

# Raised whenever a column changes its meaning: a model of another schema is not used.
FEATURE_SCHEMA = 1

_VALUE_MIN = 1e-12
# A price that is a thousand times what it should be is as bad as any dearer one.
_RATIO_MAX = 1e3
_BUSY_UNKNOWN = 0.5
DIFFICULTY_UNKNOWN = 0.5


def column(name: str) -> int:
    """Return the place of a feature in a row."""
    return FEATURES.index(name)


@dataclass(frozen=True, slots=True)
class View:
    """One decision as policies see it: the offers within the cap, and a row for each."""

    task: Task
    offers: Sequence[Offer]
    rows: Sequence[Row]


def view_of(task: Task, offers: Sequence[Offer], market: Market, now_s: float) -> View:
    """Return what a policy is shown. The market is read only."""
    return View(task, offers, [_row_of(task, offer, market, now_s) for offer in offers])


def _row_of(task: Task, offer: Offer, market: Market, now_s: float) -> Row:
    """Return the features of one offer. What the seller does not publish is replaced by what is usual."""
    memory = market.of(offer.seller)
    speed = market.speed_of(offer)
    price = offer.price
    unit_price = price / task.work
    usual_price = memory.unit_price.get(offer.tier, unit_price)
    slowdown = memory.slowdown.get(offer.tier, SLOWDOWN_AT_FIRST)
    queue = offer.queue_per_slot
    if queue is None or not 0 <= queue <= QUEUE_MAX:
        # What our own calls waited there, as a queue: one mean job more for each nominal time they took longer.
        queue = min(max(slowdown - 1.0, 0.0) * task.work, QUEUE_MAX)
    busy = offer.busy_share
    reputation = offer.reputation
    return (
        price,
        min(price / max(task.value, _VALUE_MIN), _RATIO_MAX),
        unit_price,
        min(unit_price / usual_price, _RATIO_MAX) if usual_price > 0 else 1.0,
        log(task.work),
        task.slack_s,
        task.slack_s * speed / task.work,
        min(max(task.difficulty, 0.0), 1.0) if isfinite(task.difficulty) else DIFFICULTY_UNKNOWN,
        float(min(max(offer.tier, 0), len(TIERS) - 1)),
        queue,
        busy if busy is not None and 0 <= busy <= 1 else _BUSY_UNKNOWN,
        slowdown,
        memory.ok,
        memory.since_failure_s(now_s),
        reputation if reputation is not None and 0 <= reputation <= 1 else REPUTATION_UNKNOWN,
        nan if memory.number == UNMET else float(memory.number),
        speed,
        float(task.priority),
    )

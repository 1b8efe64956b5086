"""What choosing has brought, from the event log: earned, against what was expected, and where the calls went. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.bidder.events import Event
from gateway.bidder.policy import Policy
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest
from gateway.bidder.task import tokens

__all__ = ["Bin", "Counterfactual", "Report", "Seller", "agrees", "estimates_of", "report_of", "utility_of"]

_BINS = 5
# A decision that was all but impossible must not outweigh all others.
_PROPENSITY_MIN = 1e-6


@dataclass(frozen=True, slots=True)
class Bin:
    """Decisions whose estimated chance lay in one fifth: how high it was on average, and how often it came true."""

    estimated: float
    realised: float
    decisions: int


@dataclass(frozen=True, slots=True)
class Seller:
    """What one seller got and gave. Money in whole tokens."""

    name: str
    calls: int
    good: float
    latency_s: float
    paid: float
    price: float


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What another policy would have brought, in whole tokens, and how many decisions agree with it and say so."""

    utility: float | None
    agreed: int


@dataclass(frozen=True, slots=True)
class Report:
    """A log in figures. Utilities in whole tokens; `of_rule` and `of_cheapest` are estimates, see `agreed_with`.

    What another policy would have earned is known only where it would have done the same: those decisions are counted,
    each weighed by how improbable it was, and the estimate is as good as they are many.
    """

    decisions: int
    utility: float
    paid: float
    good: float
    explored: int
    of_rule: float | None
    of_cheapest: float | None
    agreed_with: dict[str, int]
    reliability: list[Bin]
    sellers: list[Seller]


def report_of(events: Sequence[Event]) -> Report:
    """Return the figures of decisions that have an outcome."""
    ended = [event for event in events if event.outcome is not None and event.chosen is not None]
    of_rule, of_cheapest = (
        estimates_of(ended, policy)[-1] if ended else Counterfactual(None, 0) for policy in (QueueRule(), Cheapest())
    )
    return Report(
        decisions=len(ended),
        utility=sum(utility_of(event) for event in ended),
        paid=sum(_paid(event) for event in ended),
        good=_share(sum(bool(event.is_good) for event in ended), len(ended)),
        explored=sum(event.is_exploration for event in ended),
        of_rule=of_rule.utility,
        of_cheapest=of_cheapest.utility,
        agreed_with={"rule": of_rule.agreed, "cheapest": of_cheapest.agreed},
        reliability=_reliability(ended),
        sellers=_sellers(ended),
    )


def utility_of(event: Event) -> float:
    """Return what a decision brought, in whole tokens: its value where the answer was good, less what was paid."""
    return (event.view.task.value if event.is_good else 0.0) - _paid(event)


def _paid(event: Event) -> float:
    return 0.0 if event.outcome is None else tokens(event.outcome.paid_units)


def agrees(event: Event, policy: Policy) -> bool:
    """Tell whether `policy` would have bought what was bought."""
    estimate = policy.estimate(event.view)
    if estimate.order is not None:
        worth = list(estimate.order)
    else:
        value = event.view.task.value
        worth = [value * p - offer.price for p, offer in zip(estimate.p_good or (), event.view.offers, strict=True)]
    return bool(worth) and max(range(len(worth)), key=worth.__getitem__) == event.chosen


def estimates_of(events: Sequence[Event], policy: Policy) -> list[Counterfactual]:
    """Return, after each decision with an outcome, what `policy` would have brought so far.

    Self-normalised inverse propensity scoring: a decision that the policy would have made counts the more, the less
    probable it was, and the sum is scaled to all decisions.
    """
    total = weights = 0.0
    agreed = 0
    estimates = []
    for count, event in enumerate(events, 1):
        if agrees(event, policy):
            weight = 1 / max(event.propensity, _PROPENSITY_MIN)
            total, weights, agreed = total + weight * utility_of(event), weights + weight, agreed + 1
        estimates.append(Counterfactual(total / weights * count if weights else None, agreed))
    return estimates


def _reliability(events: Sequence[Event]) -> list[Bin]:
    estimated = [(event.p_good, bool(event.is_good)) for event in events if event.p_good is not None]
    bins = []
    for number in range(_BINS):
        low, high = number / _BINS, (number + 1) / _BINS
        inside = [(p, good) for p, good in estimated if low <= p < high or (number == _BINS - 1 and p == 1.0)]
        if inside:
            bins.append(
                Bin(sum(p for p, _ in inside) / len(inside), sum(good for _, good in inside) / len(inside), len(inside))
            )
    return bins


def _sellers(events: Sequence[Event]) -> list[Seller]:
    by_name: dict[str, list[Event]] = {}
    for event in events:
        assert event.chosen is not None
        by_name.setdefault(event.view.offers[event.chosen].name, []).append(event)
    sellers = []
    for name, mine in sorted(by_name.items(), key=lambda item: -len(item[1])):
        count = len(mine)
        latencies = sorted(event.outcome.latency_s for event in mine if event.outcome is not None)
        sellers.append(
            Seller(
                name=name,
                calls=count,
                good=_share(sum(bool(event.is_good) for event in mine), count),
                latency_s=latencies[len(latencies) // 2],
                paid=sum(_paid(event) for event in mine),
                price=sum(event.view.offers[event.chosen or 0].price for event in mine) / count,
            )
        )
    return sellers


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0

"""What the report draws: utility as it added up, who got the calls when, and which sellers nobody beats. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.bidder.events import Event
from gateway.bidder.report import Seller, estimates_of, utility_of
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest

__all__ = ["Curves", "curves_of", "frontier"]

# Points of a curve and stretches of time: more are not seen.
POINTS_MAX = 400
STRETCHES_MAX = 40
# Sellers told apart in a plot; the rest are drawn together.
SELLERS_MAX = 8
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Curves:
    """`calls` are counts of decisions, and `utility` what had come of them then, in whole tokens, by policy: "chosen"
    as it happened, the others as estimated from the decisions with which they agree (None before the first).

    `share` is each seller's part of the calls in each of equal stretches, by seller.
    """

    calls: list[int]
    utility: dict[str, list[float | None]]
    share: dict[str, list[float]]


def curves_of(events: Sequence[Event]) -> Curves:
    """Return the curves of decisions that have an outcome, oldest first."""
    ended = [event for event in events if event.outcome is not None and event.chosen is not None]
    every = max(1, -(-len(ended) // POINTS_MAX))
    marks = [count for count in range(1, len(ended) + 1) if count % every == 0 or count == len(ended)]
    sums = _sums(ended)
    utility: dict[str, list[float | None]] = {"chosen": [sums[count - 1] for count in marks]}
    for policy in (QueueRule(), Cheapest()):
        estimates = estimates_of(ended, policy)
        utility[policy.name] = [estimates[count - 1].utility for count in marks]
    return Curves(marks, utility, _share(ended))


def frontier(sellers: Sequence[Seller]) -> list[Seller]:
    """Return the sellers of which no other is both cheaper and faster, cheapest first."""
    kept: list[Seller] = []
    for seller in sorted(sellers, key=lambda each: (each.price, each.latency_s)):
        if not kept or seller.latency_s < kept[-1].latency_s:
            kept.append(seller)
    return kept


def _sums(events: Sequence[Event]) -> list[float]:
    total, sums = 0.0, []
    for event in events:
        total += utility_of(event)
        sums.append(total)
    return sums


def _share(events: Sequence[Event]) -> dict[str, list[float]]:
    names = [event.view.offers[event.chosen or 0].name for event in events]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    known = sorted(counts, key=lambda name: -counts[name])[:SELLERS_MAX]
    length = max(1, -(-len(names) // STRETCHES_MAX))
    stretches = [names[start : start + length] for start in range(0, len(names), length)]
    shares = {name: [stretch.count(name) / len(stretch) for stretch in stretches] for name in known}
    if len(counts) > len(known):
        shares[OTHERS] = [sum(name not in known for name in stretch) / len(stretch) for stretch in stretches]
    return shares

"""What every policy is: something that looks at the offers for a task and says how good each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.bidder.features import Row, View

__all__ = ["Estimate", "Policy"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's word on the offers of a view, in their order.

    `p_good` are chances of a right answer in time; the best offer is then the one with the highest value times chance
    less price, and nothing is bought where none of these is positive. A policy that reckons no chances gives `order`
    instead, higher first, or `weights` to draw one by.
    """

    p_good: Sequence[float] | None = None
    order: Sequence[float] | None = None
    weights: Sequence[float] | None = None


class Policy(Protocol):
    """Estimates offers, and may learn from outcomes."""

    name: str

    def estimate(self, view: View) -> Estimate:
        """Judge the offers of `view`, of which there is at least one."""

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Take note of an outcome: the row that was decided on, and the seller's tier as `Offer.arm` names it."""

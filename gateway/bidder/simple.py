"""What routers in use do: cheapest, fastest, drawn by the inverse square of the price; and the best simple learner."""

from __future__ import annotations

from math import inf

from gateway.bidder.features import Row, View, column
from gateway.bidder.policy import Estimate

__all__ = ["Cheapest", "EwmaUtility", "Fastest", "InverseSquare"]

_PRICE, _TIER, _PRIORITY = column("price"), column("tier"), column("priority")
_SLOWDOWN, _SPEED, _SINCE_FAILURE = column("slowdown"), column("speed"), column("since_failure_s")

# A seller that failed within this time is passed over while another is there.
_OUTAGE_S = 30.0


class _Untaught:
    """A policy that learns nothing of its own."""

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Take no note."""


class Cheapest(_Untaught):
    """The lowest price, whatever it buys."""

    name = "cheapest"

    def estimate(self, view: View) -> Estimate:
        """Order by price."""
        return Estimate(order=[-row[_PRICE] for row in view.rows])


class Fastest(_Untaught):
    """The shortest time a call took of late, whatever it costs."""

    name = "fastest"

    def estimate(self, view: View) -> Estimate:
        """Order by latency."""
        return Estimate(order=[-row[_SLOWDOWN] / row[_SPEED] for row in view.rows])


class InverseSquare(_Untaught):
    """Drawn by 1 / price², of the tier that fits the task's priority, among sellers that did not fail just now."""

    name = "inverse_square"

    def estimate(self, view: View) -> Estimate:
        """Weigh by price."""
        rows = view.rows
        fits = [row[_TIER] == row[_PRIORITY] for row in rows]
        if not any(fits):
            fits = [True] * len(rows)
        alive = [fit and row[_SINCE_FAILURE] > _OUTAGE_S for fit, row in zip(fits, rows, strict=True)]
        usable = alive if any(alive) else fits
        return Estimate(
            weights=[
                (row[_PRICE] ** -2 if row[_PRICE] > 0 else inf) if use else 0.0
                for use, row in zip(usable, rows, strict=True)
            ]
        )


class EwmaUtility:
    """Value times how often this seller's tier was good and in time for tasks of this priority, less the price."""

    name = "ewma"
    _STEP, _AT_FIRST = 0.08, 0.8

    def __init__(self) -> None:
        self._good: dict[tuple[float, str], float] = {}

    def estimate(self, view: View) -> Estimate:
        """Return the share of good answers in time of each arm."""
        arms = zip(view.rows, view.offers, strict=True)
        return Estimate(p_good=[self._good.get((row[_PRIORITY], offer.arm), self._AT_FIRST) for row, offer in arms])

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Move the arm's share."""
        key = row[_PRIORITY], arm
        known = self._good.get(key, self._AT_FIRST)
        self._good[key] = known + self._STEP * (is_good - known)

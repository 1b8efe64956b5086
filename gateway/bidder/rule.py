"""The expert rule: what a person who knows queues would reckon. The default until data exists, and the fallback.

Time to an answer = the seller's queue, as far as this tier has to wait for it, and the work itself; the chance to be in
time falls off around the deadline; the chance of a good answer is how often this seller's were. Pure, without numpy.
"""

from __future__ import annotations

from math import exp, log

from gateway.bidder.features import Row, View, column
from gateway.bidder.market import QUEUE_SHARE
from gateway.bidder.policy import Estimate

__all__ = ["SPREAD_MIN_S", "SPREAD_SHARE", "QueueRule", "on_time_logit", "quality_logit"]

# The spread of the time to an answer, as a share of it, and the least spread there is.
SPREAD_SHARE, SPREAD_MIN_S = 0.35, 0.1
_LOGIT_MAX = 30.0

_SLACK, _NOMINAL, _TIER = column("slack_s"), column("slack_over_nominal"), column("tier")
_QUEUE, _SPEED, _OK = column("queue_per_slot"), column("speed"), column("ok")


def on_time_logit(row: Row) -> float:
    """Return the log-odds that an answer comes before the deadline."""
    wait_s = row[_QUEUE] / row[_SPEED] * QUEUE_SHARE[int(row[_TIER])]
    total_s = wait_s + row[_SLACK] / row[_NOMINAL]
    return min(max((row[_SLACK] - total_s) / (SPREAD_SHARE * total_s + SPREAD_MIN_S), -_LOGIT_MAX), _LOGIT_MAX)


def quality_logit(row: Row) -> float:
    """Return the log-odds that an answer is good."""
    ok = min(max(row[_OK], 0.03), 0.97)
    return log(ok / (1.0 - ok))


class QueueRule:
    """Buys where the chance of a good answer in time, times its value, exceeds the price by most."""

    name = "rule"

    def estimate(self, view: View) -> Estimate:
        """Return the chance of a good answer in time for each offer."""
        return Estimate(p_good=[row[_OK] / (1.0 + exp(-on_time_logit(row))) for row in view.rows])

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Nothing is learnt here but the market's averages, which are kept for all policies."""

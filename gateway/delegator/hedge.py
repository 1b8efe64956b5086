"""When a second seller is asked for what the first is late with. Pure."""

from __future__ import annotations

from gateway.delegator.limits import HEDGE_AFTER
from gateway.delegator.schedule import Way

__all__ = ["hedge_after_s", "is_in_time"]


def hedge_after_s(way: Way, *, started_s: float, rest_s: float, deadline_s: float | None) -> float | None:
    """Return how long a call may take before it is more likely than not to spoil the deadline; None: it never is.

    `started_s` is when it began and `deadline_s` when the run must end, in seconds since the run's start; `rest_s` is
    what waits for it on the longest path. How long calls take has a heavy tail: one that has taken `t` is expected to
    take as long again.
    """
    if deadline_s is None:
        return None
    return max(HEDGE_AFTER * way.takes_s, (deadline_s - started_s - rest_s) / 2)


def is_in_time(way: Way, *, now_s: float, rest_s: float, deadline_s: float) -> bool:
    """Tell whether a call begun now would still meet the deadline; one that would not is money for nothing."""
    return now_s + way.takes_s + rest_s <= deadline_s

"""Whether delegating is worth it at all: a plan costs a call, and every part of it repeats some context. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.delegator.schedule import Course

__all__ = ["Overheads", "Single", "Verdict", "worth_delegating"]


@dataclass(frozen=True, slots=True)
class Overheads:
    """What delegating costs on top: the planner's call, and how much longer and dearer every part becomes."""

    planner_s: float
    planner_units: int
    context_share: float = 0.15


@dataclass(frozen=True, slots=True)
class Single:
    """The other way: one model does all of it in one go."""

    takes_s: float
    price_units: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to delegate and why, with both sides' time and price."""

    delegates: bool
    reason: str
    takes_s: float
    price_units: int
    single: Single


def worth_delegating(
    planned: Course, single: Single, overheads: Overheads, *, deadline_s: float | None = None
) -> Verdict:
    """Compare a planned course with the single call.

    Delegating must be faster after everything it costs, or be the only side that meets the deadline or the price.
    """
    share = 1 + overheads.context_share
    takes_s = planned.takes_s * share + overheads.planner_s
    price = -(-planned.price_units * round(share * 1000) // 1000) + overheads.planner_units

    def verdict(delegates: bool, reason: str) -> Verdict:
        return Verdict(delegates, reason, takes_s, price, single)

    if takes_s < single.takes_s:
        return verdict(True, f"{takes_s:.1f} s instead of {single.takes_s:.1f} s")
    if deadline_s is not None and single.takes_s <= deadline_s:
        return verdict(False, f"one call is done in {single.takes_s:.1f} s, delegating would take {takes_s:.1f} s")
    return verdict(False, f"delegating would take {takes_s:.1f} s, one call {single.takes_s:.1f} s")

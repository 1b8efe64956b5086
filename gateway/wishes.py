"""What a client says about one call besides its request: how soon, worth how much, how urgent. Pure.

`x-farebox-deadline-ms`, `x-farebox-value`, `x-farebox-priority`, `x-farebox-avoid`; `x-farebox-max-price` is a cap and
is read elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from buyer.budgets import parse_units
from contracts.errors import UsageError
from gateway.bidder.task import NORMAL, PRIORITIES
from gateway.envelope import Problem, Refused
from gateway.limits import DEADLINE_MS_MAX

__all__ = ["BYTES_PER_TOKEN", "NO_WISHES", "Wishes", "parse_wishes", "work_of", "work_of_tokens"]

# What a call weighs: tokens that are written cost ten times those that are read, and 500 written ones are one unit.
BYTES_PER_TOKEN = 4
_READ_SHARE = 0.1
_TOKENS_PER_WORK = 500
_TOKENS_UNSTATED = 400
_TOKENS_MAX = 200_000
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Wishes:
    """A client's wishes; None where it has none. `value_units` is what an answer in time is worth to it.

    `avoid` are purchases that it would rather not be answered from, as it was just disappointed there.
    """

    deadline_s: float | None = None
    value_units: int | None = None
    priority: int = NORMAL
    avoid: frozenset[str] = frozenset()


NO_WISHES = Wishes()


def parse_wishes(ours: Mapping[str, str]) -> Wishes:
    """Return the wishes in our headers, by what follows `x-farebox-`. Raises `Refused` (400) naming the header."""
    deadline, value, priority, avoid = (ours.get(name) for name in ("deadline-ms", "value", "priority", "avoid"))
    if deadline is None and value is None and priority is None and avoid is None:
        return NO_WISHES
    return Wishes(
        None if deadline is None else _deadline_s(deadline),
        None if value is None else _value_units(value),
        NORMAL if priority is None else _priority(priority),
        frozenset() if avoid is None else frozenset(name.strip() for name in avoid.split(",")),
    )


def work_of(fields: Mapping[str, msgspec.Raw], body_bytes: int) -> float:
    """Return how much work a request asks for, 1.0 for an ordinary one. An estimate for choosing, never for paying."""
    written = float(_TOKENS_UNSTATED)
    for name in _LENGTHS:
        if name in fields:
            try:
                written = float(msgspec.json.decode(fields[name], type=int))
            except (msgspec.DecodeError, OverflowError):
                continue
            break
    written = min(max(written, 1.0), _TOKENS_MAX)
    return work_of_tokens(written, min(body_bytes / BYTES_PER_TOKEN, _TOKENS_MAX))


def work_of_tokens(written: float, read: float) -> float:
    """Return the work of reading and writing so many tokens."""
    return (written + read * _READ_SHARE) / _TOKENS_PER_WORK


def _deadline_s(text: str) -> float:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= DEADLINE_MS_MAX and len(text) <= 12):
        raise _bad(f"x-farebox-deadline-ms: expected 1 to {DEADLINE_MS_MAX} milliseconds")
    return int(text) / 1000


def _value_units(text: str) -> int:
    try:
        units = parse_units(text, "x-farebox-value")
    except UsageError as error:
        raise _bad(error.message) from None
    assert units is not None
    return units


def _priority(text: str) -> int:
    if text not in PRIORITIES:
        raise _bad(f"x-farebox-priority: expected one of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(text)


def _bad(message: str) -> Refused:
    return Refused(Problem(400, "invalid_request", message))

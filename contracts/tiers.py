"""Service classes: what offers of one seller call themselves, and how its queue is told. Pure.

An offer of a class says so in `extra.tier`; where its price moves with the seller's load, `extra.loadBp` is the factor
that is in it, in basis points. Both are a seller's own words: they choose among offers and change no amount.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.errors import MalformedMessage
from contracts.wire import decode_json

__all__ = [
    "BACKGROUND",
    "BUSY_HEADER",
    "FULL_BP",
    "NORMAL",
    "QUEUE_HEADER",
    "QUEUE_STATUS_PATH",
    "TIERS",
    "QueueFacts",
    "QueueStatus",
    "TierStatus",
    "load_of",
    "queue_in_headers",
    "read_queue_status",
    "tier_of",
]

TIERS = ("urgent", "normal", "background")
"""Service classes, those served first in front. A seller need not have all of them."""
NORMAL, BACKGROUND = TIERS[1], TIERS[2]

FULL_BP = 10_000
"""One, in basis points."""

QUEUE_HEADER, BUSY_HEADER = "x-farebox-queue", "x-farebox-busy"
"""Of every answer of a seller with a queue: `3` calls wait, `2/4` of its slots are busy."""

QUEUE_STATUS_PATH = "/status"
"""Where such a seller tells the same unasked for money: `QueueStatus` as JSON."""

_COUNT_MAX = 1_000_000
_LOAD_BP_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """A seller's queue at a moment: calls that wait, and how many of its slots are busy."""

    waiting: int
    busy: int
    slots: int

    @property
    def queue_per_slot(self) -> float:
        """How many calls wait for each slot."""
        return self.waiting / self.slots

    @property
    def busy_share(self) -> float:
        """The share of slots that are busy, 0 to 1."""
        return min(self.busy / self.slots, 1.0)


class TierStatus(msgspec.Struct, frozen=True):
    """One class of a seller: calls of it that work and wait, and how many may wait."""

    tier: str
    busy: int
    waiting: int
    queue: int


class QueueStatus(msgspec.Struct, frozen=True, rename="camel"):
    """What `QUEUE_STATUS_PATH` answers. `load_bp` is the factor in today's prices, `honoured_bp` the least one that is
    still taken.
    """

    slots: int
    busy: int
    waiting: int
    load_bp: int
    honoured_bp: int
    tiers: list[TierStatus]

    @property
    def facts(self) -> QueueFacts:
        """The queue as a whole."""
        return QueueFacts(self.waiting, self.busy, self.slots)


def tier_of(extra: Mapping[str, Any] | None) -> str | None:
    """Return the service class that an offer's `extra` states, or None where it states none that is one."""
    stated = (extra or {}).get("tier")
    return stated if isinstance(stated, str) and stated in TIERS else None


def load_of(extra: Mapping[str, Any] | None) -> int | None:
    """Return the load factor, in basis points, that an offer's `extra` states; None where it states none."""
    stated = (extra or {}).get("loadBp")
    is_factor = isinstance(stated, int) and not isinstance(stated, bool) and 0 < stated <= _LOAD_BP_MAX
    return stated if is_factor else None


def queue_in_headers(headers: Mapping[str, str]) -> QueueFacts | None:
    """Return the queue that an answer's headers tell of, or None; `headers.get` ignores case."""
    waiting, busy = headers.get(QUEUE_HEADER), headers.get(BUSY_HEADER)
    if waiting is None or busy is None:
        return None
    counts = [_count(text) for text in (waiting, *busy.split("/", 1))]
    known = [count for count in counts if count is not None]
    if len(counts) != 3 or len(known) != 3 or known[2] == 0:
        return None
    return QueueFacts(*known)


def read_queue_status(body: bytes) -> QueueStatus:
    """Return what a seller says of its queue. Raises `MalformedMessage`."""
    status = decode_json(body, QueueStatus, "status")
    counts = (status.slots, status.busy, status.waiting)
    if not all(0 <= count <= _COUNT_MAX for count in counts) or status.slots == 0:
        raise MalformedMessage("status: expected counts, and one slot or more")
    return status


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None

"""What a run tells about itself while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Happening", "NodeEvent"]

Happening = Literal["planned", "started", "done", "failed", "skipped", "unknown", "budget", "finished"]


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something that happened in a run. `at_s` is seconds since its start.

    `spent_units` is what the run has paid so far, `open_units` what calls without an end may cost on top.
    """

    happening: Happening
    at_s: float
    node_id: str | None = None
    offer: str | None = None
    paid_units: int | None = None
    spent_units: int | None = None
    text: str | None = None
    reason: str | None = None
    missing: Sequence[str] = ()
    open_units: int = 0

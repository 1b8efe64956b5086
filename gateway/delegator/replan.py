"""What is handed over when a plan has failed and the rest of the task is planned anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.delegator.progress import Planned

__all__ = ["Replan", "Replanned", "Rest"]


@dataclass(frozen=True, slots=True)
class Rest:
    """What a planner is told when a plan has failed: what is answered, what failed, and what is left to spend."""

    planned: Planned
    results: Mapping[str, str]
    failed: Sequence[str]
    free_units: int


@dataclass(frozen=True, slots=True)
class Replanned:
    """A plan for the rest. Nodes that keep the id of an answered one are answered; `schedule` is for the journal.

    `paid_units` is what planning cost, within `Rest.free_units`. Whoever paid it has written it into the journal, as an
    attempt, before: a run that is resumed counts it from there.
    """

    planned: Planned
    schedule: str
    paid_units: int = 0


Replan = Callable[[Rest], Awaitable[Replanned | None]]
"""Makes a plan for the rest of a task, or says that there is none. It is called when nothing runs."""

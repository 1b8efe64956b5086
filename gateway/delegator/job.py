"""All it takes to carry out a run, whichever engine does it, and in whichever process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.delegator.calls import CallNode
from gateway.delegator.events import NodeEvent
from gateway.delegator.journal import Journal, Run
from gateway.delegator.limits import ATTEMPTS_MAX, PARALLEL_MAX
from gateway.delegator.progress import Planned
from gateway.delegator.replan import Replan

__all__ = ["Engine", "Job", "Limits", "TakeUp"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take: money, time, and calls at once. `hedges`: ask a second seller where the first is late."""

    budget_units: int
    deadline_s: float | None = None
    parallel: int = PARALLEL_MAX
    attempts: int = ATTEMPTS_MAX
    hedges: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, who pays, within which limits, and who plans the rest anew."""

    planned: Planned
    call_node: CallNode
    limits: Limits
    replan: Replan | None = None


TakeUp = Callable[[Run], Awaitable[Job]]
"""Makes a run's job again, from what the journal has of it, in a process that did not begin it."""


class Engine(Protocol):
    """Carries out a run that this process has: `run_plan`, or `DbosEngine.run`."""

    def __call__(
        self,
        planned: Planned,
        call_node: CallNode,
        journal: Journal,
        run: Run,
        limits: Limits,
        *,
        replan: Replan | None = None,
    ) -> AsyncIterator[NodeEvent]: ...

"""Time limits of many calls on one timer. Each works as `asyncio.timeout` does, for a fifth of what one costs."""

from __future__ import annotations

import asyncio
from math import inf
from types import TracebackType

__all__ = ["Deadline", "Deadlines"]


class Deadline:
    """One limit, for the task that enters it. Leaving it too late, by its cancellation, is `TimeoutError`."""

    __slots__ = ("_cancelling", "_every", "_is_over", "_limit_s", "_task", "end_s")

    def __init__(self, every: Deadlines, limit_s: float) -> None:
        self._every = every
        self._limit_s = limit_s
        self._is_over = False
        # By the event loop's clock.
        self.end_s = inf

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a deadline is a task's"
        self._task, self._cancelling = task, task.cancelling()
        self.end_s = self._every.begin(self, self._limit_s)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._every.end(self)
        # Somebody else may have cancelled the task, too, and then that is why it ends.
        is_ours = self._is_over and self._task.uncancel() <= self._cancelling
        if is_ours and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the task, once."""
        if not self._is_over:
            self._is_over = True
            self._task.cancel()


class Deadlines:
    """The limits that run in one event loop."""

    def __init__(self) -> None:
        self._running: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf

    def within(self, limit_s: float) -> Deadline:
        """Return a limit of so many seconds from when its `with` block begins."""
        return Deadline(self, limit_s)

    def begin(self, deadline: Deadline, limit_s: float) -> float:
        """Watch a deadline, and return when it ends."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + limit_s
        self._running.add(deadline)
        if end_s < self._timer_s:
            self._wake_at(loop, end_s)
        return end_s

    def end(self, deadline: Deadline) -> None:
        """Watch a deadline no more. The timer stays: most calls are over long before it, and the next one needs it."""
        self._running.discard(deadline)

    def _wake_at(self, loop: asyncio.AbstractEventLoop, end_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = loop.call_at(end_s, self._look), end_s

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, self._timer_s = None, inf
        now_s = loop.time()
        for deadline in self._running:
            if deadline.end_s <= now_s:
                deadline.expire()
        next_s = min((each.end_s for each in self._running if each.end_s > now_s), default=inf)
        if next_s < inf:
            self._wake_at(loop, next_s)

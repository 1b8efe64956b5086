"""Writes that wait for the next group commit, and how those who wait for them are told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

from contracts.storage.connection import Connection, Work

__all__ = ["Answer", "Pending", "Shared", "report"]

T = TypeVar("T")
Answer = Future[T] | asyncio.Future[T]


class Shared(msgspec.Struct, frozen=True):
    """How a write is done together with those like it: `run(connection, items)` does all that wait, in few statements.

    It returns what each caller is told, in order; an exception among that is raised at its caller. Where it raises
    itself, nothing of it is written, and every write is done alone.
    """

    run: Callable[[Connection, Sequence[Any]], Sequence[Any]]
    item: Any


class Pending(msgspec.Struct, eq=False):
    """One write, and where its caller waits: on a thread, or in an event loop."""

    work: Work[Any]
    durable: bool
    answer: Answer[Any]
    shared: Shared | None = None
    has_ended: bool = False
    result: Any = None
    failure: BaseException | None = None

    def end(self, result: Any, failure: BaseException | None = None) -> None:
        """Note how it went; the caller is told after the commit."""
        self.result, self.failure, self.has_ended = result, failure, True

    def tell(self) -> None:
        """Give the caller its answer, if it still waits. In its own event loop, where it waits in one."""
        if self.answer.done():
            return
        if self.failure is not None:
            self.answer.set_exception(self.failure)
        else:
            self.answer.set_result(self.result)


def report(group: list[Pending]) -> None:
    """Tell everybody who waits, and wake each event loop once for the whole group."""
    waiting: dict[asyncio.AbstractEventLoop, list[Pending]] = {}
    for pending in group:
        if isinstance(pending.answer, asyncio.Future):
            waiting.setdefault(pending.answer.get_loop(), []).append(pending)
        else:
            pending.tell()
    for loop, told in waiting.items():
        # In a loop that has closed nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, told)


def _tell(told: list[Pending]) -> None:
    for pending in told:
        pending.tell()

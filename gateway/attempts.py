"""Attempts at logical requests, so that one request is paid once however often it is sent.

In process only: answers being written, and answers kept for a client that lost them. What must survive a restart is in
the pool. A request with an id of its own has one life: running, then answered. A request known
only by its content is recognised as a repetition while its answer has not reached a client; after that, asking the same
thing again is a new purchase.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec
from cachetools import TTLCache

from buyer.pool import Claim
from gateway.envelope import Headers
from gateway.limits import KEPT_ANSWER_BYTES_MAX, KEPT_BYTES_MAX, KEPT_S

__all__ = ["Attempt", "Attempts", "Broken", "Record"]


class Broken(Exception):
    """The answer being followed will not be completed."""


class Record:
    """An answer while it is written, for others to follow and for a client to fetch again."""

    __slots__ = ("_waiting", "chunks", "claim", "complete", "failed", "has_arrived", "headers", "size", "status")

    def __init__(self) -> None:
        # What paid for it; whoever gets the whole answer at last has the pool told so.
        self.claim: Claim | None = None
        self.status = 0
        self.headers: Headers = []
        self.chunks: list[bytes] = []
        self.size = 0
        self.complete = False
        self.failed = False
        # Whether a repetition has got all of it.
        self.has_arrived = False
        self._waiting: list[asyncio.Future[None]] = []

    def start(self, status: int, headers: Headers) -> None:
        """Note the status line."""
        self.status, self.headers = status, headers
        self._wake()

    def add(self, chunk: bytes) -> None:
        """Note one chunk of the body. An answer past the cap is forgotten, and cannot be followed any more."""
        self.size += len(chunk)
        if self.failed:
            return
        if self.size > KEPT_ANSWER_BYTES_MAX:
            self.fail()
            return
        self.chunks.append(chunk)
        if self._waiting:
            self._wake()

    def finish(self) -> None:
        """Note that the body is complete."""
        self.complete = not self.failed
        self._wake()

    def fail(self) -> None:
        """Note that the answer is of no use to others: broken off, or too large to keep."""
        self.failed = True
        self.chunks.clear()
        self._wake()

    async def started(self) -> None:
        """Wait for the status line. Raises `Broken` when none will come."""
        while not self.status and not self.failed and not self.complete:
            await self._change()
        if not self.status:
            raise Broken

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield all chunks from the first, as they are written. Raises `Broken`."""
        position = 0
        while True:
            if self.failed:
                raise Broken
            if position < len(self.chunks):
                position += 1
                yield self.chunks[position - 1]
            elif self.complete:
                return
            else:
                await self._change()

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Attempt(msgspec.Struct, eq=False):
    """One try at a request that is being answered now. `client_gone` tells whether anybody still listens."""

    key: str
    digest: str
    client_gone: Callable[[], bool]
    record: Record = msgspec.field(default_factory=Record)


class Attempts:
    """The table of attempts of one process. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._running: dict[str, list[Attempt]] = {}
        self._kept: TTLCache[str, tuple[str, Record]] = TTLCache(
            KEPT_BYTES_MAX, KEPT_S, timer=clock, getsizeof=lambda entry: entry[1].size + 1
        )

    def is_running(self, key: str) -> bool:
        """Tell whether there are attempts at `key` that are being answered now."""
        return key in self._running

    def abandoned(self, key: str) -> Attempt | None:
        """Return an attempt at `key` that goes on though its client has left."""
        return next((attempt for attempt in self._running.get(key, ()) if attempt.client_gone()), None)

    def kept(self, key: str) -> Record | None:
        """Return the complete answer kept for `key`."""
        # Of nearly all there is none, which is told in a fraction of the time that `get` takes.
        entry = self._kept.get(key) if key in self._kept else None
        return entry[1] if entry else None

    def digest_of(self, key: str) -> str | None:
        """Return the digest of the request at `key` that is being answered, or whose answer is kept."""
        for attempt in self._running.get(key, ()):
            return attempt.digest
        entry = self._kept.get(key)
        return entry[0] if entry else None

    def forget(self, key: str) -> None:
        """Drop the answer kept for `key`: it has reached a client."""
        self._kept.pop(key, None)

    def begin(self, key: str, digest: str, client_gone: Callable[[], bool]) -> Attempt:
        """Note that a request is being answered."""
        attempt = Attempt(key, digest, client_gone)
        self._running.setdefault(key, []).append(attempt)
        return attempt

    def end(self, attempt: Attempt, *, keep: bool) -> None:
        """Note that it is over, and `keep` its answer, if it is whole, for a repetition."""
        running = self._running[attempt.key]
        running.remove(attempt)
        if not running:
            del self._running[attempt.key]
        if not attempt.record.complete:
            attempt.record.fail()
        elif keep:
            self._kept[attempt.key] = (attempt.digest, attempt.record)

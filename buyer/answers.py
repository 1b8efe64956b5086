"""A seller's answer on its way to the user of an SDK client: bounded in bytes and time, and booked when it ends.

httpx hands the body out as it comes, so an endless or dripping one would hold its reader for ever, and a few kilobytes
of gzip may be gigabytes. What is too much is given up with `AnswerOverLimit`, and the connection is closed; it was paid
for, and a repetition of the request asks the seller for it with the same payment.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx

from buyer.limits import ANSWER_BYTES_MAX, ANSWER_PIECE_BYTES_MAX, ANSWER_TIMEOUT_S
from contracts.errors import AnswerOverLimit, MalformedMessage, UsageError
from contracts.wire import SettlementResponse

__all__ = ["DECODED", "AnswerLimits", "AsyncBody", "Body", "Ending", "Meter", "deadline_s", "until"]

Ending = Callable[[bool], None]

# What an answer may be encoded in: the Accept-Encoding of every request, whatever else httpx could decode at once.
DECODED = "gzip, deflate"

# Until when the exchange of this thread's present call may last (monotonic); its transport asks (`buyer.http`).
_DEADLINE_S: ContextVar[float] = ContextVar("deadline_s", default=float("inf"))


def deadline_s() -> float:
    """Return until when the present exchange may last, monotonic seconds."""
    return _DEADLINE_S.get()


@contextlib.contextmanager
def until(moment_s: float) -> Iterator[None]:
    """Bound what is read and written inside, by a transport of `buyer.http`, by a moment (monotonic seconds)."""
    before = _DEADLINE_S.set(moment_s)
    try:
        yield
    finally:
        _DEADLINE_S.reset(before)


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What one answer may come to: bytes of body after decoding, and seconds from its request to its last byte.

    Raises `UsageError`.
    """

    answer_bytes_max: int = ANSWER_BYTES_MAX
    answer_timeout_s: float = ANSWER_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.answer_bytes_max < 1:
            raise UsageError("answer_bytes_max: expected at least 1 byte", remedy="leave it out, or name more")
        if not self.answer_timeout_s > 0:
            raise UsageError("answer_timeout_s: expected more than 0 seconds", remedy="leave it out, or name more")

    def deadline_s(self) -> float:
        """Return when an exchange that begins now must be over, monotonic seconds."""
        return time.monotonic() + self.answer_timeout_s


class Meter:
    """Decodes and counts one answer, and says once how it ended.

    `deadline_s` is monotonic. `ended` is called with True when the whole answer was read or its reader wanted no more
    of it, with False when it was given up or broke off. Takes the headers of what it decodes out of `headers`.
    """

    def __init__(
        self,
        headers: httpx.Headers,
        limits: AnswerLimits,
        deadline_s: float,
        receipt: SettlementResponse | None,
        ended: Ending,
    ) -> None:
        self.deadline_s = deadline_s
        self._limits = limits
        self._receipt = receipt
        self._ended: Ending | None = ended
        self._wire_bytes = self._body_bytes = 0
        self._encoding = headers.get("content-encoding", "").strip().lower()
        self._decoder: Any = None
        if self._encoding in ("gzip", "x-gzip", "deflate"):
            # Decoded here, in pieces, because httpx decodes whatever a chunk may unfold to at once.
            self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
            for name in ("content-encoding", "content-length"):
                headers.pop(name, None)

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Return the body that a chunk of the wire holds. Raises `AnswerOverLimit` or `MalformedMessage`."""
        if self._decoder is None and self._encoding not in ("", "identity"):
            raise MalformedMessage(
                f"content-encoding: expected gzip, deflate or none, got {self._encoding[:40]!r}",
                remedy="leave accept-encoding to the client",
            )
        # The wire is counted too: bytes may come to nothing, or follow the end of what is encoded, for ever.
        self._wire_bytes += len(chunk)
        self._check(self._wire_bytes)
        while chunk:
            piece, chunk = self._decoded(chunk)
            self._body_bytes += len(piece)
            self._check(self._body_bytes)
            if piece:
                yield piece
        if time.monotonic() > self.deadline_s:
            raise self.too_slow()

    def too_slow(self) -> AnswerOverLimit:
        """Return the error for an answer that is not over in time."""
        return self._over(f"not over after answer_timeout_s = {self._limits.answer_timeout_s:g} s")

    def end(self, *, whole: bool) -> None:
        """Say how the answer ended; only the first word counts."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(whole)

    def _decoded(self, chunk: bytes) -> tuple[bytes, bytes]:
        if self._decoder is None:
            return chunk, b""
        if self._decoder.eof:
            return b"", b""
        try:
            piece = self._decoder.decompress(chunk, ANSWER_PIECE_BYTES_MAX)
        except zlib.error:
            raise MalformedMessage("body: is not what its Content-Encoding says") from None
        return piece, self._decoder.unconsumed_tail

    def _check(self, count_bytes: int) -> None:
        if count_bytes > self._limits.answer_bytes_max:
            raise self._over(f"longer than answer_bytes_max = {self._limits.answer_bytes_max} bytes")

    def _over(self, problem: str) -> AnswerOverLimit:
        return AnswerOverLimit(f"the answer is {problem}", receipt=self._receipt)


class Body(httpx.SyncByteStream):
    """The metered body of a synchronous answer."""

    def __init__(self, inner: httpx.SyncByteStream, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._inner)
        try:
            while (chunk := self._next(chunks)) is not None:
                yield from self._meter.pieces(chunk)
        except GeneratorExit:
            raise
        except BaseException:
            self._meter.end(whole=False)
            self._inner.close()
            raise

    def close(self) -> None:
        """Close the connection, if it is not over; who closes early wants no more."""
        self._inner.close()
        self._meter.end(whole=True)

    def _next(self, chunks: Iterator[bytes]) -> bytes | None:
        try:
            with until(self._meter.deadline_s):
                return next(chunks, None)
        except httpx.ReadTimeout:
            if time.monotonic() < self._meter.deadline_s:
                raise
            raise self._meter.too_slow() from None


class AsyncBody(httpx.AsyncByteStream):
    """The metered body of an asynchronous answer."""

    def __init__(self, inner: httpx.AsyncByteStream, meter: Meter) -> None:
        self._inner = inner
        self._meter = meter

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._inner)
        try:
            while (chunk := await self._next(chunks)) is not None:
                for piece in self._meter.pieces(chunk):
                    yield piece
        except GeneratorExit:
            raise
        except BaseException:
            self._meter.end(whole=False)
            await self._inner.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connection, if it is not over; who closes early wants no more."""
        await self._inner.aclose()
        self._meter.end(whole=True)

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        left = asyncio.timeout(self._meter.deadline_s - time.monotonic())
        try:
            async with left:
                return await anext(chunks, None)
        except TimeoutError:
            if not left.expired():
                raise
            raise self._meter.too_slow() from None

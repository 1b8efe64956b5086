"""One answer as it arrives: fed with a connection's bytes, read by whoever asked. No socket.

The parser is llhttp in its strict mode. What it does not bound is bounded here: the head, a line that does not end, and
what waits to be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import httptools

from buyer.flow import Lost
from gateway.limits import ANSWER_BYTES_MAX, HEAD_BYTES_MAX, UNREAD_BYTES_MAX

__all__ = ["Exchange", "ResponseHeaders"]

_SWITCHING_PROTOCOLS = 101
# What a status code can be (RFC 9110, section 15); the parser takes any three digits.
_STATUSES = range(100, 600)
# What an interim answer without headers counts as, so that an endless row of them ends.
_STATUS_LINE_BYTES = 64
_NAMES_CACHED = 256


class ResponseHeaders(Mapping[str, str]):
    """The headers of one answer. Looking up ignores case and gives the first of several; `raw` has all, lower case."""

    __slots__ = ("_first", "raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw
        self._first: dict[bytes, bytes] = dict(reversed(raw))

    def __getitem__(self, name: str) -> str:
        return self._first[_as_sent(name)].decode("latin-1")

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping; looked up a dozen times for each answer, mostly in vain."""
        value = self._first.get(_as_sent(name))
        return default if value is None else value.decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("latin-1") for name in self._first)

    def __len__(self) -> int:
        return len(self._first)


@lru_cache(_NAMES_CACHED)
def _as_sent(name: str) -> bytes:
    return name.lower().encode("latin-1", "replace")


class Exchange:
    """What has come of one request. `drained` is called when more than `UNREAD_BYTES_MAX` waited, and now is read."""

    __slots__ = (
        "_arrived",
        "_body_bytes",
        "_drained",
        "_head_bytes",
        "_is_interim",
        "_parser",
        "_pieces",
        "_quiet_bytes",
        "_raw",
        "_take",
        "_waiting",
        "failure",
        "headers",
        "is_complete",
        "keeps_alive",
        "status",
        "waiting_bytes",
    )

    def __init__(self, drained: Callable[[], None]) -> None:
        self.status = 0
        self.headers = ResponseHeaders([])
        self.is_complete: bool = False
        self.failure: str | None = None
        # Whether the connection may carry another exchange, once this one is complete.
        self.keeps_alive = False
        self.waiting_bytes = 0
        self._drained = drained
        self._raw: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._take: Callable[[bytes], bool] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._is_interim = False
        self._head_bytes = self._quiet_bytes = self._arrived = self._body_bytes = 0
        # None once this is over: it holds methods of ours, and a circle would live until the garbage collector comes.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come."""
        return self.is_complete or self.failure is not None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        if self._parser is None:
            self.keeps_alive = False
            return
        arrived = self._arrived
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.keeps_alive = False
            self.fail("it is no HTTP/1.1 answer within the limits")
        except httptools.HttpParserUpgrade:
            self.keeps_alive = False
            self.fail("it switched protocols")
        if self._arrived == arrived and not self.is_over:
            # In the middle of a line, of a head, a chunk's size or a trailer, which the parser keeps.
            self._quiet_bytes += len(data)
            if self._quiet_bytes > HEAD_BYTES_MAX:
                self.fail("its head is too large")
        else:
            self._quiet_bytes = 0
        if self.is_over:
            self._parser = None
            self._wake()
        elif not self._is_taken():
            self._wake()

    def end_of_stream(self) -> None:
        """Note that the seller has closed the connection: the end of an answer that states no length."""
        if not self.is_over and self.status and not self._states_length():
            self.is_complete = True
        self.fail("the connection was closed before the answer was complete")

    def fail(self, reason: str) -> None:
        """Note that the answer will not be completed; no word of it may say an address, for clients read it."""
        if not self.is_over:
            self.failure = reason
        self._parser = None
        self._wake()

    async def head(self) -> None:
        """Wait for status and headers. Raises `Lost`."""
        while not self.status:
            if self.failure is not None:
                raise Lost(self.failure)
            await self._change()

    async def read(self, take: Callable[[bytes], bool] | None = None) -> bytes:
        """Return what has come of the body since the last read, at least a byte; nothing at its end. Raises `Lost` when
        it breaks off or passes the cap.

        With `take`, what comes while this waits is given to it as it arrives, and is returned only where it says False.
        """
        while not self._pieces:
            if self.is_complete:
                return b""
            if self.failure is not None:
                raise Lost(self.failure)
            self._take = take
            try:
                await self._change()
            finally:
                self._take = None
        is_much = self.waiting_bytes > UNREAD_BYTES_MAX
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.waiting_bytes = 0
        if is_much and not self.is_over:
            self._drained()
        return piece

    def _states_length(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers

    async def _change(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        await self._waiting

    def _is_taken(self) -> bool:
        """Tell whether the reader, who waits, took what has come without being woken."""
        if self._take is None or self._waiting is None or not self._pieces:
            return False
        if not self._take(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)):
            return False
        self._pieces.clear()
        self.waiting_bytes = 0
        return True

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def on_message_begin(self) -> None:
        """Part of the parser's interface, as are all below."""
        if self.is_complete:
            # More than was asked for. Whoever asks next on this connection would get it as an answer.
            self.keeps_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError
        if not self.status:
            self._raw.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.is_complete or self._parser is None:
            return
        self._arrived += 1
        status = self._parser.get_status_code()
        if status not in _STATUSES:
            raise ValueError
        self._is_interim = status < 200
        if not self._is_interim:
            self.headers = ResponseHeaders(self._raw)
            self.status = status
            return
        self._raw.clear()
        self._head_bytes += _STATUS_LINE_BYTES
        if status == _SWITCHING_PROTOCOLS or self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError

    def on_body(self, piece: bytes) -> None:
        if self.is_complete:
            return
        self._arrived += 1
        self._body_bytes += len(piece)
        if self._body_bytes > ANSWER_BYTES_MAX:
            self.fail(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
            raise ValueError
        self._pieces.append(piece)
        self.waiting_bytes += len(piece)

    def on_message_complete(self) -> None:
        if self._is_interim or self.is_complete or self._parser is None:
            return
        self.is_complete = True
        self.keeps_alive = self._parser.should_keep_alive()

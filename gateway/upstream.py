"""What leaves the gateway: no redirects, a limit on every wait and every byte, chunks passed on as they come.

What went wrong is told in the payment flow's two words: `NeverLeft`, when no connection was made and so no byte of a
payment left, and `Lost`, for everything later.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, Self
from urllib.parse import quote_from_bytes, urlsplit

from buyer.flow import Lost, NeverLeft, Outgoing
from gateway.connections import Connection, Connections, Origin
from gateway.envelope import Headers
from gateway.exchange import Exchange, ResponseHeaders
from gateway.limits import ERROR_BODY_BYTES_MAX

__all__ = ["Answer", "Upstream", "passed_on"]

# What a seller may say to the client. No cookies, no server software, no redirects, nothing about payment or caching:
# what is true of these, the relay says itself.
_TO_CLIENT = frozenset(
    (
        b"content-type",
        b"content-encoding",
        b"retry-after",
        b"x-request-id",
        b"request-id",
        b"openai-processing-ms",
    )
)
_TO_CLIENT_PREFIX = b"x-ratelimit-"
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_URL = re.compile(r"(https?://[^/#]+)([^#]*)", re.ASCII)
# What may stand in a request line as it is. Anything else a client sent in its query is escaped.
_VISIBLE = re.compile(r"[!-~]*", re.ASCII)
_SAFE = "".join(map(chr, range(ord("!"), ord("~") + 1)))
_PORTS = {False: 80, True: 443}
# Sent unless the request has its own.
_DEFAULTS = (("accept", "*/*"), ("user-agent", "farebox"))
_PLACES_CACHED = 256


class Upstream:
    """Sends requests to sellers and to the fallback. Use as an async context manager inside the running loop."""

    def __init__(self) -> None:
        self._connections = Connections()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        self._connections.close()
        # Transports close their sockets in the next turn of the loop, which may be about to end.
        await asyncio.sleep(0)

    async def open(self, request: Outgoing) -> Answer:
        """Send `request` and return once the status line and headers are there. Raises `NeverLeft` or `Lost`.

        The caller must `close` the answer.
        """
        origin, head = _head(request)
        connection = await self._connections.take(origin)
        exchange = connection.ask(head, request.body)
        try:
            await exchange.head()
        except BaseException:
            _drop(connection, exchange)
            raise
        return Answer(connection, exchange)


class Answer:
    """An answer whose body is still on its way. `is_event_stream`: server-sent events may be added at its end."""

    __slots__ = ("_connection", "_exchange", "headers", "is_event_stream", "status")

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange
        self.status = exchange.status
        self.headers: Mapping[str, str] = exchange.headers
        self.is_event_stream = _is_event_stream(self.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises `Lost` as `read` does."""
        while chunk := await self.read():
            yield chunk

    def read(self, take: Callable[[bytes], bool] | None = None) -> Coroutine[Any, Any, bytes]:
        """Return what has arrived since the last read, nothing at the end; `take` is offered it first, and `Lost`
        raised, as `Exchange.read` does.
        """
        return self._exchange.read(take)

    async def read_error(self) -> bytes:
        """Return the body of an error answer; empty when it breaks off or is larger than an error can be."""
        body = bytearray()
        try:
            while chunk := await self._exchange.read():
                body += chunk
                if len(body) > ERROR_BODY_BYTES_MAX:
                    return b""
        except Lost:
            return b""
        return bytes(body)

    def close(self) -> None:
        """Drop the connection, unless the answer is whole."""
        _drop(self._connection, self._exchange)


def _is_event_stream(headers: Mapping[str, str]) -> bool:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "text/event-stream" and headers.get("content-encoding", "identity") == "identity"


def passed_on(headers: Mapping[str, str]) -> Headers:
    """Return the headers of an `Answer` that a client may see, names in lower case."""
    assert isinstance(headers, ResponseHeaders), "a payment flow hands back what it was given"
    return [
        (name, value)
        for name, value in headers.raw
        if (name in _TO_CLIENT or name.startswith(_TO_CLIENT_PREFIX)) and not _CONTROL.search(value)
    ]


def _drop(connection: Connection, exchange: Exchange) -> None:
    """Drop the connection of an exchange that is under way; after it, another one may use it already."""
    if not exchange.is_over:
        connection.drop()


def _head(request: Outgoing) -> tuple[Origin, bytes]:
    """Return where a request goes, and its first bytes. Raises `NeverLeft` for what is no request."""
    place, mark, query = request.url.partition("?")
    origin, path, host = _place(place)
    values = "".join([value for _, value in request.headers])
    # Not a regular expression: a payment is long, and it would cost as much as the rest of the head.
    if "\r" in values or "\n" in values or "\0" in values:
        raise NeverLeft("a header cannot be sent")
    lines = [f"{request.method} {path}{mark}{_visible(query)} HTTP/1.1\r\nhost: {host}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    given = {name.lower() for name, _ in request.headers}
    lines += [f"{name}: {value}" for name, value in _DEFAULTS if name not in given]
    lines.append(f"accept-encoding: identity\r\ncontent-length: {len(request.body)}\r\n\r\n")
    return origin, "\r\n".join(lines).encode("latin-1", "replace")


@lru_cache(_PLACES_CACHED)
def _place(url: str) -> tuple[Origin, str, str]:
    """Return origin, path and Host header of a URL without a query, of which there are few. Raises `NeverLeft`."""
    split = _URL.fullmatch(url)
    if split is None:
        raise NeverLeft("its URL is not valid")
    origin, host = _origin(split[1])
    return origin, _visible(split[2]) or "/", host


def _visible(text: str) -> str:
    """Return a part of a request line as it may stand there. Raises `NeverLeft` for one with a fragment."""
    if "#" in text:
        raise NeverLeft("its URL is not valid")
    return text if _VISIBLE.fullmatch(text) else quote_from_bytes(text.encode("utf-8", "replace"), safe=_SAFE)


def _origin(base: str) -> tuple[Origin, str]:
    """Return the origin of `scheme://host:port`, and its Host header. Raises `NeverLeft`."""
    try:
        parts = urlsplit(base)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        is_tls, port = parts.scheme == "https", parts.port
    except ValueError:
        raise NeverLeft("its URL is not valid") from None
    if not host or parts.username is not None or not _VISIBLE.fullmatch(host):
        raise NeverLeft("its URL is not valid")
    port = port or _PORTS[is_tls]
    shown = f"[{host}]" if ":" in host else host
    return Origin(is_tls, host, port), shown if port == _PORTS[is_tls] else f"{shown}:{port}"

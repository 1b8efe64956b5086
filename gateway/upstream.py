"""The one module around aiohttp: no redirects, a limit on every wait and every byte, chunks passed on as they come.

What went wrong is told in the payment flow's two words: `NeverLeft`, when no connection was made and so no byte of a
payment left, and `Lost`, for everything later.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Self

import aiohttp
from yarl import URL

from buyer.flow import Lost, NeverLeft, Outgoing
from gateway.envelope import Headers
from gateway.limits import (
    ANSWER_BYTES_MAX,
    CONNECT_TIMEOUT_S,
    ERROR_BODY_BYTES_MAX,
    KEEPALIVE_S,
    SILENCE_TIMEOUT_S,
)

__all__ = ["Answer", "Upstream", "passed_on"]

# What a seller may say to the client. No cookies, no server software, no redirects, nothing about payment or caching:
# what is true of these, the relay says itself.
_TO_CLIENT = frozenset(
    (
        "content-type",
        "content-encoding",
        "retry-after",
        "x-request-id",
        "request-id",
        "openai-processing-ms",
    )
)
_TO_CLIENT_PREFIX = "x-ratelimit-"
# A settlement receipt in a header is about 1 kB; this leaves room for extensions.
_HEADER_BYTES_MAX = 32 * 1024
# aiohttp warns above this, because it would copy the whole body at once.
_PIECE_BYTES = 256 * 1024


class Upstream:
    """Sends requests to sellers and to the fallback. Use as an async context manager inside the running loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=CONNECT_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S
            ),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_HEADER_BYTES_MAX,
            max_field_size=_HEADER_BYTES_MAX,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def open(self, request: Outgoing) -> Answer:
        """Send `request` and return once the status line and headers are there. Raises `NeverLeft` or `Lost`.

        The caller must `close` the answer.
        """
        assert self._session is not None, "used before it was entered"
        headers = [*request.headers, ("accept-encoding", "identity"), ("content-length", str(len(request.body)))]
        try:
            response = await self._session.request(
                request.method,
                URL(request.url, encoded=True),
                data=request.body if len(request.body) <= _PIECE_BYTES else _pieces(request.body),
                headers=headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise NeverLeft(_reason(error)) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Lost(_reason(error)) from None
        return Answer(response)


class Answer:
    """An answer whose body is still on its way."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    @property
    def is_event_stream(self) -> bool:
        """Whether server-sent events may be added at its end."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind == "text/event-stream" and self.headers.get("content-encoding", "identity") == "identity"

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises `Lost` when it breaks off or passes the cap."""
        size = 0
        try:
            async for chunk in self._response.content.iter_any():
                size += len(chunk)
                if size > ANSWER_BYTES_MAX:
                    raise Lost(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Lost(_reason(error)) from None

    async def read_error(self) -> bytes:
        """Return the body of an error answer; empty when it breaks off or is larger than an error can be."""
        body = bytearray()
        try:
            async for chunk in self._response.content.iter_any():
                body += chunk
                if len(body) > ERROR_BODY_BYTES_MAX:
                    return b""
        except (aiohttp.ClientError, OSError, TimeoutError):
            return b""
        return bytes(body)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else drop it."""
        self._response.close()


def passed_on(headers: Mapping[str, str]) -> Headers:
    """Return the upstream headers a client may see, names in lower case."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in headers.items()
        if name.lower() in _TO_CLIENT or name.lower().startswith(_TO_CLIENT_PREFIX)
    ]


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def _reason(error: Exception) -> str:
    """Return what happened, without addresses: it is shown to clients."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name is not known"
    if isinstance(error, aiohttp.ClientSSLError):
        return "no trusted TLS connection"
    if isinstance(error, aiohttp.ClientConnectorError):
        return (error.os_error.strerror or "no connection").lower()
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer came"
    return type(error).__name__

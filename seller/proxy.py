"""The reverse proxy behind the middleware: any HTTP server, spoken to from one pool of connections.

Bytes are passed on as they come. Redirects are not followed, and nothing that belongs to the payment, to the client's
session or to one connection crosses in either direction.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import yarl

from contracts.errors import UpstreamFailed
from seller.answers import failure_answer
from seller.limits import (
    UPSTREAM_CHUNK_BYTES,
    UPSTREAM_CONNECT_TIMEOUT_S,
    UPSTREAM_CONNECTIONS_MAX,
    UPSTREAM_IDLE_TIMEOUT_S,
)

__all__ = ["ReverseProxy"]

_log = logging.getLogger("farebox.seller.proxy")

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_NOT_FORWARDED = _HOP_BY_HOP | {"host", "content-length", "expect", "cookie", "authorization", "payment-signature"}
_NOT_RETURNED = _HOP_BY_HOP | {"set-cookie", "server", "date"}
_PAYMENT_PREFIXES = ("payment-", "x-payment", "x-farebox-", "settlement-overrides")
# Some servers take method or path from these: then another thing would be served than was paid for.
_OVERRIDES = ("x-http-method", "x-method-override", "x-original-", "x-rewrite-", "x-forwarded-", "forwarded")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class ReverseProxy:
    """An ASGI application that is the server at `upstream`. Opens its connections with the lifespan, or when used."""

    def __init__(self, upstream: str) -> None:
        self._base = upstream.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._forward(scope, receive, send)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, scope: Any, receive: Receive, send: Send) -> None:
        leaving: asyncio.Task[None] | None = None
        started = False
        try:
            first = await receive()
            if first["type"] == "http.disconnect":
                return
            more = first.get("more_body", False)
            body = _stream(first, receive) if more else first.get("body", b"") or None
            async with self._open().request(
                scope["method"],
                yarl.URL(self._url(scope), encoded=True),
                headers=_request_headers(scope["headers"]),
                data=body,
                allow_redirects=False,
            ) as response:
                started = True
                await send(
                    {"type": "http.response.start", "status": response.status, "headers": _response_headers(response)}
                )
                leaving = asyncio.ensure_future(_close_when_gone(receive, response))
                async for chunk in response.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.warning("upstream: %s: %s", type(error).__name__, error)
            failure = UpstreamFailed("the model server failed to answer")
            if started:
                # Only a broken connection tells the client that the answer is not whole.
                raise failure from None
            await failure_answer(failure, scope["path"]).send(send)
        finally:
            if leaving is not None:
                leaving.cancel()
                await asyncio.wait([leaving])

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=UPSTREAM_CONNECTIONS_MAX),
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=UPSTREAM_CONNECT_TIMEOUT_S, sock_read=UPSTREAM_IDLE_TIMEOUT_S
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=UPSTREAM_CHUNK_BYTES,
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    def _url(self, scope: Any) -> str:
        # Only paths whose spelling equals the listed one get here, so the decoded path is the raw one.
        query = scope.get("query_string", b"").decode("latin-1")
        return f"{self._base}{scope['path']}" + (f"?{query}" if query else "")


async def _stream(first: Any, receive: Receive) -> AsyncIterator[bytes]:
    message = first
    while True:
        if message["type"] == "http.disconnect":
            raise aiohttp.ClientPayloadError("the client left while it was sending")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return
        message = await receive()


async def _close_when_gone(receive: Receive, response: aiohttp.ClientResponse) -> None:
    """A client that has left needs no more tokens; closing tells the model server to stop."""
    while (await receive())["type"] != "http.disconnect":
        pass
    response.close()


def _request_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    plain = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    listed = _listed_in_connection(plain)
    return [(name, value) for name, value in plain if name not in listed and _may_be_forwarded(name)]


def _may_be_forwarded(name: str) -> bool:
    # CGI and WSGI servers cannot tell the two characters apart.
    name = name.replace("_", "-")
    return name not in _NOT_FORWARDED and not name.startswith(_PAYMENT_PREFIXES + _OVERRIDES)


def _response_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    plain = [(name.lower(), value) for name, value in response.headers.items()]
    listed = _listed_in_connection(plain)
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in plain
        if name not in _NOT_RETURNED and name not in listed and not name.startswith(_PAYMENT_PREFIXES)
    ]


def _listed_in_connection(headers: list[tuple[str, str]]) -> set[str]:
    return {
        part.strip().lower() for name, value in headers if name == "connection" for part in value.split(",")
    }  # fmt: skip

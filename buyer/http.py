"""Every httpx client and transport of the buyer is made here: no redirects, no proxies or credentials from the
environment, a deadline on everything, and bodies read up to a cap."""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import AsyncIterable, Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpcore
import httpx

from buyer.answers import deadline_s
from buyer.flow import Incoming, Lost, NeverLeft, Outgoing
from buyer.limits import KEEPALIVE_S, PAID_TIMEOUT_S, PROBE_CONNECT_TIMEOUT_S
from contracts.errors import MalformedMessage, SellerUnreachable
from contracts.http_log import show_hosts_only
from contracts.tls import tls_context

__all__ = [
    "async_transport",
    "defaults",
    "not_sent",
    "open_client",
    "read_capped",
    "read_capped_async",
    "send",
    "transport",
]

# Raised before a connection exists; everything else may have carried bytes.
_NEVER_LEFT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)

# As many connections as httpx has, for less time.
_KEPT = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEEPALIVE_S)


def open_client(timeout_s: float) -> httpx.Client:
    """Return a synchronous client with our defaults, for one exchange: it is over `timeout_s` from now.

    However slowly a server drips: each wait for a byte gets what is left of the time.
    """
    show_hosts_only()
    over_s = time.monotonic() + timeout_s
    return httpx.Client(
        transport=_Deadlined(lambda: over_s),
        timeout=httpx.Timeout(timeout_s, connect=min(PROBE_CONNECT_TIMEOUT_S, timeout_s)),
        follow_redirects=False,
        trust_env=False,
        headers={"user-agent": _user_agent(), "accept-encoding": "identity"},
    )


class _Deadlined(httpx.HTTPTransport):
    """httpx bounds each wait alone, so a byte every few seconds would hold us for ever.

    `deadline_s` tells until when the present exchange may last, monotonic seconds.
    """

    def __init__(self, deadline_s: Callable[[], float], proxy: str | None = None) -> None:
        super().__init__(verify=tls_context(), trust_env=False, proxy=proxy, limits=_KEPT)
        self._pool._network_backend = _Network(deadline_s)


class _Network(httpcore.NetworkBackend):
    """The ordinary network until the deadline."""

    def __init__(self, deadline_s: Callable[[], float]) -> None:
        self._inner = httpcore.SyncBackend()
        self._deadline_s = deadline_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left_s = _left(self._deadline_s(), timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left_s, local_address, socket_options), self._deadline_s)


class _Stream(httpcore.NetworkStream):
    """One connection, which outlives the deadline of one exchange."""

    def __init__(self, inner: httpcore.NetworkStream, deadline_s: Callable[[], float]) -> None:
        self._inner = inner
        self._deadline_s = deadline_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(self._deadline_s(), timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(self._deadline_s(), timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = _left(self._deadline_s(), timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left_s), self._deadline_s)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        self._inner.close()


def _left(deadline_s: float, timeout_s: float | None, over: type[Exception]) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise over("the time for the whole exchange is over")
    return left_s if timeout_s is None else min(timeout_s, left_s)


def transport(proxy: str | None = None) -> httpx.BaseTransport:
    """Return the transport beneath `buyer.Client`; it keeps to `buyer.answers.until`."""
    return _Deadlined(deadline_s, proxy)


def async_transport(proxy: str | None = None) -> httpx.AsyncBaseTransport:
    """Return the transport beneath `buyer.AsyncClient`."""
    return httpx.AsyncHTTPTransport(verify=tls_context(), proxy=proxy, trust_env=False, limits=_KEPT)


def defaults() -> dict[str, Any]:
    """Return what an SDK client sets unless its user does: a long generation may take minutes."""
    return {
        "timeout": httpx.Timeout(PAID_TIMEOUT_S, connect=PROBE_CONNECT_TIMEOUT_S),
        "headers": {"user-agent": _user_agent()},
    }


def not_sent(error: httpx.TransportError) -> bool:
    """Tell whether nothing can have left."""
    return isinstance(error, _NEVER_LEFT)


def send(client: httpx.Client, request: Outgoing, body_max: int, *, strict: bool = True) -> Incoming:
    """Send one request and return its answer with at most `body_max` bytes of body.

    Raises `NeverLeft` or `Lost`. A longer body raises `SellerUnreachable`, or is left out when not `strict`.
    """
    try:
        built = client.build_request(request.method, request.url, headers=request.headers, content=request.body)
        response = client.send(built, stream=True)
        try:
            encoding = response.headers.get("content-encoding", "")
            body = read_capped(response.iter_raw(), encoding, body_max)
        finally:
            response.close()
    except httpx.TransportError as error:
        raise (NeverLeft if not_sent(error) else Lost)(_described(error)) from None
    if body is None and strict:
        raise SellerUnreachable(f"the answer is longer than {body_max} bytes, or in an unknown encoding")
    return Incoming(response.status_code, response.headers, body or b"", whole=body is not None)


def read_capped(chunks: Iterable[bytes], encoding: str, body_max: int) -> bytes | None:
    """Return the decoded body, or None when it is longer than `body_max` or in an encoding other than gzip/deflate."""
    body = _CappedBody(encoding, body_max)
    for chunk in chunks:
        if not body.add(chunk):
            return None
    return body.data


async def read_capped_async(chunks: AsyncIterable[bytes], encoding: str, body_max: int) -> bytes | None:
    """`read_capped` for an asynchronous body."""
    body = _CappedBody(encoding, body_max)
    async for chunk in chunks:
        if not body.add(chunk):
            return None
    return body.data


class _CappedBody:
    """Decodes as it reads, never beyond the cap: 200 kB of gzip may be 200 MB of zeros."""

    def __init__(self, encoding: str, body_max: int) -> None:
        self._max = body_max
        self._data = bytearray()
        self._decoder: Any = None
        self._readable = True
        if encoding.lower() in ("gzip", "x-gzip", "deflate"):
            self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding.lower() not in ("", "identity"):
            self._readable = False

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    def add(self, chunk: bytes) -> bool:
        if not self._readable:
            return False
        if self._decoder is not None:
            try:
                chunk = self._decoder.decompress(chunk, self._max + 1)
            except zlib.error:
                raise MalformedMessage("body: is not what its Content-Encoding says") from None
        self._data += chunk
        return len(self._data) <= self._max


def _described(error: httpx.TransportError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _user_agent() -> str:
    try:
        return f"farebox/{version('farebox')}"
    except PackageNotFoundError:
        return "farebox"

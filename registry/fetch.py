"""Fetching from strangers under the network guard: no redirect unchecked, no cookie, no credential, no proxy from the
environment, a cap on every body and one deadline for the whole exchange."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from registry.card import host_of
from registry.guard import GuardedNetwork, NetworkPolicy, Refused, Resolver, resolve
from registry.limits import (
    FETCH_CONCURRENCY,
    FETCH_HOST_STRIKES_MAX,
    FETCH_PER_GATEWAY,
    FETCH_PER_HOST,
    FETCH_SLOW_S,
    FETCH_TIMEOUT_S,
    REDIRECTS_MAX,
)

__all__ = ["Answer", "Fetcher", "Unfetched"]

_REDIRECTS = (301, 302, 303, 307, 308)
_Header = tuple[str, str]
# A host with many registrations is asked again at once, or not for a long time.
_IDLE_S = 5.0


class Unfetched(Exception):
    """Nothing usable came. `code` is a warning code (`timeout`, `too_large`, `address_refused`, …), `detail` ours."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code, self.detail = code, detail


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: `url` is where it came from after redirects; `headers` in any letter case."""

    url: str
    status: int
    headers: httpx.Headers
    body: bytes
    latency_ms: int


class Fetcher:
    """Fetches for one run; an async context manager. At most so many at once, and few to one host, which is
    not asked again in this run once it was silent or slow a few times.

    `resolver` stands in for the system's in tests.
    """

    def __init__(self, policy: NetworkPolicy | None = None, *, resolver: Resolver = resolve) -> None:
        self.policy = policy or NetworkPolicy()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            network_backend=GuardedNetwork(self.policy, resolver),
            max_connections=FETCH_CONCURRENCY,
            keepalive_expiry=_IDLE_S,
        )
        self._all = asyncio.Semaphore(FETCH_CONCURRENCY)
        self._hosts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(FETCH_PER_HOST))
        self._gateways: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(FETCH_PER_GATEWAY))
        self._strikes: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.aclose()

    async def get(
        self,
        url: str,
        *,
        body_max: int,
        headers: Iterable[_Header] = (),
        redirects_max: int = REDIRECTS_MAX,
        timeout_s: float = FETCH_TIMEOUT_S,
        is_gateway: bool = False,
    ) -> Answer:
        """Return the answer to a GET, following at most `redirects_max` redirects, each checked like the first URL.

        `is_gateway`: the host is the user's choice and speaks for many others, so one that is slow is not its fault.
        Raises `Unfetched` when there is none, when it is longer than `body_max`, or not over after `timeout_s`.
        """
        fields = [("accept", "application/json"), *headers]

        async def follow() -> Answer:
            target = url
            for _ in range(redirects_max + 1):
                answer = await self._exchange("GET", target, fields, b"", body_max, strict=True)
                location = answer.headers.get("location")
                if answer.status not in _REDIRECTS or not location:
                    return answer
                target = _joined(target, location)
            raise Unfetched("too_many_redirects", f"more than {redirects_max}")

        return await self._within(timeout_s, url, follow, is_gateway=is_gateway)

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Sequence[_Header] = (),
        body: bytes = b"",
        body_max: int,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> Answer:
        """Return the answer to one request, redirects included as they are. Raises `Unfetched`.

        A longer body is left out: what matters may be in a header.
        """

        async def once() -> Answer:
            return await self._exchange(method, url, headers, body, body_max, strict=False)

        return await self._within(timeout_s, url, once)

    async def _within(
        self, timeout_s: float, url: str, work: Callable[[], Awaitable[Answer]], *, is_gateway: bool = False
    ) -> Answer:
        host = host_of(url) or ""
        turns = self._gateways if is_gateway else self._hosts
        # The host's turn first: a thousand files on one slow host must not take everybody's places.
        async with turns[host], self._all:
            if self._strikes[host] >= FETCH_HOST_STRIKES_MAX:
                raise Unfetched("host_down", host)
            started_s = time.monotonic()
            try:
                async with asyncio.timeout(timeout_s):
                    return await work()
            except TimeoutError:
                raise Unfetched("timeout", f"not over after {timeout_s:g} s") from None
            except Refused as refusal:
                raise Unfetched(refusal.code, refusal.detail) from None
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as problem:
                self._strikes[host] += not is_gateway
                raise Unfetched("unreachable", type(problem).__name__) from None
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ssl.SSLError) as problem:
                raise Unfetched("broken_off", type(problem).__name__) from None
            finally:
                self._strikes[host] += not is_gateway and time.monotonic() - started_s > FETCH_SLOW_S

    async def _exchange(
        self, method: str, url: str, headers: Sequence[_Header], body: bytes, body_max: int, *, strict: bool
    ) -> Answer:
        self.policy.check_url(url)
        fields = [("host", urlsplit(url).netloc), ("user-agent", "farebox"), ("accept-encoding", "identity"), *headers]
        if body:
            fields.append(("content-length", str(len(body))))
        started_s = time.monotonic()
        async with self._pool.stream(method, url.partition("#")[0], headers=fields, content=body or None) as response:
            received = httpx.Headers(response.headers)
            latency_ms = round((time.monotonic() - started_s) * 1000)
            is_redirect = response.status in _REDIRECTS
            data = b"" if is_redirect else await _read(response, received, body_max, strict=strict)
            return Answer(url, response.status, received, data, latency_ms)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise Unfetched("url_malformed", "in a redirect") from None


async def _read(response: httpcore.Response, headers: httpx.Headers, body_max: int, *, strict: bool) -> bytes:
    """Return the body, up to the cap. What is longer is left unread, or refused when `strict`."""
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        if strict:
            raise Unfetched("encoding_refused", "we asked for none")
        return b""
    data = bytearray()
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) > body_max:
            if strict:
                raise Unfetched("too_large", f"more than {body_max} bytes")
            return b""
    return bytes(data)

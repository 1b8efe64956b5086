"""Async JSON-RPC client: several endpoints, one deadline per request, batched reads.

An endpoint that cannot be reached, is overloaded, or answers nonsense, is passed over for the next; an endpoint that
answers with a JSON-RPC error has answered, and that error is the result. Reads and re-sends of identical signed bytes
are safe to repeat on another endpoint, so everything here is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import httpx
import msgspec

from contracts.errors import ChainUnavailable, ConfigInvalid, RemoteError
from contracts.http_log import show_hosts_only
from contracts.limits import RPC_ANSWER_BYTES_MAX, RPC_BATCH_MAX, RPC_CONNECT_TIMEOUT_S, RPC_TIMEOUT_S
from contracts.nesting import check_nesting
from contracts.tls import tls_context

__all__ = ["Call", "Reader", "Rpc", "RpcRefused"]

Call = tuple[str, Sequence[Any]]

# The endpoint has no time for us now; another may have.
_BUSY_STATUSES = frozenset({429, 502, 503, 504})
# EIP-1474 "limit exceeded".
_LIMIT_EXCEEDED = -32005


class RpcRefused(RemoteError):
    """The endpoint understood the request and said no; `rpc_code` and `data` are its own."""

    code = "rpc_refused"
    remedy = "the message is the chain's own answer"

    def __init__(self, message: str, rpc_code: int, data: Any = None) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code
        self.data = data


class Reader(Protocol):
    """Who asks the chain: `Rpc`, or something before it."""

    async def call(self, method: str, *params: Any) -> Any: ...
    async def batch(self, calls: Sequence[Call]) -> list[Any]: ...


class Rpc:
    """JSON-RPC over HTTP to the first of `urls` that answers.

    `timeout_s` is the time one endpoint has for one request, from connect to last byte. Use as an async context
    manager, or call `close`. URLs may carry credentials, so no error shows more than the host. Raises `ConfigInvalid`
    for no URL and for one that is not HTTP.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = RPC_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not urls:
            raise ConfigInvalid("rpc: no endpoint is configured")
        show_hosts_only()
        self._urls = [_endpoint(url) for url in urls]
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(RPC_CONNECT_TIMEOUT_S, timeout_s)),
            follow_redirects=False,
            trust_env=False,
            verify=tls_context(),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def call(self, method: str, *params: Any) -> Any:
        """Return the `result` of one request. Raises `RpcRefused` or `ChainUnavailable`."""
        (result,) = await self.batch([(method, params)])
        if isinstance(result, RpcRefused):
            raise result
        return result

    async def each(self, method: str, *params: Any) -> list[Any]:
        """Return what every endpoint that answers says to one request, refusals left out."""
        answers = await asyncio.gather(
            *(self._ask([url], [(method, params)]) for url in self._urls), return_exceptions=True
        )
        said: list[Any] = []
        for answer in answers:
            if isinstance(answer, ChainUnavailable):
                continue
            if isinstance(answer, BaseException):
                raise answer
            said += [result for result in answer if not isinstance(result, RpcRefused)]
        return said

    @property
    def has_witnesses(self) -> bool:
        """Whether more than one endpoint is named."""
        return len(self._urls) > 1

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """Return the results of `calls` in order, an `RpcRefused` standing where one was refused.

        All calls of a batch of up to `RPC_BATCH_MAX` are answered by the same endpoint. Raises `ChainUnavailable`.
        """
        results: list[Any] = []
        for start in range(0, len(calls), RPC_BATCH_MAX):
            results += await self._ask(self._urls, calls[start : start + RPC_BATCH_MAX])
        return results

    async def _ask(self, urls: Sequence[httpx.URL], calls: Sequence[Call]) -> list[Any]:
        requests = [
            {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}
            for method, params in calls
        ]
        body = msgspec.json.encode(requests if len(requests) > 1 else requests[0])
        failures = []
        for url in urls:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._post(url, body)
                return _results(requests, answer)
            except (TimeoutError, httpx.TimeoutException):
                failures.append(f"{url.host}: no answer in {self._timeout_s:g} s")
            except httpx.HTTPError as error:
                failures.append(f"{url.host}: {type(error).__name__}")
            except _Unusable as error:
                failures.append(f"{url.host}: {error}")
        raise ChainUnavailable("no RPC endpoint answered (" + ", ".join(failures) + ")")

    async def _post(self, url: httpx.URL, body: bytes) -> Any:
        request = self._client.build_request("POST", url, content=body, headers={"content-type": "application/json"})
        response = await self._client.send(request, stream=True)
        try:
            data = bytearray()
            async for chunk in response.aiter_bytes():
                data += chunk
                if len(data) > RPC_ANSWER_BYTES_MAX:
                    raise _Unusable("answer too large")
        finally:
            await response.aclose()
        if response.status_code in _BUSY_STATUSES:
            raise _Unusable(f"status {response.status_code}")
        try:
            check_nesting(data)
            return msgspec.json.decode(data)
        except (ValueError, RecursionError):
            raise _Unusable(f"status {response.status_code}, not JSON") from None


class _Unusable(Exception):
    """The endpoint's answer is of no use, another's may be."""


def _endpoint(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigInvalid("rpc: expected http://host:port or https://host, got something else")
    return url


def _results(requests: list[dict[str, Any]], answer: Any) -> list[Any]:
    replies = answer if isinstance(answer, list) else [answer]
    by_id = {reply["id"]: reply for reply in replies if isinstance(reply, dict) and isinstance(reply.get("id"), int)}
    return [_result(by_id.get(request["id"])) for request in requests]


def _result(reply: dict[str, Any] | None) -> Any:
    if reply is None:
        raise _Unusable("a reply is missing")
    error = reply.get("error")
    if error is None and "result" in reply:
        return reply["result"]
    if not isinstance(error, dict):
        raise _Unusable("a reply has neither result nor error")
    code = error.get("code")
    if code == _LIMIT_EXCEEDED:
        raise _Unusable("its limit is reached")
    message = str(error.get("message", ""))[:300]
    return RpcRefused(message, code if isinstance(code, int) else 0, error.get("data"))

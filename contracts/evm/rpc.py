"""Async JSON-RPC client: several endpoints, one deadline per request, batched reads.

An endpoint that cannot be reached, or answers nonsense, is passed over for the next; an endpoint that answers with a
JSON-RPC error has answered, and that error is the result. Reads and re-sends of identical signed bytes are safe to
repeat on another endpoint, so everything here is.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from contracts.errors import ChainUnavailable, RemoteError
from contracts.limits import RPC_ANSWER_BYTES_MAX, RPC_BATCH_MAX, RPC_CONNECT_TIMEOUT_S, RPC_TIMEOUT_S

__all__ = ["Rpc", "RpcRefused"]

Call = tuple[str, Sequence[Any]]


class RpcRefused(RemoteError):
    """The endpoint understood the request and said no; `rpc_code` and `data` are its own."""

    code = "rpc_refused"
    remedy = "the message is the chain's own answer"

    def __init__(self, message: str, rpc_code: int, data: Any = None) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code
        self.data = data


class Rpc:
    """JSON-RPC over HTTP to the first of `urls` that answers.

    Use as an async context manager, or call `close`. URLs may carry credentials, so no error shows more than the host.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = RPC_TIMEOUT_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not urls:
            raise ChainUnavailable("rpc: no endpoint is configured")
        self._urls = list(urls)
        self._ids = itertools.count(1)
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=min(RPC_CONNECT_TIMEOUT_S, timeout_s)),
            follow_redirects=False,
            trust_env=False,
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

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """Return the results of `calls` in order, an `RpcRefused` standing where one was refused.

        All calls of a batch of up to `RPC_BATCH_MAX` are answered by the same endpoint. Raises `ChainUnavailable`.
        """
        results: list[Any] = []
        for start in range(0, len(calls), RPC_BATCH_MAX):
            results += await self._batch(calls[start : start + RPC_BATCH_MAX])
        return results

    async def _batch(self, calls: Sequence[Call]) -> list[Any]:
        requests = [
            {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(params)}
            for method, params in calls
        ]
        body = msgspec.json.encode(requests if len(requests) > 1 else requests[0])
        failures = []
        for url in self._urls:
            try:
                answer = await self._post(url, body)
                return _results(requests, answer)
            except (httpx.HTTPError, msgspec.DecodeError, _Unusable) as error:
                failures.append(f"{httpx.URL(url).host}: {type(error).__name__}")
        raise ChainUnavailable("no RPC endpoint answered (" + ", ".join(failures) + ")")

    async def _post(self, url: str, body: bytes) -> Any:
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
        if response.status_code != 200 and not data.lstrip().startswith((b"{", b"[")):
            raise _Unusable(f"status {response.status_code}")
        return msgspec.json.decode(data)


class _Unusable(Exception):
    """The endpoint's answer is not JSON-RPC."""


def _results(requests: list[dict[str, Any]], answer: Any) -> list[Any]:
    replies = answer if isinstance(answer, list) else [answer]
    by_id = {reply.get("id"): reply for reply in replies if isinstance(reply, dict)}
    results: list[Any] = []
    for request in requests:
        reply = by_id.get(request["id"])
        if reply is None or ("result" not in reply and not isinstance(reply.get("error"), dict)):
            raise _Unusable("a reply is missing")
        if "result" in reply and reply.get("error") is None:
            results.append(reply["result"])
        else:
            error = reply["error"]
            code = error.get("code")
            results.append(
                RpcRefused(str(error.get("message", ""))[:300], code if isinstance(code, int) else 0, error.get("data"))
            )
    return results

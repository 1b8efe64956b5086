"""A stand-in for the RPC endpoints of the world, in front of a real node: limited, lagging, busy, dying and lying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.rpc_proxy import RpcProxy

__all__ = ["OddNode", "Ways"]


@dataclass(slots=True)
class Ways:
    """How a node is odd.

    - `range_max`: requests for more blocks are refused with `refusal`, or with HTTP 413 where that is None.
    - `logs_max`: requests that find more logs are refused with `refusal`.
    - `cut_at`: of what a request finds, only so many logs are told, without a word.
    - `blind_beyond`: a request for more blocks finds nothing, without a word.
    - `hides`, `adds`: a log is left out; logs are added. Without a word.
    - `lag_blocks`: the node does not know the latest blocks.
    - `chain_id`: the chain it says it is.
    - `dies_after`: requests for logs before it never answers again.
    - `busy_every`: every n-th request is answered with HTTP 429.
    """

    range_max: int | None = None
    refusal: tuple[int, str] | None = (-32000, "block range is too wide")
    logs_max: int | None = None
    cut_at: int | None = None
    blind_beyond: int | None = None
    hides: Callable[[dict[str, Any]], bool] = field(default=lambda log: False)
    adds: list[dict[str, Any]] = field(default_factory=list)
    lag_blocks: int = 0
    chain_id: int | None = None
    dies_after: int | None = None
    busy_every: int | None = None


class OddNode(RpcProxy):
    """A node on a loopback port; `spans` lists the blocks that each answered request for logs spanned."""

    def __init__(self, upstream_url: str, **ways: Any) -> None:
        super().__init__(upstream_url)
        self.ways = Ways(**ways)
        self.spans: list[int] = []
        self._requests = 0

    def answer(self, document: Any) -> tuple[int, Any] | None:
        self._requests += 1
        ways = self.ways
        if ways.dies_after is not None and self.calls["eth_getLogs"] >= ways.dies_after:
            return None
        if ways.busy_every is not None and self._requests % ways.busy_every == 0:
            return 429, {"error": "slow down"}
        requests = document if isinstance(document, list) else [document]
        if ways.refusal is None and any(self._is_too_wide(request) for request in requests):
            return 413, "Request Entity Too Large"
        return super().answer(document)

    def _reply(self, request: Any, fault: Any) -> Any:
        method, params = request["method"], request["params"]
        if method == "eth_chainId" and self.ways.chain_id is not None:
            return {"jsonrpc": "2.0", "id": request["id"], "result": hex(self.ways.chain_id)}
        if self._is_too_wide(request):
            return self._refused(request)
        reply = super()._reply(self._lagging(request), fault)
        if method == "eth_getLogs" and "result" in reply:
            return self._logs(request, reply)
        is_numbered = method == "eth_getBlockByNumber" and params[0] != "latest"
        if is_numbered and self.ways.lag_blocks and int(params[0], 16) > self._head():
            reply["result"] = None
        return reply

    def _logs(self, request: Any, reply: Any) -> Any:
        ways, span = self.ways, _span(request)
        logs = [log for log in reply["result"] if not ways.hides(log)] + ways.adds
        if ways.logs_max is not None and len(logs) > ways.logs_max:
            return self._refused(request)
        if ways.blind_beyond is not None and span > ways.blind_beyond:
            logs = []
        if ways.lag_blocks:
            logs = [log for log in logs if int(log["blockNumber"], 16) <= self._head()]
        self.spans.append(span)
        reply["result"] = logs[: ways.cut_at]
        return reply

    def _lagging(self, request: Any) -> Any:
        if self.ways.lag_blocks and request["params"][:1] == ["latest"]:
            return request | {"params": [hex(self._head()), *request["params"][1:]]}
        return request

    def _head(self) -> int:
        request = {"jsonrpc": "2.0", "id": 0, "method": "eth_blockNumber", "params": []}
        head = int(super()._reply(request, None)["result"], 16)
        return head - self.ways.lag_blocks

    def _is_too_wide(self, request: Any) -> bool:
        limit = self.ways.range_max
        return request["method"] == "eth_getLogs" and limit is not None and _span(request) > limit

    def _refused(self, request: Any) -> Any:
        code, message = self.ways.refusal or (-32000, "")
        return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}


def _span(request: Any) -> int:
    wanted = request["params"][0]
    return int(wanted["toBlock"], 16) - int(wanted["fromBlock"], 16) + 1

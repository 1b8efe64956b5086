"""A node that fails and lies: a small HTTP server in front of a real one, which does to calls what a test says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import httpx

from tests.faults.double import Double, Reply
from tests.patience import PATIENCE_S

__all__ = ["Fault", "RpcProxy"]

How = Literal["drop before", "drop after", "refuse before", "refuse after", "status", "lag", "lie"]


@dataclass(slots=True)
class Fault:
    """What happens to calls of `method`, `times` times.

    - `drop before`, `drop after`: the connection ends without an answer, before or after the call reached the node.
    - `refuse before`, `refuse after`: a JSON-RPC error with `message`, before or after the call reached the node.
    - `status`: HTTP 500 instead of an answer, and nothing reaches the node.
    - `lag`: the node's true answer, `seconds` late.
    - `lie`: the answer is what `lie(params, true result)` returns.
    """

    method: str
    how: How
    times: int = 1
    message: str = "internal error"
    seconds: float = 0.0
    lie: Callable[[Any, Any], Any] = field(default=lambda params, result: result)


class RpcProxy(Double):
    """The proxy on a free loopback port. Use as a context manager; `calls` counts methods, `faults` may be changed."""

    def __init__(self, upstream_url: str) -> None:
        super().__init__(self._pass_on)
        self.upstream_url = upstream_url
        self.faults: list[Fault] = []
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=PATIENCE_S, trust_env=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._client.close()

    def _pass_on(self, body: bytes) -> Reply | None:
        answer = self.answer(json.loads(body))
        return None if answer is None else Reply(answer[0], json.dumps(answer[1]).encode())

    def inject(self, method: str, how: How, **more: Any) -> Fault:
        """Let the next calls of `method` fail, and return the fault; its `times` says how many are still to come."""
        fault = Fault(method, how, **more)
        self.faults.append(fault)
        return fault

    def answer(self, document: Any) -> tuple[int, Any] | None:
        """Return status and document for one request, or None to hang up."""
        requests = document if isinstance(document, list) else [document]
        due = [self._due(request["method"]) for request in requests]
        hows = {fault.how for fault in due if fault is not None}
        if "drop before" in hows:
            return None
        if "status" in hows:
            return 500, {"error": "injected"}
        replies = [self._reply(request, fault) for request, fault in zip(requests, due, strict=True)]
        if "drop after" in hows:
            return None
        time.sleep(max((fault.seconds for fault in due if fault is not None), default=0.0))
        return 200, replies if isinstance(document, list) else replies[0]

    def _due(self, method: str) -> Fault | None:
        with self._lock:
            self.calls[method] += 1
            for fault in self.faults:
                if fault.method == method and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _reply(self, request: Any, fault: Fault | None) -> Any:
        problem = {"code": -32000, "message": "" if fault is None else fault.message}
        refusal = {"jsonrpc": "2.0", "id": request["id"], "error": problem}
        if fault is not None and fault.how == "refuse before":
            return refusal
        reply = self._client.post(self.upstream_url, json=request).json()
        if fault is not None and fault.how == "refuse after":
            return refusal
        if fault is not None and fault.how == "lie":
            return {"jsonrpc": "2.0", "id": request["id"], "result": fault.lie(request["params"], reply.get("result"))}
        return reply

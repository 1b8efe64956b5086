"""A node that fails and lies: a small HTTP server in front of a real one, which does to calls what a test says."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

import httpx

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


class RpcProxy:
    """The proxy on a free loopback port. Use as a context manager; `calls` counts methods, `faults` may be changed."""

    def __init__(self, upstream_url: str) -> None:
        self.upstream_url = upstream_url
        self.faults: list[Fault] = []
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=PATIENCE_S, trust_env=False)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body leave in two packets; without this the second waits 40 ms for the first to be acknowledged.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = proxy.answer(json.loads(body))
                if answer is None:
                    self.close_connection = True
                    return
                status, document = answer
                data = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A client that hung up is none of our business."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()

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

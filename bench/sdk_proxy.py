"""The official SDK's httpx client in the smallest proxy that streams: what one would write without a gateway.

    python -m bench.sdk_proxy PORT UPSTREAM

It pays as the SDK does: ask, read the 402, sign, ask again.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import httpx
import uvicorn
from eth_account import Account
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from x402 import x402Client
from x402.http.clients.httpx import x402HttpxClient
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact.register import register_exact_evm_client

from bench.workload import PATH

_SECRET = b"\x01" * 32
_TIMEOUT_S = 60.0
_KEPT_BACK = {"content-length", "transfer-encoding", "connection", "content-encoding"}


def _client() -> httpx.AsyncClient:
    payments = x402Client()
    register_exact_evm_client(payments, EthAccountSigner(Account.from_key(_SECRET)))
    client: Any = x402HttpxClient(payments, timeout=_TIMEOUT_S)
    found: httpx.AsyncClient = client
    return found


def _app(upstream: str) -> Starlette:
    clients: list[httpx.AsyncClient] = []

    async def pass_on(request: Request) -> StreamingResponse:
        if not clients:
            clients.append(_client())
        outgoing = clients[0].build_request(
            "POST", upstream + PATH, content=await request.body(), headers={"content-type": "application/json"}
        )
        answer = await clients[0].send(outgoing, stream=True)
        headers = {name: value for name, value in answer.headers.items() if name not in _KEPT_BACK}
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, headers, background=BackgroundTask(answer.aclose)
        )

    return Starlette(routes=[Route(PATH, pass_on, methods=["POST"])])


def main() -> None:
    """Serve."""
    logging.disable(logging.WARNING)
    port, upstream = sys.argv[1:]
    uvicorn.run(_app(upstream), host="127.0.0.1", port=int(port), access_log=False, log_level="critical")


if __name__ == "__main__":
    main()

"""The official Python SDK as peers on the local chain: its client, its FastAPI middleware, its facilitator code.

The SDK ships no facilitator server, so `facilitator_app` puts its facilitator behind the three routes of the x402
specification; verification and settlement are the SDK's own and happen on the devnet.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import uvicorn
from eth_account import Account
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from x402 import x402Client, x402Facilitator, x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.clients.httpx import x402AsyncTransport
from x402.http.middleware.fastapi import payment_middleware
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import (
    register_exact_evm_client,
    register_exact_evm_facilitator,
    register_exact_evm_server,
)
from x402.mechanisms.evm.signers import EthAccountSigner, EthAccountSignerWithRPC
from x402.mechanisms.evm.upto import UptoEvmClientScheme, UptoEvmFacilitatorScheme
from x402.schemas import PaymentPayload, PaymentRequirements

from contracts.evm.devnet import DevAccount, Devnet
from tests.patience import PATIENCE_S

__all__ = ["facilitator", "facilitator_app", "paying_client", "seller_app", "serving"]

PRICE_ATOMIC = 1000
_STOP_TIMEOUT_S = 15.0


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI app on a free port of loopback, on a thread of its own; yield its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="auto", log_level="critical", ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        # The socket listens already: a client that comes before uvicorn accepts waits in its queue.
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(_STOP_TIMEOUT_S)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def facilitator(chain: Devnet, account: DevAccount) -> x402Facilitator:
    """Return the SDK's facilitator with its `exact` and `upto` schemes, settling with the gas of `account`."""
    signer = FacilitatorWeb3Signer("0x" + account.key.hex(), chain.rpc_url)
    sdk = register_exact_evm_facilitator(x402Facilitator(), signer, networks=chain.network)
    sdk.register([chain.network], UptoEvmFacilitatorScheme(signer))
    return sdk


def facilitator_app(chain: Devnet, account: DevAccount) -> FastAPI:
    """Return the specification's facilitator API over the SDK's facilitator."""
    app, sdk = FastAPI(), facilitator(chain, account)
    app.state.settled = []

    async def parts(request: Request) -> tuple[PaymentPayload, PaymentRequirements]:
        body = await request.json()
        payload = PaymentPayload.model_validate(body["paymentPayload"])
        return payload, PaymentRequirements.model_validate(body["paymentRequirements"])

    @app.get("/supported")
    async def supported() -> Any:
        return sdk.get_supported().model_dump(by_alias=True, exclude_none=True)

    @app.post("/verify")
    async def verify(request: Request) -> Any:
        payload, requirements = await parts(request)
        return (await sdk.verify(payload, requirements)).model_dump(by_alias=True, exclude_none=True)

    @app.post("/settle")
    async def settle(request: Request) -> Any:
        payload, requirements = await parts(request)
        answer = await sdk.settle(payload, requirements)
        app.state.settled.append(answer)
        return answer.model_dump(by_alias=True, exclude_none=True)

    return app


def seller_app(chain: Devnet, pay_to: str, facilitator_url: str, *, model: str = "sdk-model") -> FastAPI:
    """Return a FastAPI app that sells chat completions and `GET /paid` behind the SDK's own middleware.

    Its middleware asks the facilitator what it supports while the app is built, so that one must be serving already.
    `app.state.runs` counts how often a handler ran.
    """
    facilitator_client = HTTPFacilitatorClient(FacilitatorConfig(url=facilitator_url))

    @asynccontextmanager
    async def closing(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await facilitator_client.aclose()

    app = FastAPI(lifespan=closing)
    app.state.runs = 0
    server = register_exact_evm_server(x402ResourceServer(facilitator_client), networks=chain.network)
    price = {"amount": str(PRICE_ATOMIC), "asset": chain.token, "extra": {"name": "USDC", "version": "2"}}
    option = {"scheme": "exact", "payTo": pay_to, "price": price, "network": chain.network, "maxTimeoutSeconds": 60}
    routes: dict[str, Any] = {
        "POST /v1/chat/completions": {"accepts": option, "description": "Chat", "mimeType": "application/json"},
        "GET /paid": {"accepts": option, "description": "A paid answer", "mimeType": "application/json"},
    }
    app.middleware("http")(payment_middleware(routes, server))

    @app.get("/paid")
    async def paid() -> Any:
        app.state.runs += 1
        return {"paid": True}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "sdk"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        app.state.runs += 1
        body = await request.json()
        text = "Paid through the SDK."
        if body.get("stream"):
            return StreamingResponse(_chunks(text, model), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        return {
            "id": "chatcmpl-sdk",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
        }

    return app


def paying_client(
    chain: Devnet,
    account: DevAccount,
    *,
    token: str | None = None,
    reads_chain: bool = False,
    cap_atomic: int = 1_000_000,
    v1_name: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """Return the SDK's httpx client, funded by `account`, with its spend controls opened for `token`, or the dollar.

    With `v1_name`, the v1 name of the network, it is a v1 client: it is kept from seeing v2 headers. `transport` is
    what the SDK's own transport sends through. One that `reads_chain` sees whether it must approve Permit2.
    """
    wallet = Account.from_key(account.key)
    signer = EthAccountSignerWithRPC(wallet, chain.rpc_url) if reads_chain else EthAccountSigner(wallet)
    client = register_exact_evm_client(x402Client(), signer)
    client.register("eip155:*", UptoEvmClientScheme(signer))
    allowed: Any = [
        {"network": network, "asset": token or chain.token, "max_amount_per_payment": str(cap_atomic)}
        for network in (chain.network, v1_name)
        if network is not None
    ]
    client.set_spend_controls({"allowed_assets": allowed})
    wire = transport or httpx.AsyncHTTPTransport(trust_env=False)
    paying = x402AsyncTransport(client, wire if v1_name is None else _WithoutV2Headers(wire))
    return httpx.AsyncClient(transport=paying, timeout=PATIENCE_S)


class _WithoutV2Headers(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert "payment-signature" not in request.headers
        response = await self._inner.handle_async_request(request)
        response.headers.pop("payment-required", None)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _chunks(text: str, model: str) -> Any:
    for word in text.split():
        delta = f'{{"index": 0, "delta": {{"content": "{word} "}}}}'
        yield f'data: {{"object": "chat.completion.chunk", "model": "{model}", "choices": [{delta}]}}\n\n'
    yield "data: [DONE]\n\n"

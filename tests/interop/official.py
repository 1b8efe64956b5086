"""The official Python SDK as a seller: its FastAPI middleware in front of an app that hands on a server's answers."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from x402 import x402ResourceServer
from x402.extensions.eip2612_gas_sponsoring.server import declare_eip2612_gas_sponsoring_extension
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.http.middleware.fastapi import payment_middleware, set_settlement_overrides
from x402.mechanisms.evm.exact import register_exact_evm_server
from x402.mechanisms.evm.upto import UptoEvmServerScheme

from tests.interop.goods import CHAT, used_atomic

__all__ = ["forwarding_app", "sell_with_the_sdk"]

_USAGE = re.compile(rb'"usage":(\{[^{}]*\})')
_NO_CHOICES = b'"choices":[]'
_FOREIGN_EXTENSION: dict[str, Any] = {
    "acme-loyalty": {"info": {"programme": "gold", "tiers": [1, 2], "since": {"year": 2026}}, "schema": {}}
}


def forwarding_app(upstream: str, *, charges_usage: bool = False) -> FastAPI:
    """Return an app that hands chat completions on to `upstream`, piece by piece.

    With `charges_usage` it reads the answer whole first, since what it costs is in its end, and tells the SDK's
    middleware the amount.
    """

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        async with (
            httpx.AsyncClient(base_url=upstream, trust_env=False, timeout=60) as client,
            AsyncExitStack() as stack,
        ):
            app.state.client = client
            for close in app.state.at_the_end:
                stack.push_async_callback(close)
            yield

    app = FastAPI(lifespan=connected)
    app.state.at_the_end = []

    @app.get("/v1/models")
    async def models() -> Response:
        answer = await app.state.client.get("/v1/models")
        return Response(answer.content, media_type="application/json")

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        if not _echoes(request.headers.get("payment-signature")):
            return Response("the client did not echo the foreign extension", status_code=500)
        body = await request.json()
        if charges_usage:
            return await _charged(app.state.client, body)
        answer = await app.state.client.send(app.state.client.build_request("POST", CHAT, json=body), stream=True)
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, media_type=answer.headers["content-type"].partition(";")[0]
        )

    return app


def sell_with_the_sdk(app: FastAPI, facilitator_url: str, option: dict[str, Any]) -> None:
    """Put the SDK's middleware in front of the app's chat completions. The facilitator must be serving already.

    Its 402 declares an extension that nobody knows and every client must echo and, where payment goes through Permit2,
    that a token permit will do for its approval.
    """
    client = HTTPFacilitatorClient(FacilitatorConfig(url=facilitator_url))
    app.state.at_the_end.append(client.aclose)
    server = register_exact_evm_server(x402ResourceServer(client), networks=option["network"])
    upto: Any = UptoEvmServerScheme
    server.register(option["network"], upto())
    extensions = dict(_FOREIGN_EXTENSION)
    if option["price"]["extra"].get("assetTransferMethod") == "permit2":
        extensions |= declare_eip2612_gas_sponsoring_extension()
    routes: dict[str, Any] = {
        f"POST {CHAT}": {"accepts": option, "mimeType": "application/json", "extensions": extensions}
    }
    app.middleware("http")(payment_middleware(routes, server))


def _echoes(payment: str | None) -> bool:
    """Tell whether a payment brings the foreign extension back; Farebox's middleware leaves none for the app to see."""
    if payment is None:
        return True
    extensions = msgspec.json.decode(base64.b64decode(payment)).get("extensions", {})
    return all(
        extensions.get(name, {}).get("info") == declared["info"] for name, declared in _FOREIGN_EXTENSION.items()
    )


async def _charged(client: httpx.AsyncClient, body: dict[str, Any]) -> Response:
    if body.get("stream"):
        body = {**body, "stream_options": {"include_usage": True}}
    answer = await client.post(CHAT, json=body)
    found = _USAGE.search(answer.content)
    assert found is not None, "the model server tells the usage of every answer"
    usage = msgspec.json.decode(found[1])
    frames = re.split(rb"(?<=\n\n)", answer.content)
    content = b"".join(frame for frame in frames if _NO_CHOICES not in frame)
    response = Response(content, answer.status_code, media_type=answer.headers["content-type"].partition(";")[0])
    charged_atomic = used_atomic(usage["prompt_tokens"], usage["completion_tokens"])
    set_settlement_overrides(response, {"amount": str(charged_atomic)})
    return response

"""The official SDK's FastAPI middleware as a peer, and a stand-in for its facilitator that answers at once.

The stand-in verifies nothing and settles nothing. A real facilitator adds its network, its work and a block's time to
every figure of the SDK here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
from collections.abc import Iterator
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from bench.workload import PATH
from contracts.offers import Offer, requirements

__all__ = ["Reach", "add_middleware", "facilitator_stand_in"]

_PAYER = "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"
_HASH = "0x" + "ab" * 32
_STOP_TIMEOUT_S = 10.0


class Reach(Enum):
    """How the SDK asks the stand-in."""

    LOOPBACK = "HTTP on loopback, to another process"
    NO_SOCKET = "the SDK's HTTP client over a transport that has no socket"
    CALL = "a Python object in place of the SDK's client"


def add_middleware(app: Any, reach: Reach, facilitator_url: str, offer: Offer) -> None:
    """Sell `PATH` of a FastAPI app at `offer` with the SDK's own middleware."""
    from x402 import x402ResourceServer
    from x402.http.middleware.fastapi import payment_middleware
    from x402.mechanisms.evm.exact import register_exact_evm_server

    client = _called(offer) if reach is Reach.CALL else _over_http(offer, reach, facilitator_url)
    server = register_exact_evm_server(x402ResourceServer(client), networks=offer.network.caip2)
    ours = requirements(offer)
    option = {
        "scheme": ours.scheme,
        "payTo": ours.pay_to,
        "price": {"amount": ours.amount, "asset": ours.asset, "extra": ours.extra},
        "network": ours.network,
        "maxTimeoutSeconds": ours.max_timeout_seconds,
    }
    routes: dict[str, Any] = {f"POST {PATH}": {"accepts": option, "mimeType": "application/json"}}
    app.middleware("http")(payment_middleware(routes, server))


@contextlib.contextmanager
def facilitator_stand_in(network: str) -> Iterator[str]:
    """Serve the stand-in for one network in a process of its own; yield its URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(network, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join(_STOP_TIMEOUT_S)


def _serve(network: str, port_is: Connection) -> None:
    import uvicorn

    answers = {path: msgspec.json.encode(answer) for path, answer in _answers(network).items()}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = answers[scope["path"]]
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    listener = socket.create_server(("127.0.0.1", 0))
    port_is.send(listener.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False))
    server.run(sockets=[listener])


def _answers(network: str) -> dict[str, Any]:
    """Return what the facilitator says at each of its addresses."""
    kind = {"x402Version": 2, "scheme": "exact", "network": network}
    return {
        "/supported": {"kinds": [kind], "extensions": [], "signers": {}},
        "/verify": {"isValid": True, "payer": _PAYER},
        "/settle": {"success": True, "transaction": _HASH, "network": network, "payer": _PAYER},
    }


def _over_http(offer: Offer, reach: Reach, url: str) -> Any:
    """Return the SDK's own facilitator client."""
    import httpx
    from x402.http import FacilitatorConfig, HTTPFacilitatorClient

    if reach is Reach.LOOPBACK:
        return HTTPFacilitatorClient(FacilitatorConfig(url=url))
    answers = {path: msgspec.json.encode(answer) for path, answer in _answers(offer.network.caip2).items()}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "application/json"}, content=answers[request.url.path])

    # What it supports is asked only once, through another client, from the process that answers.
    return HTTPFacilitatorClient(
        FacilitatorConfig(url=url, http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer)))
    )


def _called(offer: Offer) -> Any:
    """Return an object in place of the SDK's facilitator client."""
    from x402.schemas import SettleResponse, SupportedResponse, VerifyResponse

    answers = _answers(offer.network.caip2)

    class StandIn:
        async def verify(self, *_: object) -> VerifyResponse:
            return VerifyResponse.model_validate(answers["/verify"])

        async def settle(self, *_: object) -> SettleResponse:
            return SettleResponse.model_validate(answers["/settle"])

        def get_supported(self) -> SupportedResponse:
            return SupportedResponse.model_validate(answers["/supported"])

    return StandIn()

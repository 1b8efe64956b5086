"""The stacks that `bench.seller` compares, each in a process of its own: an application, and who sells it.

Requests are ASGI calls inside the process: no socket, no HTTP parser, so what is measured is the stack alone. A process
listens on a pipe for how many requests of which kind to answer, and says what they took.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import uvloop

from bench import official
from bench.harness import Slice
from bench.machine import pin_to_one_core
from bench.pinned import SpawnedProcess
from bench.workload import BODY, PATH, PRICE_ATOMIC, sign_payments
from contracts.heap import settle_heap
from contracts.offers import Offer
from contracts.signature import SigningKey
from seller import PaymentMiddleware, SellerConfig
from seller.config import AssetSettings
from seller.service import Seller

__all__ = ["APPLICATIONS", "Chain", "Request", "Stack", "StackProcess", "settings_of"]

App = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Chain:
    """A local chain: where it answers, its token, and the keys of payers whose wallets are full.

    `facilitator_url` is where the stand-in for a facilitator answers.
    """

    rpc_url: str
    network: str
    token: str
    payee: str
    payer_secrets: tuple[bytes, ...]
    facilitator_url: str


@dataclass(frozen=True, slots=True)
class Stack:
    """How a process is set up: the application, who takes the money, and how the SDK reaches its facilitator."""

    application: Literal["raw ASGI", "FastAPI"]
    seller: Literal["nobody", "Farebox", "official SDK"] = "nobody"
    facilitator: official.Reach | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Which requests to send: paid or not, and how many are under way at once."""

    paid: bool
    callers: int = 1


class StackProcess(SpawnedProcess):
    """One stack, running."""

    def __init__(self, stack: Stack, chain: Chain) -> None:
        super().__init__(_serve, stack, chain)

    def run(self, request: Request, count: int) -> Slice:
        """Send `count` requests and return what they took. Raises `EOFError` when the process has failed."""
        self._ours.send((request, count))
        taken: Slice = self._ours.recv()
        return taken


def _serve(stack: Stack, chain: Chain, commands: Connection) -> None:
    pin_to_one_core()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        uvloop.run(_answer(stack, chain, Path(folder), commands))


async def _answer(stack: Stack, chain: Chain, folder: Path, commands: Connection) -> None:
    async with AsyncExitStack() as life:
        seller = Seller(settings_of(chain, folder), settles=False)
        (offer,) = (quote.offer for route in seller.book.routes for quote in route.quotes)
        app = APPLICATIONS[stack.application]()
        if stack.seller == "Farebox":
            await seller.open()
            life.push_async_callback(seller.close)
            app = PaymentMiddleware(app, seller=seller)
        elif stack.facilitator is not None:
            official.add_middleware(app, stack.facilitator, chain.facilitator_url, offer)
        payers = [SigningKey(secret) for secret in chain.payer_secrets]
        # As `farebox sell` does; every other stack gets the same.
        settle_heap()
        while True:
            try:
                request, count = await asyncio.get_running_loop().run_in_executor(None, commands.recv)
            except EOFError:
                return
            expected = 402 if stack.seller != "nobody" and not request.paid else 200
            commands.send(await _requests(app, request, count, offer=offer, payers=payers, expected=expected))


async def _requests(
    app: App, request: Request, count: int, *, offer: Offer, payers: list[SigningKey], expected: int
) -> Slice:
    """Answer `count` requests of `request.callers` clients, each of which sends its next when it has its answer."""
    headers: Sequence[bytes | None] = [None] * count
    if request.paid:
        headers = [payment.header.encode() for payment in sign_payments(offer, payers, count)]
    waiting = iter(headers)
    statuses: set[int] = set()
    latencies_us: list[float] = []

    async def client() -> None:
        for header in waiting:
            before_ns = time.perf_counter_ns()
            statuses.add(await _one(app, header))
            latencies_us.append((time.perf_counter_ns() - before_ns) / 1000)

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(request.callers)))
    taken = Slice(count, time.process_time() - cpu_s, time.perf_counter() - wall_s, latencies_us)
    assert statuses == {expected}, f"expected only {expected}, got answers with {statuses}"
    return taken


async def _one(app: App, payment: bytes | None) -> int:
    """Send one request and return the status of its answer."""
    headers = [
        (b"host", b"127.0.0.1:8402"),
        (b"accept", b"application/json"),
        (b"user-agent", b"bench"),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(BODY)),
    ]
    if payment is not None:
        headers.append((b"payment-signature", payment))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8402),
        "state": {},
    }
    status = 0
    body_is_read = False

    async def receive() -> dict[str, Any]:
        nonlocal body_is_read
        if body_is_read:
            # A client that waits for its answer.
            await asyncio.get_running_loop().create_future()
        body_is_read = True
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(scope, receive, send)
    return status


def settings_of(chain: Chain, folder: Path) -> SellerConfig:
    """Return a shop with one route, whose caps and whose payers' wallets no run exhausts."""
    return SellerConfig.model_validate(
        {
            "network": chain.network,
            "rpc": [chain.rpc_url],
            "asset": AssetSettings(address=chain.token, name="USDC", version="2", decimals=6, symbol="USDC"),
            "pay_to": chain.payee,
            "settle": "async",
            # The key is for `farebox settle`, a process of its own, which does not run here.
            "settler": {"kind": "chain", "key_file": str(folder / "settler.key")},
            "exposure": {"per_payer": "1000000", "total": "1000000"},
            "store": f"sqlite:///{folder}/seller.db",
            "routes": [{"match": f"POST {PATH}", "price": f"{PRICE_ATOMIC} atomic"}],
        }
    )


async def _raw_application(_: Any, receive: Any, send: Any) -> None:
    """Answer everything with one small document."""
    await receive()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"11")],
        }
    )
    await send({"type": "http.response.body", "body": b'{"ok":true}'})


def _fastapi_application() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.post(PATH)
    async def chat() -> dict[str, bool]:
        return {"ok": True}

    return app


def _starlette_application() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def chat(_: Any) -> JSONResponse:
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route(PATH, chat, methods=["POST"])])


APPLICATIONS: dict[str, Callable[[], Any]] = {
    "raw ASGI": lambda: _raw_application,
    "Starlette": _starlette_application,
    "FastAPI": _fastapi_application,
}

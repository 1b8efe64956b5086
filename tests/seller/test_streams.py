"""Streams over real sockets: chunks pass one by one, and what the client does to the connection is noticed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from contracts.evm.devnet import Devnet
from seller.config import SellerConfig
from seller.proxy import ReverseProxy
from seller.service import Seller
from tests.seller.shop import BODY, CHAT, PRICE_ATOMIC, Application, Shop, open_shop, receipt_of


@asynccontextmanager
async def listening(application: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port of this machine, in this event loop."""
    port = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    task = asyncio.create_task(server.serve(sockets=[port]))
    try:
        yield f"http://127.0.0.1:{port.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class Tap:
    """A stream that gives its next chunk only when the client has the one before."""

    def __init__(self) -> None:
        self.turns: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def watch() -> None:
            if (await receive())["type"] == "http.disconnect":
                self.left.set()

        watching = asyncio.create_task(watch())
        while (chunk := await self.turns.get()) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        watching.cancel()


@pytest.mark.parametrize("settle", ["before", "async", "auto"])
@pytest.mark.parametrize("through_proxy", [False, True])
async def test_a_chunk_reaches_the_client_before_the_next_one_exists(
    chain: Devnet, tmp_path: Path, settle: str, through_proxy: bool
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        tap = shop.app.behave = Tap()
        async with _served(shop, through_proxy) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            tap.turns.put_nowait(b"data: 0\n\n")
            headers = {"PAYMENT-SIGNATURE": shop.payment()}
            async with client.stream("POST", CHAT, content=BODY, headers=headers) as answer:
                assert receipt_of(answer).success
                got = answer.aiter_raw()
                for turn in range(5):
                    assert await anext(got) == b"data: %d\n\n" % turn
                    tap.turns.put_nowait(b"data: %d\n\n" % (turn + 1))
                tap.turns.put_nowait(None)
                assert b"".join([chunk async for chunk in got]) == b"data: 5\n\n"
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


@asynccontextmanager
async def _served(shop: Shop, through_proxy: bool) -> AsyncIterator[str]:
    if not through_proxy:
        async with listening(shop.middleware) as url:
            yield url
        return
    async with listening(shop.app) as upstream:
        proxy = ReverseProxy(upstream)
        shop.middleware.app = proxy
        async with listening(shop.middleware) as url:
            yield url
        await proxy.close()


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Application, str]]:
    application = Application()
    async with listening(application) as url:
        yield application, url


@asynccontextmanager
async def proxied(
    chain: Devnet, folder: Path, url: str, **changed: Any
) -> AsyncIterator[tuple[Shop, httpx.AsyncClient]]:
    async with open_shop(chain, folder, settle="auto", **changed) as shop:
        proxy = ReverseProxy(url)
        shop.middleware.app = proxy
        async with listening(shop.middleware) as address, httpx.AsyncClient(base_url=address, timeout=60) as client:
            yield shop, client
        await proxy.close()


async def test_nothing_of_payment_session_or_connection_crosses_the_proxy(
    chain: Devnet, tmp_path: Path, upstream: tuple[Application, str]
) -> None:
    application, url = upstream
    application.headers = [
        (b"content-type", b"application/json"),
        (b"set-cookie", b"a=b"),
        (b"payment-response", b"forged"),
        (b"x-payment-response", b"forged"),
        (b"settlement-overrides", b"{}"),
        (b"cache-control", b"public, max-age=60"),
        (b"x-model", b"kept"),
    ]
    async with proxied(chain, tmp_path, url) as (shop, client):
        headers = {
            "PAYMENT-SIGNATURE": shop.payment(),
            "Cookie": "session=1",
            "Authorization": "Bearer secret",
            "Connection": "keep-alive, X-Internal",
            "X-Internal": "1",
            "X-Kept": "1",
        }
        answer = await client.post(CHAT, content=BODY, headers=headers)
        seen = application.seen[0]["headers"]
        assert not {b"payment-signature", b"cookie", b"authorization", b"x-internal"} & set(seen)
        assert seen[b"x-kept"] == b"1"
        assert application.seen[0]["body"] == BODY
        assert answer.status_code == 200
        assert receipt_of(answer).success
        assert answer.headers["x-model"] == "kept"
        assert answer.headers["cache-control"] == "no-store"
        assert not {"set-cookie", "settlement-overrides", "x-payment-response"} & set(answer.headers)


async def test_a_redirect_is_not_followed_and_not_charged(
    chain: Devnet, tmp_path: Path, upstream: tuple[Application, str]
) -> None:
    application, url = upstream
    application.status, application.headers = 307, [(b"location", b"http://127.0.0.1:9/elsewhere")]
    async with proxied(chain, tmp_path, url) as (shop, client):
        answer = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": shop.payment()})
        assert answer.status_code == 307
        assert answer.headers["x-farebox-charged"] == "false"
        assert shop.earned == 0


async def test_an_upstream_that_is_down_is_502_and_not_charged(chain: Devnet, tmp_path: Path) -> None:
    async with proxied(chain, tmp_path, "http://127.0.0.1:9") as (shop, client):
        answer = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": shop.payment()})
        assert answer.status_code == 502
        assert answer.headers["x-farebox-charged"] == "false"
        assert (await client.get("/v1/models")).status_code == 502
        assert shop.seller.ledger.sums().outstanding_atomic == 0


async def test_a_stream_that_breaks_reaches_the_client_as_a_broken_stream(
    chain: Devnet, tmp_path: Path, upstream: tuple[Application, str]
) -> None:
    application, url = upstream

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("cable")

    application.behave = breaks
    async with proxied(chain, tmp_path, url) as (shop, client):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": shop.payment()})
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


async def test_query_and_method_reach_the_upstream_as_they_were(
    chain: Devnet, tmp_path: Path, upstream: tuple[Application, str]
) -> None:
    application, url = upstream
    async with proxied(chain, tmp_path, url) as (shop, client):
        header = shop.payment(path="/paid")
        answer = await client.get("/paid?a=1&b=%2F", headers={"PAYMENT-SIGNATURE": header})
        assert answer.status_code == 200
        assert application.seen[0]["method"] == "GET"
        other = await client.get("/paid?a=2", headers={"PAYMENT-SIGNATURE": header})
        assert other.status_code == 402


async def test_a_head_request_runs_nothing_and_takes_no_payment(
    chain: Devnet, tmp_path: Path, upstream: tuple[Application, str]
) -> None:
    application, url = upstream
    async with proxied(chain, tmp_path, url) as (shop, client):
        headers = {"PAYMENT-SIGNATURE": shop.payment(path="/paid")}
        assert (await client.head("/paid", headers=headers)).status_code == 402
        assert application.runs == 0
        assert (await client.get("/paid", headers=headers)).status_code == 200


async def test_the_lifespan_opens_and_closes_the_seller(chain: Devnet, tmp_path: Path) -> None:
    from seller import PaymentMiddleware
    from tests.seller.shop import settings

    config: SellerConfig = settings(chain, tmp_path, settle="async")
    seller = Seller(config)
    application = Application()
    port = socket.create_server(("127.0.0.1", 0))
    middleware = PaymentMiddleware(application, seller=seller)
    server = uvicorn.Server(uvicorn.Config(middleware, lifespan="on", log_config=None))
    task = asyncio.create_task(server.serve(sockets=[port]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port.getsockname()[1]}") as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert seller.is_open
    server.should_exit = True
    await task
    assert not seller.is_open

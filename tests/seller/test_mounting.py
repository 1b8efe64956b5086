"""The middleware in applications that other people wrote, and when the store fails under it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from contracts.evm.devnet import Devnet
from contracts.limits import HEADER_BYTES_MAX
from contracts.storage import Connection
from seller import PaymentMiddleware
from tests.seller.shop import BODY, CHAT, PRICE_ATOMIC, Shop, error_of, open_shop, receipt_of


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle="auto") as opened:
        yield opened


def client_of(application: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=application), base_url="http://shop")  # type: ignore[arg-type]


async def test_it_is_added_to_a_starlette_application_with_add_middleware(shop: Shop) -> None:
    async def chat(request: Request) -> Response:
        return JSONResponse(await request.json())

    application = Starlette(routes=[Route(CHAT, chat, methods=["POST"])])
    application.add_middleware(PaymentMiddleware, config=shop.seller.config, seller=shop.seller)
    async with client_of(application) as client:
        assert (await client.post(CHAT, content=BODY)).status_code == 402
        answer = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": shop.payment()})
        assert answer.json()["model"] == "m"
        assert receipt_of(answer).success


async def test_it_is_added_to_a_fastapi_application_and_streams(shop: Shop) -> None:
    application = FastAPI()

    @application.post(CHAT)
    async def chat() -> StreamingResponse:
        async def words() -> AsyncIterator[bytes]:
            for word in (b"data: 1\n\n", b"data: 2\n\n"):
                yield word

        return StreamingResponse(words(), media_type="text/event-stream")

    application.add_middleware(PaymentMiddleware, seller=shop.seller)
    async with client_of(application) as client:
        answer = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": shop.payment()})
        assert answer.content == b"data: 1\n\ndata: 2\n\n"
    assert shop.earned == PRICE_ATOMIC


async def test_a_file_is_sold_through_the_ordinary_messages(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "goods").write_bytes(b"goods")

    async def goods(request: Request) -> Response:
        assert not [name for name in request.scope["extensions"] if name.startswith("http.response.")]
        return FileResponse(tmp_path / "goods")

    middleware = PaymentMiddleware(Starlette(routes=[Route("/paid", goods)]), seller=shop.seller)

    async def with_shortcuts(scope: object, receive: object, send: object) -> None:
        # Servers that offer these send a file round any middleware that does not take care.
        assert isinstance(scope, dict)
        await middleware({**scope, "extensions": {"http.response.pathsend": {}}}, receive, send)  # type: ignore[arg-type]

    async with client_of(with_shortcuts) as client:
        answer = await client.get("/paid", headers={"PAYMENT-SIGNATURE": shop.payment(path="/paid")})
        assert answer.content == b"goods"
        assert receipt_of(answer).success


async def test_a_full_disk_sells_nothing_and_leaves_free_routes_open(shop: Shop) -> None:
    database = shop.seller.ledger.database

    def allow_pages(connection: Connection, pages: int | None = None) -> None:
        """Let the file grow to `pages`; without a number, no further."""
        (present,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages or present}")

    database.transact(allow_pages)
    answers = [await shop.buy() for _ in range(60)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert (answer.status_code, error_of(answer)["code"]) == (503, "store_unavailable")
        assert "retry-after" in answer.headers
    assert (await shop.client.get("/v1/models")).status_code == 200
    database.transact(lambda connection: allow_pages(connection, 2**30))
    assert (await shop.buy()).status_code == 200
    await shop.settled()
    served = shop.seller.ledger.sums()
    assert served.earned_atomic == shop.earned


async def test_a_header_above_the_cap_is_400(shop: Shop) -> None:
    answer = await shop.buy("A" * (HEADER_BYTES_MAX + 4))
    assert (answer.status_code, error_of(answer)["code"]) == (400, "malformed")

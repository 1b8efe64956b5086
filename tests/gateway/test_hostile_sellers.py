"""What a hostile seller answers reaches neither the client's trust nor this machine's memory."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from buyer.home import Home
from buyer.pool import Counts, Pool
from contracts.address import address_text
from contracts.headers import PAYMENT_RESPONSE, decode_settlement_response, encode_header
from contracts.wire import SettlementResponse
from gateway.demo.model_server import model_server_app
from tests.buyer.parts import talking
from tests.buyer.test_slow_sellers import drip
from tests.gateway.conftest import Street
from tests.gateway.parts import KEY, MODEL, TRANSACTION, gateway, listening, sign_pool
from tests.gateway.test_repetition import CHAT, ask
from tests.patience import PATIENCE_S

OURS = SettlementResponse(
    success=True, transaction=TRANSACTION, network="eip155:31337", payer=address_text(KEY.address), amount="1000"
)


def with_headers(*extra: tuple[str, str]) -> Any:
    """Return a seller that serves everything it is asked, paid or not, with these headers on top."""
    model = model_server_app((MODEL,))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def pass_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in extra]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await model(scope, receive, pass_on)

    return app


def answer_with(home: Path, *extra: tuple[str, str]) -> httpx.Response:
    with listening(with_headers(*extra)) as server:
        with closing(Pool.open(Home.open(home))) as pool:
            sign_pool(pool, server.url, 3)
        with gateway(home) as running:
            return httpx.post(running.url + CHAT, json=ask("a"))


def test_a_receipt_is_read_and_written_anew_before_a_client_sees_it(home: Path) -> None:
    answer = answer_with(home, (PAYMENT_RESPONSE, encode_header(OURS)))
    assert decode_settlement_response(answer.headers[PAYMENT_RESPONSE]) == OURS
    assert answer.headers["x-farebox-transaction"] == TRANSACTION


@pytest.mark.parametrize(
    "stated",
    [
        "not base64",
        "e30=",
        "x" * 20_000,
        encode_header(SettlementResponse(success=True, transaction=TRANSACTION, payer="0x" + "99" * 20)),
        encode_header(SettlementResponse(success=True, transaction=TRANSACTION, network="eip155:1")),
        encode_header(SettlementResponse(success=True, transaction=TRANSACTION, amount="999999")),
    ],
    ids=["noise", "empty", "long", "another payer", "another network", "another amount"],
)
def test_a_receipt_of_nothing_or_of_another_payment_is_not_passed_on(home: Path, stated: str) -> None:
    answer = answer_with(home, (PAYMENT_RESPONSE, stated))
    assert answer.status_code == 200
    assert PAYMENT_RESPONSE not in answer.headers
    assert "x-farebox-transaction" not in answer.headers


def test_no_other_payment_header_cookie_or_cache_rule_of_a_seller_reaches_the_client(home: Path) -> None:
    hostile = {
        "payment-required": "e30=",
        "payment-signature": "e30=",
        "x-payment": "e30=",
        "set-cookie": "track=1",
        "cache-control": "public, max-age=86400",
        "location": "https://elsewhere.example/",
        "x-farebox-charged": "false",
        "x-farebox-purchase": "forged",
        "settlement-overrides": "e30=",
    }
    answer = answer_with(home, *hostile.items())
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-farebox-purchase"] == "chat"
    assert not (set(hostile) - {"cache-control", "x-farebox-purchase"}) & set(answer.headers)


def test_a_seller_that_drips_its_head_for_ever_ends_with_the_call_and_leaves_the_outcome_open(
    home: Path,
) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def talk(connection: socket.socket) -> None:
        begun.set()
        drip(b"HTTP/1.1 200 OK\r\n", b"x", stopped)(connection)

    with talking(talk) as url, ThreadPoolExecutor(1) as threads:
        with closing(Pool.open(Home.open(home))) as pool:
            sign_pool(pool, url, 3)
        with gateway(home) as running:
            call = threads.submit(httpx.post, running.url + CHAT, json=ask("a"), timeout=PATIENCE_S)
            assert begun.wait(PATIENCE_S)
            running.end_calls()
            answer = call.result(PATIENCE_S)
            stopped.set()
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "call_timed_out")
            assert running.counts() == Counts(ready=2, unknown=1)


def test_an_endless_head_is_refused_before_it_is_large(home: Path) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            sent += connection.send(b"x-fill: " + b"y" * 8000 + b"\r\n")

    with talking(flood) as url:
        with closing(Pool.open(Home.open(home))) as pool:
            sign_pool(pool, url, 3)
        with gateway(home) as running:
            answer = httpx.post(running.url + CHAT, json=ask("a"), timeout=PATIENCE_S)
            assert answer.status_code == 502
            assert running.counts() == Counts(ready=2, unknown=1)
    assert sent < 16 * 1024 * 1024, "what the kernel buffers on both sides, and little more"


def test_an_answer_after_payment_that_asks_for_payment_again_signs_and_sends_nothing_new(street: Street) -> None:
    street.seller.price_atomic = 5000
    answers = [street.http.post(CHAT, json=ask("a"), headers={"x-farebox-request-id": "1"}) for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {402, 502}
    assert len(set(street.seller.nonces)) <= 1
    assert street.gateway.counts().unknown == 1


@pytest.mark.parametrize(
    ("head", "status", "counts"),
    [
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 100", 204, Counts(ready=2, spent=1)),
        (b"HTTP/1.1 999 Odd\r\ncontent-length: 0", 502, Counts(ready=2, unknown=1)),
        (b"HTTP/1.1 000 Odd\r\ncontent-length: 0", 502, Counts(ready=2, unknown=1)),
    ],
)
def test_an_answer_that_is_none_by_its_status_is_told_in_full(
    home: Path, head: bytes, status: int, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    with talking(lambda connection: connection.sendall(head + b"\r\n\r\n")) as url:
        with closing(Pool.open(Home.open(home))) as pool:
            sign_pool(pool, url, 3)
        with gateway(home) as running:
            answer = httpx.post(running.url + CHAT, json=ask("a"), timeout=PATIENCE_S)
            assert answer.status_code == status
            assert running.counts() == counts
    assert "a defect" not in caplog.text

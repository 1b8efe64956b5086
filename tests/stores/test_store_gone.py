"""The database goes away in the middle of business: nothing is served, nothing is sent, and it all goes on after."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from buyer.home import STORE_VARIABLE, Home
from buyer.pool import Pool
from contracts.evm.devnet import Devnet
from gateway.demo.processes import wait_until
from tests.e2e.parts import MODEL
from tests.patience import PATIENCE_S, eventually
from tests.stores.servers import OwnServer
from tests.stores.twins import BOTH, Twins, twins
from tests.warm import Warm

SIGNED = 20


@pytest.fixture
def pair(
    tmp_path: Path, chain: Devnet, warm: Warm, fragile: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Twins]:
    store = fragile.new_database()
    monkeypatch.setenv(STORE_VARIABLE, store)
    with twins(tmp_path, chain, warm, store) as opened:
        yield opened


def ask(
    pair: Twins, prompt: str, *, gateway: int = 0, knobs: dict[str, str] | None = None, request_id: str | None = None
) -> httpx.Response:
    url, model = pair.chat(gateway, gateway)
    headers = {} if request_id is None else {"x-farebox-request-id": request_id}
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "metadata": knobs or {}}
    return httpx.post(url, json=body, headers=headers, timeout=60)


def pay(pair: Twins, header: str, seller: int) -> httpx.Response:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "paid by hand"}]}
    url = f"{pair.seller_urls[seller]}/v1/chat/completions"
    return httpx.post(url, json=body, headers={"PAYMENT-SIGNATURE": header}, timeout=60)


def taken_by_hand(home: Path, count: int) -> list[str]:
    with Pool.open(Home.open(home)) as pool:
        spender = pool.spender()
        headers = []
        for number in range(count):
            claim = spender.claim(pool.purchase(f"demo-{number}"), f"by hand {number}", int(time.time()))
            spender.sent(claim)
            headers.append(claim.headers()["PAYMENT-SIGNATURE"])
        spender.close()
        return headers


@pytest.mark.slow
@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
def test_while_the_store_is_gone_nothing_is_served_or_sent_and_afterwards_all_goes_on(
    pair: Twins, fragile: OwnServer, tmp_path: Path, crash: bool
) -> None:
    model = pair.shop.start_model_server()
    sellers = [pair.start_seller(number) for number in BOTH]
    pair.buy(SIGNED // 2)
    gateways = [pair.start_gateway(number) for number in BOTH]
    for number in BOTH:
        assert ask(pair, f"before {number}", gateway=number).status_code == 200
    pair.wait_settled(sellers[0])  # from here on the payer is known, and served on credit
    by_hand = taken_by_hand(tmp_path / "machine-0", 2)

    with ThreadPoolExecutor(2) as threads:
        held: list[Future[httpx.Response]] = [
            threads.submit(
                ask, pair, f"held {number}", gateway=number, knobs={"x-test-hold": "gate"}, request_id=f"held-{number}"
            )
            for number in BOTH
        ]
        wait_until(lambda: all(pair.shop.runs_of(f"held {number}") for number in BOTH), model, "they did not run")
        fragile.stop(crash=crash)
        httpx.post(f"{pair.shop.model_url}/test/release/gate", timeout=PATIENCE_S)
        answers = [call.result() for call in held]
    # The goods were made, and stay where they are: nobody could write down that they left.
    for answer in answers:
        assert answer.status_code in (502, 503), answer.text
        assert "choices" not in answer.text

    for number in BOTH:
        answer = ask(pair, "while it is gone", gateway=number)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]
        answer = pay(pair, by_hand[number], number)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]
        assert httpx.get(f"{pair.gateway_urls[number]}/readyz", timeout=PATIENCE_S).status_code == 503
        assert httpx.get(f"{pair.seller_admin_urls[number]}/readyz", timeout=PATIENCE_S).status_code == 503
        assert httpx.get(f"{pair.gateway_urls[number]}/healthz", timeout=PATIENCE_S).status_code == 200
    assert pair.shop.runs_of("while it is gone") == pair.shop.runs_of("paid by hand") == 0

    fragile.start()
    for child, url in zip([*sellers, *gateways], [*pair.seller_admin_urls, *pair.gateway_urls], strict=True):
        pair.shop.crew.wait_ready(child, f"{url}/readyz")
    for number in BOTH:
        assert ask(pair, f"after {number}", gateway=number).status_code == 200
        assert pay(pair, by_hand[number], number).status_code == 200
    eventually(lambda: all(final(pair, number) for number in BOTH))
    assert all(pair.shop.runs_of(f"held {number}") <= 2 for number in BOTH)
    counts = pair.check_books(sellers[0], signed=SIGNED)
    # Two before, two after, two by hand, and the held ones, which their clients asked for once more.
    assert counts["spent"] == 8, counts


def final(pair: Twins, number: int) -> bool:
    """Repeat a held call as its client would; tell whether it was answered for good."""
    answer = ask(pair, f"held {number}", gateway=number, request_id=f"held-{number}", knobs={"x-test-hold": "gate"})
    threading.Event().wait(0.2)
    return answer.status_code == 200

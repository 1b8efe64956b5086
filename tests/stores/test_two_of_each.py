"""Two gateways and two sellers on one PostgreSQL: as one of each, and one goes on when the other dies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from buyer.home import STORE_VARIABLE, Home
from buyer.pool import Pool
from contracts.evm.devnet import Devnet
from gateway.demo.processes import Child
from tests.e2e.parts import MODEL, PRICE_ATOMIC
from tests.patience import PATIENCE_S
from tests.stores.servers import Server
from tests.stores.twins import BOTH, Twins, twins
from tests.warm import Warm

SIGNED = 40
COPIES = 32


class Running:
    """The four processes, and calls through them."""

    def __init__(self, pair: Twins) -> None:
        self.pair = pair
        pair.shop.start_model_server()
        self.sellers = [pair.start_seller(number) for number in BOTH]
        pair.buy(SIGNED // 2)
        self.gateways = [pair.start_gateway(number) for number in BOTH]

    async def ask(
        self, client: httpx.AsyncClient, prompt: str, gateway: int, seller: int, request_id: str | None = None
    ) -> httpx.Response:
        url, model = self.pair.chat(gateway, seller)
        headers = {} if request_id is None else {"x-farebox-request-id": request_id}
        body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
        return await client.post(url, json=body, headers=headers)


@pytest.fixture
def running(
    tmp_path: Path, chain: Devnet, warm: Warm, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    store = postgres.new_database()
    monkeypatch.setenv(STORE_VARIABLE, store)
    with twins(tmp_path, chain, warm, store) as pair:
        yield Running(pair)


def kill(*children: Child) -> None:
    for child in children:
        child.kill()


@pytest.mark.slow
async def test_calls_through_both_gateways_to_both_sellers_are_paid_and_served_once_each(running: Running) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        places = [(gateway, seller) for gateway in BOTH for seller in BOTH] * (SIGNED // 4)
        answers = await asyncio.gather(
            *(running.ask(client, f"call {number}", *place) for number, place in enumerate(places))
        )
    assert Counter(answer.status_code for answer in answers) == {200: SIGNED}, [answer.text for answer in answers][:3]
    assert sum(running.pair.shop.runs_of(f"call {number}") for number in range(SIGNED)) == SIGNED
    assert running.pair.check_books(running.sellers[0], signed=SIGNED)["spent"] == SIGNED
    assert running.pair.status(0)["payments"] == running.pair.status(1)["payments"] == {"settled": SIGNED}
    assert not list(running.pair.shop.crew.folder.rglob("*.db")), "no book is kept anywhere else"


@pytest.mark.slow
async def test_one_request_sent_to_both_gateways_is_paid_once(running: Running) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        answers = await asyncio.gather(
            *(running.ask(client, "only once", gateway, 0, "one and the same") for gateway in BOTH * 8)
        )
        late = await running.ask(client, "only once", 1, 0, "one and the same")
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 1
    assert set(statuses) <= {200, 409}, [answer.text for answer in answers]
    assert late.status_code in (200, 409)
    assert running.pair.shop.runs_of("only once") == 1
    assert running.pair.check_books(running.sellers[0], signed=SIGNED)["spent"] == 1


@pytest.mark.slow
async def test_64_copies_of_one_payment_at_two_sellers_are_one_run_and_one_settlement(
    running: Running, tmp_path: Path
) -> None:
    header = taken_by_hand(tmp_path / "machine-0")
    limits = httpx.Limits(max_connections=2 * COPIES)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        copies = [post(client, running.pair.seller_urls[seller], header) for seller in BOTH * COPIES]
        answers = await asyncio.gather(*copies)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 1
    assert set(statuses) <= {200, 402, 409}, [answer.text for answer in answers]
    first_runs = [answer for answer in answers if answer.status_code == 200 and not is_replay(answer)]
    assert len(first_runs) == 1
    assert running.pair.shop.runs_of("sold once") == 1
    running.pair.wait_settled(running.sellers[0])
    assert running.pair.shop.earned_atomic() == PRICE_ATOMIC


@pytest.mark.slow
async def test_one_gateway_and_one_seller_go_on_when_the_others_are_killed(running: Running) -> None:
    pair = running.pair
    async with httpx.AsyncClient(timeout=60) as client:
        calls = [
            asyncio.create_task(running.ask(client, f"call {number}", number % 2, number // 2 % 2, f"id-{number}"))
            for number in range(16)
        ]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert {call.result().status_code for call in done} == {200}
        kill(running.gateways[1], running.sellers[1])
        await asyncio.gather(*calls, return_exceptions=True)
        # The survivors serve their own calls at once, and the dead ones' repeated requests under the same ids.
        for number in range(0, 16, 4):
            answer = await running.ask(client, f"call {number}", 0, 0, f"id-{number}")
            assert answer.status_code in (200, 409), answer.text
        assert (await running.ask(client, "after the fall", 0, 0)).status_code == 200
        running.sellers[1] = pair.start_seller(1)
        running.gateways[1] = pair.start_gateway(1)
        for number in range(16):
            answer = await until_settled(running, client, number)
            assert answer.status_code in (200, 409, 502), answer.text
    assert all(pair.shop.runs_of(f"call {number}") <= 2 for number in range(16))
    counts = pair.check_books(running.sellers[0], signed=SIGNED)
    assert counts["spent"] + counts["unknown"] >= 17 - 2, counts
    assert counts["ready"] >= SIGNED - 17 - 2, counts


async def until_settled(running: Running, client: httpx.AsyncClient, number: int) -> httpx.Response:
    """Repeat a call as a client would, until the answer does not ask it to come back."""
    last, deadline = "", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = await running.ask(client, f"call {number}", number % 2, number // 2 % 2, f"id-{number}")
        if answer.status_code not in (503, 429) and "in_progress" not in answer.text:
            return answer
        last = f"{answer.status_code} {answer.text}"
        await asyncio.sleep(0.5)
    raise AssertionError(f"call {number}: no final answer; the last was {last}")


def taken_by_hand(home: Path) -> str:
    """Take one authorization out of the shared pool as if it were sent; return its PAYMENT-SIGNATURE header."""
    with Pool.open(Home.open(home)) as pool:
        spender = pool.spender()
        claim = spender.claim(pool.purchase("demo-0"), "taken by hand", int(time.time()))
        spender.sent(claim)
        spender.close()
        return claim.headers()["PAYMENT-SIGNATURE"]


async def post(client: httpx.AsyncClient, seller_url: str, header: str) -> httpx.Response:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "sold once"}]}
    return await client.post(f"{seller_url}/v1/chat/completions", json=body, headers={"PAYMENT-SIGNATURE": header})


def is_replay(answer: httpx.Response) -> bool:
    return bool(answer.headers.get("x-farebox-replayed") == "true")

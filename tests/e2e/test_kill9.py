"""`kill -9` of gateway and seller in the middle of calls: nothing lost, nothing paid twice, nothing served twice.

Every case is the same story at another moment: a call is under way, processes die, they start again on their stores,
and the client repeats the same request until it has an answer that will not change. Then the books are read: what the
buyer counts as spent is what the seller's address holds on chain, also after time has run out for everything else.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from gateway.demo.processes import Child, wait_until
from tests.e2e.parts import MODEL, PRICE_ATOMIC, Market, market
from tests.patience import PATIENCE_S

COUNT = 12
DAY_S = 86_400
STATES = ("ready", "claimed", "sent", "unknown", "spent", "expired", "cancelled")

VICTIMS = {"gateway": ("serve",), "seller": ("sell",), "both": ("serve", "sell")}
# A stranger's payment is settled before its first byte leaves, a known payer's afterwards.
CASES = [("gateway", True), ("seller", False), ("seller", True), ("both", False)]


@dataclass
class Town:
    """A running market whose seller and gateway can be killed and started again."""

    shop: Market
    running: dict[str, Child] = field(default_factory=dict)

    def open(self) -> None:
        """Start everything and make one ordinary call, so that the buyer has a history with the seller."""
        self.running["model-server"] = self.shop.start_model_server()
        self.running["sell"] = self.shop.start_seller()
        self.shop.buy(COUNT)
        self.running["serve"] = self.shop.start_gateway()

    def kill(self, names: tuple[str, ...]) -> None:
        """`kill -9`, all at once."""
        for name in names:
            self.running[name].process.kill()
        for name in names:
            self.running[name].kill()

    def start_again(self, names: tuple[str, ...]) -> None:
        """Start the dead on their old stores; the seller first, as the gateway's readiness does not depend on it."""
        if "sell" in names:
            self.running["sell"] = self.shop.start_seller()
        if "serve" in names:
            self.running["serve"] = self.shop.start_gateway()

    def url(self) -> str:
        return f"{self.shop.gateway_url}/v1/chat/completions"


@pytest.fixture
def town(tmp_path: Path, chain: Devnet) -> Iterator[Town]:
    with market(tmp_path, chain) as shop:
        town = Town(shop)
        town.open()
        yield town


def body_of(prompt: str, knobs: dict[str, str] | None = None, *, stream: bool = False) -> dict[str, Any]:
    return {
        "model": f"paid/{MODEL}",
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        "metadata": knobs or {},
    }


def ask(town: Town, body: dict[str, Any], request_id: str) -> tuple[int, str]:
    """Send one request; return status and the text of the whole answer. Raises `httpx.HTTPError`."""
    headers = {"x-farebox-request-id": request_id}
    answer = httpx.post(town.url(), json=body, headers=headers, timeout=PATIENCE_S)
    return answer.status_code, answer.text


def ask_until_settled(town: Town, body: dict[str, Any], request_id: str) -> tuple[int, str]:
    """Repeat one request, as a client would, until the answer is not "come back later"."""
    status, text = 0, ""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            status, text = ask(town, body, request_id)
        except httpx.HTTPError:
            continue
        if status not in (429, 503) and code_of(text) != "request_in_progress":
            return status, text
        time.sleep(0.5)
    raise AssertionError(f"{request_id}: no final answer within {PATIENCE_S:.0f} s; the last was {status} {text}")


def code_of(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""


def check_another_request_gets_an_authorization_of_its_own(town: Town) -> None:
    """What was under way when a process died is never offered to the next request, which the seller would refuse."""
    status, text = ask_until_settled(town, body_of("something else"), "another-call")
    assert status == 200, text
    assert town.shop.runs_of("something else") == 1


def check_books(town: Town, *, used: int) -> None:
    """The audit: `used` authorizations left the pool for good, and the buyer's books equal the chain."""
    shop = town.shop
    shop.wait_settled(town.running["sell"])
    shop.farebox("process", "--all")
    now = shop.counts()
    assert sum(now[state] for state in STATES) == now["signed"] == COUNT
    assert now["signed"] - now["ready"] == used, now
    assert shop.earned_atomic() == now["spent"] * PRICE_ATOMIC, now

    # When every signature has run out of time, nothing is in doubt any more, and nothing has moved.
    earned_atomic = shop.earned_atomic()
    shop.chain.rpc("evm_increaseTime", 30 * DAY_S)
    shop.chain.mine()
    shop.farebox("process", "--all")
    last = shop.counts()
    assert (last["unknown"], last["claimed"], last["sent"]) == (0, 0, 0)
    assert sum(last[state] for state in STATES) == COUNT
    assert shop.earned_atomic() == earned_atomic == last["spent"] * PRICE_ATOMIC


@contextmanager
def call_under_way(town: Town, body: dict[str, Any], request_id: str) -> Iterator[Future[tuple[int, str]]]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(ask, town, body, request_id)


def release(town: Town, hold: str) -> None:
    httpx.post(f"{town.shop.model_url}/test/release/{hold}", timeout=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.parametrize(("victims", "known"), CASES)
def test_killed_while_the_model_works(town: Town, victims: str, known: bool) -> None:
    if known:
        assert ask_until_settled(town, body_of("hello"), "warm-up")[0] == 200
        town.shop.wait_settled(town.running["sell"])
    body = body_of("hold me", {"x-test-hold": "gate"})
    with call_under_way(town, body, "the-call") as call:
        wait_until(lambda: town.shop.runs_of("hold me") == 1, town.running["model-server"], "the model did not run")
        town.kill(VICTIMS[victims])
        release(town, "gate")
        town.start_again(VICTIMS[victims])
        call.exception()
    check_another_request_gets_an_authorization_of_its_own(town)
    status, text = ask_until_settled(town, body, "the-call")
    assert status == 200, text
    assert town.shop.runs_of("hold me") <= 2
    check_books(town, used=2 + known)


@pytest.mark.slow
@pytest.mark.parametrize(("victims", "known"), CASES)
def test_killed_in_the_middle_of_a_stream(town: Town, victims: str, known: bool) -> None:
    if known:
        assert ask_until_settled(town, body_of("hello"), "warm-up")[0] == 200
        town.shop.wait_settled(town.running["sell"])
    body = body_of("stream me", {"x-test-hold": "gate", "x-test-hold-after-chunks": "3"}, stream=True)
    headers = {"x-farebox-request-id": "the-call"}
    with (
        httpx.Client(timeout=PATIENCE_S) as client,
        client.stream("POST", town.url(), json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert b"data:" in next(answer.iter_raw())
        town.kill(VICTIMS[victims])
        release(town, "gate")
    town.start_again(VICTIMS[victims])
    status, text = ask_until_settled(town, body, "the-call")
    # Its first bytes had left, so it counts as served: never a second run, never a second payment. What the seller
    # wrote down of it comes again.
    assert status == 200, text
    assert town.shop.runs_of("stream me") == 1
    check_books(town, used=1 + known)


@pytest.mark.slow
@pytest.mark.parametrize("victims", VICTIMS)
def test_killed_while_the_settlement_is_not_mined(town: Town, victims: str) -> None:
    shop = town.shop
    shop.chain.rpc("evm_setAutomine", False)
    try:
        with call_under_way(town, body_of("pay me first"), "the-call") as call:
            wait_until(lambda: pending(shop.chain) == 1, town.running["sell"], "no settlement was sent")
            town.kill(VICTIMS[victims])
            town.start_again(VICTIMS[victims])
            shop.chain.mine()
            shop.chain.rpc("evm_setAutomine", True)
            call.exception()
    finally:
        shop.chain.rpc("evm_setAutomine", True)
    check_another_request_gets_an_authorization_of_its_own(town)
    status, text = ask_until_settled(town, body_of("pay me first"), "the-call")
    # Also where the gateway, which asks the chain about open outcomes by itself, has heard of the transfer before.
    assert status == 200, text
    check_books(town, used=2)


@pytest.mark.slow
def test_calls_go_on_through_a_storm_of_kills(town: Town) -> None:
    done = threading.Semaphore(0)

    def one_call(number: int) -> tuple[int, str]:
        answer = ask_until_settled(town, body_of(f"storm {number}"), f"storm-{number}")
        done.release()
        return answer

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(one_call, number) for number in range(COUNT)]
        for victims in ("gateway", "seller", "both", "seller"):
            done.acquire(timeout=PATIENCE_S)
            done.acquire(timeout=PATIENCE_S)
            town.kill(VICTIMS[victims])
            town.start_again(VICTIMS[victims])
        answers = [call.result() for call in calls]
    assert {status for status, _ in answers} <= {200, 409, 502}, answers
    check_books(town, used=COUNT)


def pending(chain: Devnet) -> int:
    """Return how many transactions wait to be mined."""
    return int(chain.rpc("txpool_status")["pending"], 16)

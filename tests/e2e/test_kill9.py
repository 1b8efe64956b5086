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
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from tests.faults import town as towns
from tests.faults.town import MODEL, PRICE_ATOMIC, PURCHASE, Town
from tests.patience import PATIENCE_S
from tests.warm import Warm

COUNT = 12
DAY_S = 86_400
STATES = ("ready", "claimed", "sent", "unknown", "spent", "expired", "cancelled")

VICTIMS = {"gateway": ("serve",), "seller": ("sell",), "both": ("serve", "sell")}
# A stranger's payment is settled before its first byte leaves, a known payer's afterwards.
CASES = [("gateway", True), ("seller", False), ("seller", True), ("both", False)]


@pytest.fixture
def town(tmp_path: Path, chain: Devnet, warm: Warm) -> Iterator[Town]:
    with towns.town(tmp_path, chain, warm, seller_settles=True) as town:
        town.start_all(COUNT)
        yield town


def start_again(town: Town, names: tuple[str, ...]) -> None:
    """Start the dead on their old stores; the seller first, as the gateway's readiness does not depend on it."""
    for name in sorted(names):
        town.start(name)


def body_of(prompt: str, knobs: dict[str, str] | None = None, *, stream: bool = False) -> dict[str, Any]:
    return {
        "model": f"paid/{MODEL}",
        "messages": [{"role": "user", "content": prompt}],
        "stream": stream,
        "metadata": knobs or {},
    }


def url_of(town: Town) -> str:
    return f"{town.gateway_url}/v1/chat/completions"


def ask(town: Town, body: dict[str, Any], request_id: str) -> tuple[int, str]:
    """Send one request; return status and the text of the whole answer. Raises `httpx.HTTPError`."""
    headers = {"x-farebox-request-id": request_id}
    answer = httpx.post(url_of(town), json=body, headers=headers, timeout=PATIENCE_S)
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
    assert runs_of(town, "something else") == 1


def check_books(town: Town, *, used: int) -> None:
    """The audit: `used` authorizations left the pool for good, and the buyer's books equal the chain."""
    wait_settled(town)
    town.farebox("process", "--all")
    now = counts(town)
    assert sum(now[state] for state in STATES) == now["signed"] == COUNT
    assert now["signed"] - now["ready"] == used, now
    assert town.earned_atomic() == now["spent"] * PRICE_ATOMIC, now

    # When every signature has run out of time, nothing is in doubt any more, and nothing has moved.
    earned_atomic = town.earned_atomic()
    town.chain.rpc("evm_increaseTime", 30 * DAY_S)
    town.chain.mine()
    town.clocks["farebox"] = 30.0 * DAY_S
    town.farebox("process", "--all")
    last = counts(town)
    assert (last["unknown"], last["claimed"], last["sent"]) == (0, 0, 0)
    assert sum(last[state] for state in STATES) == COUNT
    assert town.earned_atomic() == earned_atomic == last["spent"] * PRICE_ATOMIC


@contextmanager
def call_under_way(town: Town, body: dict[str, Any], request_id: str) -> Iterator[Future[tuple[int, str]]]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(ask, town, body, request_id)


def runs_of(town: Town, prompt: str) -> int:
    return town.runs_by_prompt().get(prompt, 0)


def counts(town: Town) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(town.farebox("status", PURCHASE, "--json")[1])
    return found


def wait_settled(town: Town) -> None:
    def is_settled() -> bool:
        status = httpx.get(f"{town.seller_admin_url}/status", timeout=PATIENCE_S).json()
        return int(status["unsettled_atomic"]) == 0

    town.wait_for(is_settled, town.running["sell"], "payments were not settled")


@pytest.mark.slow
@pytest.mark.parametrize(("victims", "known"), CASES)
def test_killed_while_the_model_works(town: Town, victims: str, known: bool) -> None:
    if known:
        assert ask_until_settled(town, body_of("hello"), "warm-up")[0] == 200
        wait_settled(town)
    body = body_of("hold me", {"x-test-hold": "gate"})
    with call_under_way(town, body, "the-call") as call:
        town.wait_for(lambda: runs_of(town, "hold me") == 1, town.running["model-server"], "the model did not run")
        town.kill(*VICTIMS[victims])
        town.release("gate")
        start_again(town, VICTIMS[victims])
        call.exception()
    check_another_request_gets_an_authorization_of_its_own(town)
    status, text = ask_until_settled(town, body, "the-call")
    assert status == 200, text
    assert runs_of(town, "hold me") <= 2
    check_books(town, used=2 + known)


@pytest.mark.slow
@pytest.mark.parametrize(("victims", "known"), CASES)
def test_killed_in_the_middle_of_a_stream(town: Town, victims: str, known: bool) -> None:
    if known:
        assert ask_until_settled(town, body_of("hello"), "warm-up")[0] == 200
        wait_settled(town)
    body = body_of("stream me", {"x-test-hold": "gate", "x-test-hold-after-chunks": "3"}, stream=True)
    headers = {"x-farebox-request-id": "the-call"}
    with (
        httpx.Client(timeout=PATIENCE_S) as client,
        client.stream("POST", url_of(town), json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert b"data:" in next(answer.iter_raw())
        town.kill(*VICTIMS[victims])
        town.release("gate")
    start_again(town, VICTIMS[victims])
    status, text = ask_until_settled(town, body, "the-call")
    # Its first bytes had left, so it counts as served: never a second run, never a second payment. What the seller
    # wrote down of it comes again.
    assert status == 200, text
    assert runs_of(town, "stream me") == 1
    check_books(town, used=1 + known)


@pytest.mark.slow
@pytest.mark.parametrize("victims", VICTIMS)
def test_killed_while_the_settlement_is_not_mined(town: Town, victims: str) -> None:
    town.chain.rpc("evm_setAutomine", False)
    try:
        with call_under_way(town, body_of("pay me first"), "the-call") as call:
            town.wait_for(lambda: pending(town.chain) == 1, town.running["sell"], "no settlement was sent")
            town.kill(*VICTIMS[victims])
            start_again(town, VICTIMS[victims])
            town.chain.mine()
            town.chain.rpc("evm_setAutomine", True)
            call.exception()
    finally:
        town.chain.rpc("evm_setAutomine", True)
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
            town.kill(*VICTIMS[victims])
            start_again(town, VICTIMS[victims])
        answers = [call.result() for call in calls]
    assert {status for status, _ in answers} <= {200, 409, 502}, answers
    check_books(town, used=COUNT)


def pending(chain: Devnet) -> int:
    """Return how many transactions wait to be mined."""
    return int(chain.rpc("txpool_status")["pending"], 16)

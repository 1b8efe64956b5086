"""Another process holds the pool's database for ten seconds: 503 and Retry-After, and nobody else is held up."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import httpx
import pytest

from contracts.limits import STORE_BUSY_TIMEOUT_S, STORE_LOOP_WAIT_S
from tests.faults.test_locked_store import HELD_S, held_by_another_process
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL
from tests.patience import PATIENCE_S, eventually

CALLS = 8
# Waiting for other threads and for other processes, in the store and once more in what undoes the first; and as much
# again for a busy machine.
ANSWER_WITHIN_S = 8 * STORE_BUSY_TIMEOUT_S
LOOP_HELD_S = 4 * STORE_LOOP_WAIT_S


Answers = list[tuple[httpx.Response, float]]


def body_of(text: str) -> dict[str, Any]:
    return {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": text}]}


def call_until_served(street: Street, name: str, answers: Answers) -> None:
    """Ask, and repeat the same request until it is served; note every answer and how long it took."""
    body = body_of(name)
    while not answers or answers[-1][0].status_code != 200:
        assert len(answers) < 200, answers[-1][0].text
        started_s = time.monotonic()
        answer = httpx.post(
            f"{street.gateway.url}/v1/chat/completions", json=body, headers={"x-farebox-request-id": name}, timeout=60
        )
        answers.append((answer, time.monotonic() - started_s))


def test_a_first_call_that_finds_others_at_the_pool_waits_for_its_turn_and_is_served(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("contracts.storage.sqlite", "buyer.slots"):
        monkeypatch.setattr(f"{module}.STORE_BUSY_TIMEOUT_S", PATIENCE_S)
    desk = street.gateway.desk
    assert desk is not None
    answers: Answers = []
    with ThreadPoolExecutor(2) as threads:
        with held_by_another_process(street.home / "buyer.db"):
            plain = threads.submit(street.http.post, "/v1/chat/completions", json=body_of("without an id"))
            eventually(lambda: not desk.pool.database.is_free, "the call found the pool taken")
            named = threads.submit(call_until_served, street, "with an id", answers)
            assert street.http.get("/healthz").status_code == 200
        assert plain.result().status_code == 200
        named.result()
    assert [answer.status_code for answer, _ in answers] == [200]
    assert len(set(street.seller.nonces)) == len(street.seller.nonces) == 2
    counts = street.gateway.counts()
    assert (counts.spent, counts.ready, counts.unknown) == (2, COUNT - 2, 0)


@pytest.mark.slow
def test_a_pool_that_is_locked_for_ten_seconds_costs_time_and_nothing_else(street: Street) -> None:
    call_until_served(street, "before", [])  # so that some calls find a lease, and the others need one
    waited_s = []
    told: list[Answers] = [[] for _ in range(CALLS)]
    with ThreadPoolExecutor(CALLS) as threads:
        with held_by_another_process(street.home / "buyer.db"):
            calls = [threads.submit(call_until_served, street, f"call {n}", told[n]) for n in range(CALLS)]
            until_s = time.monotonic() + HELD_S
            # Where the whole machine stands still for a while, nobody's patience with the lock ends meanwhile.
            while time.monotonic() < until_s or sum(map(len, told)) < CALLS // 2:
                for path in ("/healthz", "/v1/models"):
                    started_s = time.monotonic()
                    assert street.http.get(path).status_code == 200
                    waited_s.append(time.monotonic() - started_s)
                time.sleep(0.05)
            assert not any(call.done() for call in calls)
        for call in calls:
            call.result()
    answers = [answer for each in told for answer in each]
    # The usual wait, as one call may meet a busy machine; an event loop that stands still lets none through.
    assert median(waited_s) < LOOP_HELD_S, f"others waited {median(waited_s):.2f} s for the lock"
    refused = [(answer, took_s) for answer, took_s in answers if answer.status_code != 200]
    assert len(refused) >= CALLS // 2
    for answer, took_s in refused:
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert "retry-after" in answer.headers
        assert took_s < ANSWER_WITHIN_S
    assert len(set(street.seller.nonces)) == len(street.seller.nonces) == 1 + CALLS
    counts = street.gateway.counts()
    assert (counts.spent, counts.ready, counts.unknown) == (1 + CALLS, COUNT - 1 - CALLS, 0)

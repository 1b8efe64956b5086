"""A process dies at step n, for every n: it starts again, the same request is repeated, and nothing is lost or doubled.

The steps are named in the product (`contracts.crash`); a test here fails when one of them is not killed at.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from contracts.crash import STEPS, VARIABLE
from contracts.evm.devnet import Devnet
from tests.faults.asking import Answer, body_of, repeat_until_final
from tests.faults.place import Place, check_books, paid_for
from tests.faults.town import Town, town
from tests.warm import Warm

KILLED = -9
ROOMS = ("contracts", "buyer", "seller", "gateway")

# In which process a step of an ordinary call happens.
SERVING = (
    "buyer.leased", "buyer.claimed", "buyer.sent", "buyer.answered", "buyer.recorded",
    "gateway.started", "gateway.whole", "gateway.answered",
)  # fmt: skip
SELLING = (
    "seller.verified", "seller.reserved", "seller.begun", "seller.first_byte_held", "seller.queued", "seller.settled",
    "seller.delivered", "seller.started",
)  # fmt: skip
SETTLING = ("settle.simulated", "settle.stored", "settle.sent", "settle.receipt_seen", "settle.concluded")
# Where goods on credit go another way than goods that wait for their money.
ON_CREDIT = (
    "seller.reserved", "seller.first_byte_held", "seller.delivered", "seller.started", "settle.stored", "settle.sent",
)  # fmt: skip
SIGNING = ("buyer.intended", "buyer.signed", "buyer.stored")
# Steps with a story of their own, below.
SPECIAL = (
    "buyer.lost", "buyer.presented_again", "buyer.reconciled", "seller.given_up", "seller.piece_kept",
    "seller.replaying", "settle.raised", "buyer.called_in", "buyer.posted",
)  # fmt: skip
# Steps of a claim that is noted beside the books, as of every request without an id.
NOTED = ("buyer.claimed", "buyer.sent", "buyer.recorded", "gateway.whole")
ELSEWHERE = (
    "settle.given_away", "settle.judged", "seller.charged",
    "delegator.intended", "delegator.answered", "delegator.recorded",
)  # fmt: skip

PART = {**dict.fromkeys(SERVING, "serve"), **dict.fromkeys(SELLING, "sell"), **dict.fromkeys(SETTLING, "settle")}
CASES = [("auto", step) for step in PART] + [("async", step) for step in ON_CREDIT]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, world: Devnet, warm: Warm) -> Iterator[dict[str, Place]]:
    built = {settle: Place(tmp_path_factory.mktemp(settle), world, warm, settle) for settle in ("auto", "async")}
    yield built
    for place in built.values():
        place.close()


def arm(here: Town, part: str, step: str) -> None:
    """Let a part die at the step, the next time it comes there."""
    here.kill(part)
    here.start(part, **{VARIABLE: step})


@contextmanager
def request_under_way(here: Town, name: str, knobs: dict[str, str] | None = None) -> Iterator[Future[Answer]]:
    with ThreadPoolExecutor(1) as threads:
        final = (500,) if knobs and "x-test-status" in knobs else ()
        yield threads.submit(repeat_until_final, here, name, body_of(name, knobs), final=final)


def test_every_step_in_the_product_is_named_and_every_named_step_is_killed_at() -> None:
    called = set()
    for room in ROOMS:
        for file in Path(room).rglob("*.py"):
            called |= set(re.findall(r'checkpoint\("([^"]+)"\)', file.read_text()))
    assert called == set(STEPS)
    assert {*PART, *SIGNING, *SPECIAL, *ELSEWHERE} == set(STEPS)


@pytest.mark.parametrize(("settle", "step"), CASES, ids=lambda text: text)
def test_the_request_is_served_and_paid_once_when_a_process_dies_at(
    places: dict[str, Place], settle: str, step: str
) -> None:
    with places[settle].visit() as here:
        name, before_atomic = f"{settle} {step}", here.earned_atomic()
        arm(here, PART[step], step)
        with request_under_way(here, name) as request:
            assert here.wait_dead(PART[step]) == KILLED
            here.start(PART[step])
            answer = request.result()
        assert answer.status == 200, (answer.status, answer.code, answer.text)
        assert 1 <= here.runs_by_prompt()[name] <= 2
        check_books(here)
        assert paid_for(here, before_atomic) == 1


@pytest.mark.parametrize("step", NOTED)
def test_a_request_without_an_id_is_served_and_paid_once_when_the_gateway_dies_at(
    places: dict[str, Place], step: str
) -> None:
    with places["auto"].visit() as here:
        name, before_atomic = f"no id, {step}", here.earned_atomic()
        arm(here, "serve", step)
        with ThreadPoolExecutor(1) as threads:
            request = threads.submit(repeat_until_final, here, "", body_of(name))
            assert here.wait_dead("serve") == KILLED
            here.start("serve")
            assert request.result().status == 200
        assert 1 <= here.runs_by_prompt()[name] <= 2
        check_books(here)
        assert paid_for(here, before_atomic) == 1


def test_calls_noted_beside_the_books_are_counted_once_when_a_process_dies_while_it_enters_them(
    places: dict[str, Place],
) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        assert repeat_until_final(here, "", body_of("called in")).status == 200
        here.farebox("process", "--all", expect=KILLED, environment={VARIABLE: "buyer.called_in"})
        arm(here, "serve", "buyer.posted")
        with ThreadPoolExecutor(1) as threads:
            request = threads.submit(repeat_until_final, here, "", body_of("posted"))
            # It looks at its books by itself from time to time, and may do so in the middle of this call.
            assert here.wait_dead("serve") == KILLED
            here.start("serve")
            assert request.result().status == 200
        assert repeat_until_final(here, "", body_of("afterwards")).status == 200
        check_books(here)
        assert paid_for(here, before_atomic) == 3


def test_an_authorization_stays_with_its_request_when_the_gateway_dies_after_a_lost_answer(
    places: dict[str, Place],
) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        for step in ("buyer.lost", "buyer.presented_again"):
            name = f"hold for {step}"
            arm(here, "serve", step)
            with request_under_way(here, name, {"x-test-hold": name}) as request:
                started = here.running["model-server"]
                here.wait_for(lambda: here.runs_by_prompt().get(name) == 1, started, "the model did not run")  # noqa: B023
                here.kill("sell")
                here.start("sell")
                here.release(name)
                assert here.wait_dead("serve") == KILLED
                here.start("serve")
                assert request.result().status == 200
            assert here.runs_by_prompt()[name] == 2
        check_books(here)
        assert paid_for(here, before_atomic) == 2


def test_what_the_chain_said_is_asked_again_when_the_buyer_dies_while_writing_it_down(places: dict[str, Place]) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        arm(here, "serve", "buyer.answered")
        with ThreadPoolExecutor(1) as threads:
            threads.submit(repeat_until_final, here, "reconciled", body_of("reconciled"))
            assert here.wait_dead("serve") == KILLED
            here.farebox("process", "--all", expect=KILLED, environment={VARIABLE: "buyer.reconciled"})
            here.start("serve")
        check_books(here)
        assert paid_for(here, before_atomic) == 1


def test_a_refused_request_costs_nothing_when_the_seller_dies_while_giving_it_up(places: dict[str, Place]) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        arm(here, "sell", "seller.given_up")
        with request_under_way(here, "told to fail", {"x-test-status": "500"}) as request:
            assert here.wait_dead("sell") == KILLED
            here.start("sell")
            assert request.result().status == 500
        check_books(here)
        assert paid_for(here, before_atomic) == 0


def test_a_stream_whose_seller_dies_is_given_again_as_far_as_it_was_kept_and_says_so(places: dict[str, Place]) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        arm(here, "sell", "seller.piece_kept")
        body = body_of("one two three four five six", {"x-test-delay-ms": "300"}, stream=True)
        with ThreadPoolExecutor(1) as threads:
            request = threads.submit(repeat_until_final, here, "a cut stream", body)
            assert here.wait_dead("sell") == KILLED
            here.start("sell")
            answer = request.result()
        assert (answer.status, answer.code) == (200, "answer_incomplete"), answer.text
        assert answer.text.count("data: ") > 2
        assert here.runs_by_prompt()["one two three four five six"] == 1
        check_books(here)
        assert paid_for(here, before_atomic) == 1


def test_a_kept_answer_is_given_again_when_the_seller_dies_while_giving_it(places: dict[str, Place]) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        arm(here, "serve", "buyer.answered")
        with request_under_way(here, "replayed") as request:
            assert here.wait_dead("serve") == KILLED
            arm(here, "sell", "seller.replaying")
            here.start("serve")
            assert here.wait_dead("sell") == KILLED
            here.start("sell")
            assert request.result().status == 200
        assert here.runs_by_prompt()["replayed"] == 1
        check_books(here)
        assert paid_for(here, before_atomic) == 1


def test_a_raised_fee_settles_once_when_the_worker_dies_before_sending_it(places: dict[str, Place]) -> None:
    with places["auto"].visit() as here:
        before_atomic = here.earned_atomic()
        here.chain.rpc("evm_setAutomine", False)
        try:
            with request_under_way(here, "raised") as request:
                settle = here.running["settle"]
                here.wait_for(lambda: here.chain.rpc("txpool_status")["pending"] != "0x0", settle, "nothing was sent")
                here.kill("settle")
                _let_time_pass(here, seconds=60)
                here.start("settle", **{VARIABLE: "settle.raised"})
                assert here.wait_dead("settle") == KILLED
                here.start("settle")
                here.chain.mine()
                here.chain.rpc("evm_setAutomine", True)
                assert request.result().status == 200
        finally:
            here.chain.rpc("evm_setAutomine", True)
        check_books(here)
        assert paid_for(here, before_atomic) == 1


@pytest.mark.parametrize("step", SIGNING)
def test_a_purchase_signs_what_was_asked_for_and_no_more_when_it_dies_at(
    step: str, tmp_path: Path, world: Devnet, warm: Warm
) -> None:
    with town(tmp_path, world, warm) as here:
        for name in ("model-server", "settle", "sell"):
            here.start(name)
        here.farebox(*here.buy_words(8), expect=KILLED, environment={VARIABLE: step})
        signed = _count(here, "SELECT count(*) FROM authorizations")
        promised = signed + _count(here, "SELECT count(*) FROM intents")
        assert promised == 8
        if signed < 8:
            here.buy(8)
        assert _count(here, "SELECT count(*) FROM authorizations") == 8
        assert _count(here, "SELECT count(*) FROM intents") == 0
        here.start("serve")
        assert repeat_until_final(here, "after", body_of("after")).status == 200
        check_books(here, signed=8)


def _count(here: Town, query: str) -> int:
    with closing(sqlite3.connect(here.pool_file)) as connection:
        count: int = connection.execute(query).fetchone()[0]
        return count


def _let_time_pass(here: Town, *, seconds: int) -> None:
    """Make what was signed look old to the worker that is about to start: it measures time since then."""
    with closing(sqlite3.connect(here.seller_file)) as connection:
        connection.execute("UPDATE signed_forms SET created_ms = created_ms - ?", (seconds * 1000,))
        connection.commit()

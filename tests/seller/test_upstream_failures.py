"""What is not delivered is not charged; where the money had moved already, it is a credit for the same request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contracts.evm.devnet import Devnet
from seller.limits import RUNS_MAX
from tests.seller.shop import BODY, PRICE_ATOMIC, Shop, error_of, is_replayed, open_shop, receipt_of, served_once


@pytest.fixture(params=["auto", "after", "async"])
async def shop(request: pytest.FixtureRequest, chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle=request.param) as opened:
        yield opened


@pytest.fixture
async def strict(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle="before") as opened:
        yield opened


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
async def test_an_upstream_that_says_no_is_passed_on_and_not_charged(shop: Shop, status: int) -> None:
    shop.app.status, shop.app.body = status, b"busy"
    shop.app.headers = [(b"retry-after", b"7"), (b"x-reason", b"load")]
    answer = await shop.buy()
    assert (answer.status_code, answer.content) == (status, b"busy")
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-farebox-charged"] == "false"
    assert "payment-response" not in answer.headers
    assert shop.seller.ledger.sums().outstanding_atomic == 0
    assert shop.earned == 0


async def test_the_same_payment_buys_the_same_request_once_the_upstream_recovers(shop: Shop) -> None:
    header = shop.payment()
    shop.app.status = 503
    assert (await shop.buy(header)).status_code == 503
    shop.app.status = 200
    other = await shop.buy(header, body=BODY.replace(b"hi", b"ho"))
    assert (other.status_code, error_of(other)["code"]) == (402, "payment_replayed")
    assert (await shop.buy(header)).status_code == 200
    assert is_replayed(await shop.buy(header))
    await shop.settled()
    assert shop.earned == PRICE_ATOMIC
    assert shop.app.runs == 2


async def dies(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("out of memory")


async def dies_after_its_headers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    raise RuntimeError("out of memory")


async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
    return


@pytest.mark.parametrize("behave", [dies, dies_after_its_headers, says_nothing])
async def test_an_application_that_dies_before_its_first_byte_is_502_and_not_charged(shop: Shop, behave: Any) -> None:
    shop.app.behave = behave
    answer = await shop.buy()
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")
    assert answer.headers["x-farebox-charged"] == "false"
    assert "memory" not in answer.text
    assert shop.seller.ledger.sums().outstanding_atomic == 0
    assert shop.earned == 0


@pytest.mark.parametrize("shop", ["auto", "async"], indirect=True)
async def test_a_stream_that_breaks_after_its_first_byte_is_charged(shop: Shop) -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("cable")

    shop.app.behave = breaks
    with pytest.raises(RuntimeError, match="cable"):
        await shop.buy()
    await shop.settled()
    assert shop.earned == PRICE_ATOMIC


async def test_a_request_that_is_cancelled_before_its_first_byte_is_not_charged(shop: Shop) -> None:
    running = asyncio.Event()

    async def thinks(scope: Any, receive: Any, send: Any) -> None:
        running.set()
        await asyncio.Event().wait()

    shop.app.behave = thinks
    request = asyncio.ensure_future(shop.buy())
    await running.wait()
    request.cancel()
    await asyncio.wait([request])
    sums = shop.seller.ledger.sums()
    assert (sums.outstanding_atomic, sums.payments) == (0, {"void": 1})


async def test_a_payment_cannot_start_the_work_for_ever(shop: Shop) -> None:
    header = shop.payment()
    shop.app.status = 500
    statuses = [(await shop.buy(header)).status_code for _ in range(RUNS_MAX + 1)]
    assert statuses == [500] * RUNS_MAX + [402]
    assert shop.app.runs == RUNS_MAX


async def test_after_settling_first_a_failure_is_a_credit_for_the_same_request(strict: Shop) -> None:
    header = strict.payment()
    strict.app.status = 500
    failed = await strict.buy(header)
    assert failed.status_code == 500
    assert failed.headers["x-farebox-credit"] == "true"
    assert receipt_of(failed).success
    assert strict.earned == PRICE_ATOMIC
    other = await strict.buy(header, body=BODY.replace(b"hi", b"ho"))
    assert other.status_code == 402
    strict.app.status = 200
    served = await strict.buy(header)
    assert served.status_code == 200
    assert receipt_of(served).transaction == receipt_of(failed).transaction
    assert is_replayed(await strict.buy(header))
    await strict.settled()
    assert strict.earned == PRICE_ATOMIC


async def test_a_credit_is_spent_once_by_sixty_four_requests(strict: Shop) -> None:
    header = strict.payment()
    strict.app.behave = dies
    assert (await strict.buy(header)).status_code == 502
    strict.app.behave = None
    answers = await asyncio.gather(*(strict.buy(header) for _ in range(64)))
    assert served_once(answers)
    assert strict.app.runs == 2
    assert strict.earned == PRICE_ATOMIC


async def test_money_that_cannot_move_after_the_work_withholds_the_goods(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="auto") as shop:

        async def pauses_the_token(scope: Any, receive: Any, send: Any) -> None:
            chain.set_paused(True)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"the goods"})

        shop.app.behave = pauses_the_token
        header = shop.payment()
        answer = await shop.buy(header)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "token_paused")
        assert b"the goods" not in answer.content
        assert not receipt_of(answer).success
        assert shop.seller.ledger.sums().outstanding_atomic == 0
        chain.set_paused(False)
        shop.app.behave = None
        assert (await shop.buy(header)).status_code == 200
        assert shop.earned == PRICE_ATOMIC


async def test_an_answer_that_goes_on_after_its_refusal_is_dropped(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="auto") as shop:

        async def streams(scope: Any, receive: Any, send: Any) -> None:
            chain.set_paused(True)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(3):
                await send({"type": "http.response.body", "body": b"the goods", "more_body": True})

        shop.app.behave = streams
        answer = await shop.buy()
        assert answer.status_code == 402
        assert b"the goods" not in answer.content

"""Goods before settlement: `async`, and `auto` for a payer that has paid here before; the caps that bound it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from tests.seller.shop import (
    BUYER,
    OTHER,
    PRICE_ATOMIC,
    Shop,
    error_of,
    open_shop,
    receipt_of,
    served_once,
)


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle="async") as opened:
        yield opened


def queued(shop: Shop) -> int:
    return shop.seller.ledger.sums().payments.get("queued", 0)


async def test_the_answer_says_that_its_settlement_is_queued_and_the_money_follows(shop: Shop) -> None:
    receipt = receipt_of(await shop.buy())
    assert receipt.success
    assert receipt.transaction == ""
    assert receipt.extra == {"settlement": "queued"}
    await shop.settled()
    assert shop.earned == PRICE_ATOMIC
    assert shop.seller.ledger.sums().earned_atomic == PRICE_ATOMIC


async def test_auto_settles_a_new_payer_first_and_then_gives_it_credit(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="auto") as shop:
        first, second = await shop.buy(), await shop.buy()
        assert receipt_of(first).transaction.startswith("0x")
        assert receipt_of(second).extra == {"settlement": "queued"}
        await shop.settled()
        assert shop.earned == 2 * PRICE_ATOMIC


async def test_sixty_four_equal_payments_on_credit_run_the_handler_once(shop: Shop) -> None:
    header = shop.payment()
    answers = await asyncio.gather(*(shop.buy(header) for _ in range(64)))
    assert served_once(answers)
    assert shop.app.runs == 1
    await shop.settled()
    assert shop.earned == PRICE_ATOMIC


async def test_above_the_cap_of_one_payer_async_answers_429(chain: Devnet, tmp_path: Path) -> None:
    caps = {"per_payer": "0.003", "total": "1"}
    async with open_shop(chain, tmp_path, settle="async", exposure=caps, settles=False) as shop:
        answers = [await shop.buy() for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert error_of(answers[3])["code"] == "exposure_exceeded"
        assert int(answers[3].headers["retry-after"]) > 0
        assert shop.app.runs == 3


async def test_the_cap_holds_against_a_hundred_requests_at_once(chain: Devnet, tmp_path: Path) -> None:
    caps = {"per_payer": "0.007", "total": "1"}
    async with open_shop(chain, tmp_path, settle="async", exposure=caps, settles=False) as shop:
        answers = await asyncio.gather(*(shop.buy() for _ in range(100)))
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [429] * 93
        assert shop.app.runs == 7
        assert shop.seller.ledger.sums().exposure_atomic == 7 * PRICE_ATOMIC


async def test_the_total_cap_holds_over_all_payers(chain: Devnet, tmp_path: Path) -> None:
    chain.mint(chain.accounts[OTHER].address, 1_000_000)
    caps = {"per_payer": "1", "total": "0.003"}
    async with open_shop(chain, tmp_path, settle="async", exposure=caps, settles=False) as shop:
        answers = [await shop.buy(shop.payment(account)) for account in (BUYER, OTHER, BUYER, OTHER)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]


async def test_auto_settles_first_again_above_the_cap(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="auto", exposure={"per_payer": "0", "total": "1"}) as shop:
        answers = [await shop.buy() for _ in range(3)]
        assert all(receipt_of(answer).transaction.startswith("0x") for answer in answers)
        assert shop.earned == 3 * PRICE_ATOMIC


async def test_a_payer_cannot_promise_more_than_it_has(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="async", funds=2 * PRICE_ATOMIC, settles=False) as shop:
        answers = [await shop.buy() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        poor = await shop.buy(shop.payment(OTHER))
        assert (poor.status_code, error_of(poor)["code"]) == (402, "insufficient_funds")


async def test_a_balance_that_shrank_since_it_was_asked_gives_no_credit(shop: Shop) -> None:
    shop.chain.mint(shop.chain.accounts[OTHER].address, PRICE_ATOMIC)
    assert (await shop.buy(shop.payment(OTHER))).status_code == 200
    await shop.settled()
    # The remembered balance is one price; what has been settled since is not there any more.
    answer = await shop.buy(shop.payment(OTHER))
    assert (answer.status_code, error_of(answer)["code"]) == (402, "insufficient_funds")
    assert shop.app.runs == 1


async def test_credit_without_a_worker_waits_in_the_store_for_one(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="async", settles=False) as mounted:
        for _ in range(3):
            assert (await mounted.buy()).status_code == 200
        assert queued(mounted) == 3
        assert mounted.earned == 0
        async with open_shop(chain, tmp_path, settle="async", funds=0) as worker:
            await worker.settled()
        assert mounted.earned == 3 * PRICE_ATOMIC
        assert len(mounted.seller.ledger.transactions(10)) == 1


async def test_without_a_worker_settling_first_is_503_and_costs_nothing(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="before", settles=False) as mounted:
        header = mounted.payment()
        answer = await mounted.buy(header)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "settlement_unavailable")
        assert "retry-after" in answer.headers
        assert mounted.app.runs == 0
        assert mounted.seller.ledger.sums().payments == {}
        async with open_shop(chain, tmp_path, settle="before", funds=0):
            assert (await mounted.buy(header)).status_code == 200
        assert mounted.earned == PRICE_ATOMIC

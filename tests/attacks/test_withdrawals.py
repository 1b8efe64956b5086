"""S5: the work a payer can take by withdrawing its money while the model computes: once, and within the total cap."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.evm.devnet import Devnet
from seller.cli import commands
from tests.attacks.parts import attacked
from tests.attacks.test_chain_tricks import Thinking, revoke
from tests.patience import PATIENCE_S
from tests.seller.shop import BUYER, PRICE_ATOMIC, Shop, error_of, open_shop

STRANGERS = range(3, 9)
"""Accounts of the chain that nobody here knows."""


async def withdraw_once(chain: Devnet, shop: Shop, how: str) -> None:
    """Let a stranger have work begun for it, whose payment is then no good any more."""
    thinking = shop.app.behave = Thinking(shop.app.body)
    header = shop.payment(valid_before_s=int(time.time()) + 60)
    call = asyncio.ensure_future(shop.buy(header))
    await thinking.begun.wait()
    if how == "revoked":
        await asyncio.to_thread(revoke, chain, shop, header)
    else:
        # No transaction is needed for this one, only a slow answer.
        await asyncio.to_thread(chain.rpc, "evm_increaseTime", 120)
        await asyncio.to_thread(chain.mine)
    thinking.go_on.set()
    assert (await call).status_code == 402


def paid_at_each_run(shop: Shop) -> list[int]:
    """Return a list that will hold what the seller had earned on chain as each run of its application began."""
    earned: list[int] = []

    async def note_and_answer(scope: Any, receive: Any, send: Any) -> None:
        earned.append(shop.earned)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": shop.app.body})

    shop.app.behave = note_and_answer
    return earned


@pytest.mark.parametrize("settle", ["auto", "after"])
@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_who_withdrew_once_settles_before_any_work_from_then_on(
    chain: Devnet, tmp_path: Path, settle: str, how: str
) -> None:
    async with attacked(chain, tmp_path, settle=settle) as (shop, till):
        await withdraw_once(chain, shop, how)
        till.expect(withdrawn_runs=1)
        earned = paid_at_each_run(shop)
        later = int(time.time()) + 3600
        assert (await shop.buy(shop.payment(valid_before_s=later))).status_code == 200
        assert earned == [PRICE_ATOMIC]
    # The mark is in the store: a restart does not forgive, and neither does a history of good payments.
    async with open_shop(chain, tmp_path, settle=settle, funds=0) as shop:
        earned = paid_at_each_run(shop)
        for _ in range(2):
            assert (await shop.buy(shop.payment(valid_before_s=later))).status_code == 200
        assert earned == [2 * PRICE_ATOMIC, 3 * PRICE_ATOMIC]


async def test_who_took_goods_on_credit_and_did_not_pay_gets_no_credit_any_more(chain: Devnet, tmp_path: Path) -> None:
    async with attacked(chain, tmp_path, exposure={"per_payer": "0.001", "total": "1"}) as (shop, till):
        await shop.trust()
        header = shop.payment()
        await asyncio.to_thread(revoke, chain, shop, header)
        assert (await shop.buy(header)).status_code == 200
        await shop.settled()
        till.expect(unpaid_credit=1)
        for _ in range(3):
            header = shop.payment()
            await asyncio.to_thread(revoke, chain, shop, header)
            assert (await shop.buy(header)).status_code == 402
        assert shop.app.runs == 2


@pytest.mark.parametrize("settle", ["auto", "after"])
async def test_a_token_that_stood_still_is_not_held_against_its_payers(
    chain: Devnet, tmp_path: Path, settle: str
) -> None:
    async with attacked(chain, tmp_path, settle=settle) as (shop, _):
        thinking = shop.app.behave = Thinking(shop.app.body)
        header = shop.payment()
        call = asyncio.ensure_future(shop.buy(header))
        await thinking.begun.wait()
        await asyncio.to_thread(chain.set_paused, True)
        thinking.go_on.set()
        answer = await call
        assert (answer.status_code, error_of(answer)["code"]) == (402, "token_paused")
        await asyncio.to_thread(chain.set_paused, False)
        earned = paid_at_each_run(shop)
        assert (await shop.buy(header)).status_code == 200
        assert earned == [0], "the work came first, as for any stranger"


async def test_the_seller_can_trust_a_payer_again_that_withdrew(chain: Devnet, tmp_path: Path) -> None:
    payer = chain.accounts[BUYER].address
    async with attacked(chain, tmp_path, settle="auto") as (shop, till):
        assert told(shop, tmp_path) == {"lifted": [], "settle_first": []}
        await withdraw_once(chain, shop, "revoked")
        till.expect(withdrawn_runs=1)
        (marked,) = told(shop, tmp_path)["settle_first"]
        assert (marked["payer"], marked["withdrawn"], marked["settled"]) == (payer, 1, "0.00 USDC")
        assert told(shop, tmp_path, "--lift", payer.lower()) == {"lifted": [payer], "settle_first": []}
        earned = paid_at_each_run(shop)
        assert (await shop.buy()).status_code == 200
        assert earned == [0], "the work came first, as for any stranger"
        assert told(shop, tmp_path, "--lift", payer)["error"]["code"] == "not_found"


def told(shop: Shop, folder: Path, *words: str) -> dict[str, Any]:
    """Run `farebox payers WORDS` on a shop's settings; return its document."""
    config = folder / "seller.yaml"
    config.write_text(shop.seller.config.model_dump_json())
    result = CliRunner().invoke(commands, ["payers", "--config", str(config), *words, "--json"])
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("status", [422, 200], ids=["a model that refuses", "a client that pays"])
async def test_an_honest_stranger_is_not_marked(chain: Devnet, tmp_path: Path, status: int) -> None:
    async with attacked(chain, tmp_path, exposure={"per_payer": "0", "total": "1"}) as (shop, till):
        shop.app.status, goods = status, shop.app.body
        shop.app.body = goods if status == 200 else b"no"
        assert (await shop.buy()).status_code == status
        till.expect(failed_runs=int(status != 200))
        shop.app.body = goods
        before = shop.earned
        earned = paid_at_each_run(shop)
        assert (await shop.buy()).status_code == 200
        assert earned == [before], "the work came first, as for any stranger"


async def test_strangers_who_withdraw_together_take_no_more_than_the_total_cap(chain: Devnet, tmp_path: Path) -> None:
    caps = {"per_payer": "1", "total": "0.003"}
    async with attacked(chain, tmp_path, exposure=caps) as (shop, till):
        for account in STRANGERS:
            chain.mint(chain.accounts[account].address, PRICE_ATOMIC)
        thinking = shop.app.behave = Thinking(shop.app.body)
        calls = [asyncio.ensure_future(shop.buy(shop.payment(account))) for account in STRANGERS]
        async with asyncio.timeout(PATIENCE_S):
            while shop.app.runs < len(STRANGERS):  # noqa: ASYNC110 - the runs begin when they may
                await asyncio.sleep(0.02)
        # Three work on trust; for the others there was no room, and their money has moved.
        assert shop.earned == (len(STRANGERS) - 3) * PRICE_ATOMIC
        for account in STRANGERS:
            chain.set_blocked(chain.accounts[account].address, True)
        thinking.go_on.set()
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [402] * 3
        till.expect(withdrawn_runs=3)


async def test_a_payer_on_credit_and_strangers_share_one_cap(chain: Devnet, tmp_path: Path) -> None:
    caps = {"per_payer": "1", "total": "0.002"}
    async with attacked(chain, tmp_path, exposure=caps) as (shop, _):
        await shop.trust(BUYER)
        thinking = shop.app.behave = Thinking(shop.app.body)
        for account in (4, 5):
            chain.mint(chain.accounts[account].address, PRICE_ATOMIC)
        strangers = [asyncio.ensure_future(shop.buy(shop.payment(account))) for account in (4, 5)]
        async with asyncio.timeout(PATIENCE_S):
            while shop.app.runs < 3:  # noqa: ASYNC110 - both have begun
                await asyncio.sleep(0.02)
        before = shop.earned
        known = asyncio.ensure_future(shop.buy())
        async with asyncio.timeout(PATIENCE_S):
            while shop.app.runs < 4:  # noqa: ASYNC110 - it begins once it is settled
                await asyncio.sleep(0.02)
        assert shop.earned == before + PRICE_ATOMIC
        thinking.go_on.set()
        assert [(await call).status_code for call in (*strangers, known)] == [200] * 3

"""Clocks two hours apart: no goods for an expired payment, no money without goods, whichever clock is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from tests.faults.asking import body_of, repeat_until_final
from tests.faults.place import check_books
from tests.faults.town import MODEL, PRICE, PRICE_ATOMIC, town
from tests.seller.shop import GAS, Shop, error_of, open_shop
from tests.warm import Warm

HOURS_2 = 2 * 3600
SETTLE = pytest.mark.parametrize("settle", ["before", "after", "async", "auto"])


def set_our_clock(monkeypatch: pytest.MonkeyPatch, offset_s: int) -> None:
    """Stand in for a machine whose clock is wrong; the chain's is right."""
    true_time, true_time_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: true_time() + offset_s)
    monkeypatch.setattr(time, "time_ns", lambda: true_time_ns() + offset_s * 10**9)


def check_nothing_happened(shop: Shop) -> None:
    assert (shop.app.runs, shop.earned) == (0, 0)
    assert shop.seller.ledger.sums().payments == {}


@SETTLE
async def test_a_seller_whose_clock_is_behind_gives_no_goods_for_what_the_chain_holds_expired(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        chain.mine()
        expired = shop.payment(valid_before_s=int(time.time()) - 60)
        good = shop.payment(valid_before_s=int(time.time()) + 600)
        set_our_clock(monkeypatch, -HOURS_2)
        answer = await shop.buy(expired)
        assert answer.status_code == 402, answer.text
        check_nothing_happened(shop)
        assert (await shop.buy(good)).status_code == 200
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


@SETTLE
async def test_a_seller_whose_clock_is_ahead_loses_no_valid_payment_and_gives_nothing_for_an_expired_one(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        chain.mine()
        expired, short, long = (
            shop.payment(valid_before_s=int(time.time()) + life_s) for life_s in (-60, 600, HOURS_2 + 600)
        )
        set_our_clock(monkeypatch, HOURS_2)
        answer = await shop.buy(expired)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_expired")
        check_nothing_happened(shop)
        assert (await shop.buy(short)).status_code == 200
        assert (await shop.buy(long)).status_code == 200
        await shop.settled()
        assert (shop.app.runs, shop.earned) == (2, 2 * PRICE_ATOMIC)


@SETTLE
async def test_a_seller_whose_clock_is_behind_loses_no_payment_that_has_become_valid(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        chain.mine()
        valid, early = (shop.payment(valid_after_s=int(time.time()) + after_s) for after_s in (-60, 300))
        set_our_clock(monkeypatch, -HOURS_2)
        answer = await shop.buy(early)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_not_yet_valid")
        check_nothing_happened(shop)
        assert (await shop.buy(valid)).status_code == 200
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


@SETTLE
async def test_a_seller_whose_clock_is_ahead_does_not_work_for_what_becomes_valid_later(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        chain.mine()
        early = shop.payment(valid_after_s=int(time.time()) + 3600, valid_before_s=int(time.time()) + HOURS_2 + 600)
        set_our_clock(monkeypatch, HOURS_2)
        answer = await shop.buy(early)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_not_yet_valid")
        check_nothing_happened(shop)


@SETTLE
async def test_on_a_chain_that_stood_still_for_an_hour_the_clocks_agree_to_take_what_is_valid_and_nothing_else(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        chain.mine()
        set_our_clock(monkeypatch, 3600)
        chain.rpc("evm_increaseTime", 3600)
        now_s = int(time.time())
        spent_gas = chain.rpc("eth_getTransactionCount", chain.accounts[GAS].address, "latest")
        answer = await shop.buy(shop.payment(valid_before_s=now_s - 60))
        assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_expired")
        check_nothing_happened(shop)
        assert chain.rpc("eth_getTransactionCount", chain.accounts[GAS].address, "latest") == spent_gas
        fresh = shop.payment(valid_after_s=now_s - 60, valid_before_s=now_s + 600)
        assert (await shop.buy(fresh)).status_code == 200
        await shop.settled()
        assert (shop.app.runs, shop.earned) == (1, PRICE_ATOMIC)


@pytest.mark.parametrize("settle", ["before", "async"])
async def test_a_chain_that_is_ahead_of_everybody_expires_payments_and_nobody_works_for_them(
    chain: Devnet, tmp_path: Path, settle: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        short, long = (shop.payment(valid_before_s=int(time.time()) + life_s) for life_s in (600, HOURS_2 + 600))
        chain.rpc("evm_increaseTime", HOURS_2)
        chain.mine()
        answer = await shop.buy(short)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_expired")
        check_nothing_happened(shop)
        assert (await shop.buy(long)).status_code == 200
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


def test_bought_ahead_calls_are_served_and_the_books_agree_while_the_chain_is_two_hours_ahead(
    tmp_path: Path, chain: Devnet, warm: Warm
) -> None:
    chain.rpc("evm_increaseTime", HOURS_2)
    chain.mine()
    with town(tmp_path, chain, warm) as here:
        here.start_all(4)
        assert repeat_until_final(here, "first", body_of("first")).status == 200
        chain.rpc("evm_increaseTime", HOURS_2)
        chain.mine()
        assert repeat_until_final(here, "second", body_of("second")).status == 200
        check_books(here, signed=4)
        assert here.earned_atomic() == 2 * PRICE_ATOMIC


@pytest.mark.slow
@pytest.mark.parametrize("offset_s", [HOURS_2, -HOURS_2], ids=["ahead", "behind"])
@pytest.mark.parametrize("side", ["seller", "buyer"])
def test_whole_processes_whose_clock_is_wrong_lose_no_payment(
    tmp_path: Path, chain: Devnet, warm: Warm, side: str, offset_s: int
) -> None:
    parts = ("sell", "settle") if side == "seller" else ("serve", "farebox")
    with town(tmp_path, chain, warm) as here:
        here.clocks = dict.fromkeys(parts, float(offset_s))
        chain.mine()
        here.start_all(4)
        # The second one is on credit, and the third finds out after everybody has started anew.
        for name in ("first", "second"):
            assert repeat_until_final(here, name, body_of(name)).status == 200
        here.kill("sell", "serve")
        here.start("sell")
        here.start("serve")
        assert repeat_until_final(here, "third", body_of("third")).status == 200
        assert here.runs_by_prompt() == {"first": 1, "second": 1, "third": 1}
        check_books(here, signed=4)
        assert here.earned_atomic() == 3 * PRICE_ATOMIC
        if side == "seller":
            # Bought on the spot, a payment lives for minutes.
            url, data = f"{here.seller_url}/v1/chat/completions", json.dumps({**body_of("fourth"), "model": MODEL})
            wallet = ["--signer", "keyfile:buyer.key", "--rpc", chain.rpc_url, "--network", chain.network]
            here.farebox("pay", url, "--max-price", PRICE, "--data", data, *wallet)
            here.wait_for(lambda: here.earned_atomic() == 4 * PRICE_ATOMIC, here.running["settle"], "not settled")

"""The chain changes its mind: re-organisations, dropped transactions, fees that jump, a token that stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from tests.faults.test_rpc import check_books, nonces_used
from tests.patience import PATIENCE_S
from tests.seller.shop import BUYER, GAS, PRICE_ATOMIC, Shop, error_of, open_shop, write_key


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seller.settlement.chain.RESEND_AFTER_S", 0.3)
    monkeypatch.setattr("seller.settlement.engine.FAILURE_PAUSE_S", 0.05)
    monkeypatch.setattr("seller.settlement.engine.REORG_CHECK_S", 0.05)


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle="before") as opened:
        yield opened


async def pending(chain: Devnet) -> str:
    """Wait until a transaction waits to be mined, and return its hash."""
    while True:
        block = chain.rpc("eth_getBlockByNumber", "pending", False)
        if block["transactions"]:
            return str(block["transactions"][0])
        await asyncio.sleep(0.01)


async def test_a_dropped_transaction_is_sent_again_and_settles_once(chain: Devnet, shop: Shop) -> None:
    chain.rpc("evm_setAutomine", False)
    try:
        request = asyncio.ensure_future(shop.buy())
        transaction = await pending(chain)
        before = nonces_used(chain)
        chain.rpc("anvil_dropTransaction", transaction)
        assert await pending(chain) == transaction
        chain.mine()
        assert (await request).status_code == 200
    finally:
        chain.rpc("evm_setAutomine", True)
    assert nonces_used(chain) == before + 1
    check_books(shop, 1)


async def test_a_fee_that_jumps_is_followed_and_the_payment_settles_once(
    chain: Devnet, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.chain.FEE_BUMP_AFTER_S", 0.3)
    chain.rpc("evm_setAutomine", False)
    try:
        request = asyncio.ensure_future(shop.buy())
        transaction = chain.rpc("eth_getTransactionByHash", await pending(chain))
        # Just above what the first fee allows; two raises get there.
        base_fee = int(transaction["maxFeePerGas"], 16) * 5 // 4
        async with asyncio.timeout(PATIENCE_S):
            while not request.done():
                chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(base_fee))
                chain.mine()
                await asyncio.sleep(0.1)
        assert (await request).status_code == 200
    finally:
        chain.rpc("evm_setAutomine", True)
    check_books(shop, 1)


async def test_no_more_is_offered_for_gas_than_the_settings_allow(chain: Devnet, tmp_path: Path) -> None:
    base_fee = int(chain.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    priority_fee = int(chain.rpc("eth_maxPriorityFeePerGas"), 16)
    most = base_fee + priority_fee + 1
    key_file = str(write_key(tmp_path, chain.accounts[GAS].key))
    settler = {"kind": "chain", "key_file": key_file, "max_fee_wei": most}
    async with open_shop(chain, tmp_path, settle="before", settler=settler) as shop:
        header = shop.payment()
        try:
            mine_at(chain, most + 1)
            refused = await shop.buy(header)
            assert (refused.status_code, error_of(refused)["code"]) == (503, "settlement_unavailable")
            assert (shop.app.runs, shop.earned) == (0, 0)
        finally:
            mine_at(chain, base_fee)
        async with asyncio.timeout(PATIENCE_S):
            while (await shop.buy(header)).status_code != 200:  # noqa: ASYNC110 - the worker looks again in its own time
                await asyncio.sleep(0.1)
        (transaction,) = shop.seller.ledger.transactions(20)
        # Without a limit it would offer twice the base fee, and more.
        assert int(chain.rpc("eth_getTransactionByHash", transaction)["maxFeePerGas"], 16) == most
        check_books(shop, 1)


async def test_a_fee_is_not_raised_above_what_the_settings_allow(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.chain.FEE_BUMP_AFTER_S", 0.0)
    # So little that empty blocks do not lower it: what is offered at first leaves no room for a raise.
    mine_at(chain, 7)
    base_fee = int(chain.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    most = 2 * base_fee + int(chain.rpc("eth_maxPriorityFeePerGas"), 16) + 1
    key_file = str(write_key(tmp_path, chain.accounts[GAS].key))
    settler = {"kind": "chain", "key_file": key_file, "max_fee_wei": most}
    async with open_shop(chain, tmp_path, settle="async", settler=settler) as shop:
        chain.rpc("evm_setAutomine", False)
        try:
            assert (await shop.buy()).status_code == 200
            first = await pending(chain)
            # The worker looks again and again meanwhile.
            await asyncio.sleep(1)
            assert await pending(chain) == first
        finally:
            chain.rpc("evm_setAutomine", True)
            chain.mine()
        await shop.settled()
        check_books(shop, 1)


def mine_at(chain: Devnet, base_fee_wei: int) -> None:
    """Mine a block in which, and at first after which, gas costs this much."""
    chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(base_fee_wei))
    chain.mine()


def stop(chain: Devnet, what: str, *, stopped: bool) -> None:
    """Let the token's owner stop one payer, or everybody."""
    if what == "payer":
        chain.set_blocked(chain.accounts[BUYER].address, stopped)
    else:
        chain.set_paused(stopped)


@pytest.mark.parametrize("what", ["payer", "token"])
@pytest.mark.parametrize("settle", ["before", "after", "auto"])
async def test_a_token_that_stops_between_the_check_and_the_settlement_costs_nobody_money_or_goods(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str, what: str
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:

        async def block_and_answer(scope: object, receive: object, send: object) -> None:
            stop(chain, what, stopped=True)
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
            await send({"type": "http.response.body", "body": b"secret goods"})  # type: ignore[operator]

        shop.app.behave = block_and_answer
        if settle == "before":
            # There is no work before the settlement: it stops when the claim is in the queue.
            monkeypatch.setattr(shop.seller.counter, "announce", lambda: stop(chain, what, stopped=True))
        header = shop.payment()
        answer = await shop.buy(header)
        assert answer.status_code in (402, 503), answer.text
        assert b"secret goods" not in answer.content
        assert shop.earned == 0
        assert shop.seller.ledger.sums().outstanding_atomic == 0
        # Nothing was burnt: when the token moves again, the same payment buys the same goods.
        monkeypatch.undo()
        stop(chain, what, stopped=False)
        shop.app.behave = None
        assert (await shop.buy(header)).status_code == 200
        await shop.settled()
        check_books(shop, 1)


@pytest.mark.parametrize("what", ["payer", "token"])
async def test_goods_on_credit_are_paid_when_the_token_moves_again(chain: Devnet, tmp_path: Path, what: str) -> None:
    async with open_shop(chain, tmp_path, settle="async") as shop:
        stop(chain, what, stopped=True)
        answers = [await shop.buy() for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}
        await asyncio.sleep(1.5)
        assert shop.earned == 0
        stop(chain, what, stopped=False)
        await shop.settled()
        check_books(shop, 3)


@pytest.mark.parametrize("depth", [1, 2, 5])
async def test_after_a_re_organisation_the_books_and_the_chain_agree_again(
    own_chain: Devnet, tmp_path: Path, depth: int
) -> None:
    async with open_shop(own_chain, tmp_path, settle="before") as shop:
        for _ in range(depth):
            assert (await shop.buy()).status_code == 200
        assert shop.earned == depth * PRICE_ATOMIC
        # The same number of empty blocks in place of the last ones: their transactions are gone.
        own_chain.rpc("anvil_reorg", depth, [])
        assert shop.earned == 0
        assert (await shop.buy()).status_code == 200
        async with asyncio.timeout(PATIENCE_S):
            while shop.earned != (depth + 1) * PRICE_ATOMIC:
                own_chain.mine()
                await asyncio.sleep(0.1)
        await shop.settled()
        check_books(shop, depth + 1)


async def test_a_gas_account_that_is_emptied_stops_selling_and_goes_on_when_it_is_filled(
    chain: Devnet, shop: Shop
) -> None:
    chain.fund_gas(chain.accounts[GAS].address, 0)
    answer = await shop.buy()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "settlement_unavailable")
    assert shop.app.runs == 0
    chain.fund_gas(chain.accounts[GAS].address, 10**20)
    async with asyncio.timeout(PATIENCE_S):
        while (await shop.buy()).status_code != 200:  # noqa: ASYNC110 - the worker looks again in its own time
            await asyncio.sleep(0.1)

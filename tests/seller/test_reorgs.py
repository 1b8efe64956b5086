"""When the chain takes a transfer back, the books follow it, and the money is fetched again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from contracts.lifecycle import Money
from seller.audit import audit_books
from tests.patience import PATIENCE_S
from tests.seller.shop import BUYER, PRICE_ATOMIC, Shop, error_of, is_replayed, open_shop, receipt_of


@pytest.fixture
def chain(own_chain: Devnet) -> Devnet:
    """Every test here re-organises."""
    return own_chain


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again soon, so that a test of looking again is short."""
    monkeypatch.setattr("seller.settlement.engine.REORG_CHECK_S", 0.05)
    monkeypatch.setattr("seller.settlement.chain.RESEND_AFTER_S", 0.2)


def reorganise(chain: Devnet, depth: int) -> None:
    """Replace the last `depth` blocks by empty ones: what was in them is dropped."""
    chain.rpc("anvil_reorg", depth, [])


def height(chain: Devnet) -> int:
    return int(chain.rpc("eth_blockNumber"), 16)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is a row in a store
            await asyncio.sleep(0.02)


def money_of(shop: Shop, payment_id: int = 1) -> Money:
    state = shop.seller.ledger.state(payment_id)
    assert state is not None
    return state.money


def unproven(shop: Shop) -> int:
    (count,) = shop.seller.ledger.database.read(
        lambda connection: connection.execute("SELECT count(*) FROM unproven").fetchone()
    )
    return int(count)


@pytest.mark.parametrize("settle", ["before", "auto", "async"])
@pytest.mark.parametrize("depth", [1, 3])
async def test_a_transfer_that_was_taken_back_is_sent_again(
    chain: Devnet, tmp_path: Path, settle: str, depth: int
) -> None:
    async with open_shop(chain, tmp_path, settle=settle) as shop:
        header = shop.payment()
        assert (await shop.buy(header)).status_code == 200
        await shop.settled()
        first = shop.seller.ledger.transactions(1)
        for _ in range(depth - 1):
            chain.mine()
        reorganise(chain, depth)
        assert shop.earned == 0
        await until(lambda: shop.earned == PRICE_ATOMIC)
        await shop.settled()
        # The same bytes: there is one transaction, and it is the first.
        assert shop.seller.ledger.transactions(1) == first
        assert shop.seller.ledger.sums().earned_atomic == PRICE_ATOMIC
        again = await shop.buy(header)
        assert is_replayed(again)
        assert receipt_of(again).transaction == first[0]


async def test_while_the_money_is_gone_it_is_not_booked_as_earned(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="before") as shop:
        header = shop.payment()
        assert (await shop.buy(header)).status_code == 200
        await until(lambda: unproven(shop) == 1)
        reorganise(chain, 1)
        balance = chain.balance_of(chain.accounts[BUYER].address)
        chain.rpc("evm_setAutomine", False)
        try:
            await until(lambda: money_of(shop) is Money.SUBMITTED)
            sums = shop.seller.ledger.sums()
            assert (sums.earned_atomic, sums.outstanding_atomic, sums.exposure_atomic) == (
                0,
                PRICE_ATOMIC,
                PRICE_ATOMIC,
            )
            assert chain.balance_of(chain.accounts[BUYER].address) == balance
            # What was served stays served, on credit.
            again = await shop.buy(header)
            assert is_replayed(again)
            assert receipt_of(again).extra == {"settlement": "queued"}
            chain.mine()
        finally:
            chain.rpc("evm_setAutomine", True)
        await shop.settled()
        assert shop.seller.ledger.sums().earned_atomic == shop.earned == PRICE_ATOMIC
        assert shop.seller.ledger.sums().exposure_atomic == 0


async def test_a_credit_whose_money_was_taken_back_is_withdrawn_until_it_is_paid_again(
    chain: Devnet, tmp_path: Path
) -> None:
    async with open_shop(chain, tmp_path, settle="before") as shop:
        shop.app.status = 500
        header = shop.payment()
        assert (await shop.buy(header)).headers["x-farebox-credit"] == "true"
        shop.app.status = 200
        chain.rpc("evm_setAutomine", False)
        try:
            reorganise(chain, 1)
            await until(lambda: money_of(shop) is not Money.SETTLED)
            early = await shop.buy(header)
            assert (early.status_code, error_of(early)["code"]) == (503, "settlement_unavailable")
            assert shop.app.runs == 1
            chain.mine()
        finally:
            chain.rpc("evm_setAutomine", True)
        await shop.settled()
        served = await shop.buy(header)
        assert (served.status_code, served.headers["x-farebox-credit"]) == (200, "true")
        assert shop.earned == PRICE_ATOMIC


async def test_a_batch_that_was_taken_back_is_settled_again_and_nothing_twice(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="async") as shop:
        answers = await asyncio.gather(*(shop.buy() for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        await shop.settled()
        mined = int(chain.rpc("eth_blockNumber"), 16)
        reorganise(chain, 1)
        lost = 5 * PRICE_ATOMIC - shop.earned
        assert lost > 0
        await until(lambda: shop.earned == 5 * PRICE_ATOMIC)
        await shop.settled()
        assert shop.seller.ledger.sums().earned_atomic == 5 * PRICE_ATOMIC
        assert int(chain.rpc("eth_blockNumber"), 16) > mined
        ledger = shop.seller.ledger
        findings = audit_books(ledger.database, ledger.chain_id, shop.seller.config.token)
        assert [finding for finding in findings if finding.differences] == []


async def test_a_payer_who_spent_the_money_meanwhile_leaves_an_open_debt_and_equal_books(
    chain: Devnet, tmp_path: Path
) -> None:
    unfunded = height(chain)
    async with open_shop(chain, tmp_path, settle="before", funds=PRICE_ATOMIC) as shop:
        assert (await shop.buy()).status_code == 200
        assert chain.balance_of(chain.accounts[BUYER].address) == 0
        # The payer's money goes, too, however many blocks lie between it and the settlement.
        reorganise(chain, height(chain) - unfunded)
        await until(lambda: money_of(shop) is not Money.SETTLED)
        sums = shop.seller.ledger.sums()
        assert (sums.earned_atomic, sums.exposure_atomic) == (0, PRICE_ATOMIC)
        assert shop.earned == 0


async def test_what_lies_deep_enough_is_looked_at_no_more(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.finality.FINAL_BLOCKS", 3)
    async with open_shop(chain, tmp_path, settle="before") as shop:
        assert (await shop.buy()).status_code == 200
        assert unproven(shop) == 1
        chain.mine()
        chain.mine()
        await until(lambda: unproven(shop) == 0)
        assert money_of(shop) is Money.SETTLED


async def test_a_network_that_wants_confirmations_gets_them_before_goods_leave(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.chain.CONFIRMATIONS", {chain.chain_id: 3})
    async with open_shop(chain, tmp_path, settle="before") as shop:
        request = asyncio.ensure_future(shop.buy())
        await until(lambda: shop.earned == PRICE_ATOMIC)
        chain.mine()
        assert money_of(shop) is Money.SUBMITTED
        assert shop.app.runs == 0
        chain.mine()
        assert (await request).status_code == 200


async def test_a_payer_that_became_a_contract_is_named_as_such_when_it_settles(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="after") as shop:
        buyer = chain.accounts[BUYER].address

        async def delegate(scope: object, receive: object, send: object) -> None:
            # EIP-7702: the account delegates to a contract while the model computes.
            chain.rpc("anvil_setCode", buyer, "0xef0100" + "11" * 20)
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
            await send({"type": "http.response.body", "body": b"goods"})  # type: ignore[operator]

        shop.app.behave = delegate
        answer = await shop.buy()
        chain.rpc("anvil_setCode", buyer, "0x")
        assert (answer.status_code, error_of(answer)["code"]) == (402, "contract_payer")
        assert b"goods" not in answer.content

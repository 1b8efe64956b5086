"""Pools that an AgentWallet pays: slots drawn once for ever, signed two days ahead, spent only inside their day."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buyer.audit import audit_chain
from buyer.cancel import cancel, plan_cancellation
from buyer.home import Home
from buyer.pool import Claim, Counts, Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.purchase import Purchase
from buyer.refill import process
from buyer.signers import KeySigner
from contracts.address import Address
from contracts.errors import (
    AuthorizationsExhausted,
    BudgetExceeded,
    InsufficientAllowance,
    PriceAboveCap,
    TermsNotAllowed,
)
from contracts.evm.agent_wallet import DAY_S, Slot, approve_call, execute_call, set_agent_call, slot_of
from contracts.evm.devnet import Devnet
from contracts.networks import PERMIT2
from contracts.schemes.rails import rail_of
from tests.buyer.parts import Shop, serving, terms_of
from tests.buyer.test_restored_pool import Backup
from tests.contracts.wallets import SLOTS, UNIT, Wallet, create_wallet, pass_days, send, to_noon
from tests.seller.permit2_shop import offer_of
from tests.seller.shop import open_shop, receipt_of

A_DAY = 2


@pytest.fixture(params=["eip3009", "permit2"])
def wallet(chain: Devnet, request: pytest.FixtureRequest) -> Wallet:
    to_noon(chain)
    return create_wallet(chain, request.param)


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


def now_s(wallet: Wallet) -> int:
    return int(wallet.chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


def draft_of(wallet: Wallet, name: str = "p", **changes: object) -> Draft:
    made = Draft(
        name=name,
        kind="pool",
        endpoint="http://127.0.0.1:8402",
        model="m",
        payer=wallet.address,
        terms=terms_of(wallet.offer),
        price_cap_atomic=UNIT,
        ttl_s=86_400,
        refill=None,
        rpc_urls=(wallet.chain.rpc_url,),
        agent=wallet.agent.address,
        calls_per_day=A_DAY,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def agent_of(wallet: Wallet) -> KeySigner:
    return KeySigner(wallet.chain.accounts[2].key)


def buy(pool: Pool, wallet: Wallet, count: int = A_DAY, name: str = "p") -> Purchase:
    existing = next((purchase for purchase in pool.purchases() if purchase.name == name), None)
    plan = asyncio.run(prepare(pool, draft_of(wallet, name, existing=existing), count, now_s(wallet)))
    return carry_out(pool, plan, agent_of(wallet), clock=lambda: now_s(wallet))


def spend(pool: Pool, wallet: Wallet, purchase: Purchase, key: str) -> Claim:
    spender = pool.spender()
    try:
        claim = spender.claim(purchase, key, now_s(wallet))
        spender.sent(claim)
        spender.served(claim, status=200, receipt=None, latency_ms=1)
        return claim
    finally:
        spender.close()


def slots(pool: Pool) -> list[Slot]:
    rows = pool.database.read(lambda c: c.execute("SELECT nonce FROM authorizations ORDER BY id").fetchall())
    return [found for row in rows if (found := slot_of(bytes(row["nonce"]))) is not None]


def test_today_and_two_days_are_signed_and_each_is_spent_in_its_own_day(pool: Pool, wallet: Wallet) -> None:
    purchase = buy(pool, wallet)
    today = wallet.today()
    assert [(slot.day - today, slot.number) for slot in slots(pool)] == [
        (day, number) for day in range(3) for number in range(A_DAY)
    ]
    for day in range(3):
        for number in range(A_DAY):
            claim = spend(pool, wallet, purchase, f"{day} {number}")
            assert wallet.settle(claim.authorization, claim.signature)["status"] == "0x1"
        with pytest.raises(AuthorizationsExhausted):
            spend(pool, wallet, purchase, f"{day}, one too many")
        pass_days(wallet.chain, 1)
    assert wallet.received() == 3 * A_DAY * UNIT
    assert pool.counts("p") == Counts(spent=3 * A_DAY)


def test_nothing_is_handed_out_that_its_day_may_not_outlast(pool: Pool, wallet: Wallet) -> None:
    purchase = buy(pool, wallet)
    end_s = (wallet.today() + 1) * DAY_S
    for left_s, words in ((120 + 60 + 10, None), (120 + 50, "no authorization")):
        spender = pool.spender()
        if words is None:
            spender.abort(spender.claim(purchase, "r", end_s - left_s))
        else:
            with pytest.raises(AuthorizationsExhausted, match=words):
                spender.claim(purchase, "r", end_s - left_s)
        spender.close()


def test_a_slot_is_drawn_once_by_all_purchases_of_a_wallet_together(pool: Pool, wallet: Wallet) -> None:
    buy(pool, wallet, SLOTS - 1, "one")
    buy(pool, wallet, SLOTS, "two")
    drawn = slots(pool)
    assert len(set(drawn)) == len(drawn) == 3 * SLOTS
    with pytest.raises(BudgetExceeded, match="leaves none"):
        buy(pool, wallet, 1, "three")


def test_payments_of_two_wallets_have_receipts_of_their_own(pool: Pool, wallet: Wallet) -> None:
    """Two wallets of one agent number their nonces alike."""
    second = create_wallet(wallet.chain, rail_of(wallet.offer).NAME, salt=b"\x02" * 32)
    claims = [spend(pool, each, buy(pool, each, name=name), name) for name, each in (("p", wallet), ("q", second))]
    assert claims[0].authorization.nonce == claims[1].authorization.nonce
    assert claims[0].receipt_id != claims[1].receipt_id
    assert [receipt.receipt_id for receipt in pool.receipts()] == [claim.receipt_id for claim in reversed(claims)]


def test_a_restored_pool_draws_no_slot_again(home: Home, wallet: Wallet, tmp_path: Path) -> None:
    with Pool.open(home) as pool:
        buy(pool, wallet, 1)
        before = set(slots(pool))
    backup = Backup(home, tmp_path / "backup")
    with Pool.open(home) as pool:
        buy(pool, wallet, 2)
        since = set(slots(pool))
    backup.restore()
    with Pool.open(home) as pool:
        assert set(slots(pool)) == before
        buy(pool, wallet, 3)
        assert not set(slots(pool)) & (since - before)


def test_process_signs_the_day_that_came_into_sight(pool: Pool, wallet: Wallet) -> None:
    with serving(Shop([wallet.offer])) as url:
        plan = asyncio.run(prepare(pool, draft_of(wallet, endpoint=url), A_DAY, now_s(wallet)))
        carry_out(pool, plan, agent_of(wallet), clock=lambda: now_s(wallet))

        def run() -> tuple[str, int]:
            done = process(pool, pool.purchase("p"), lambda: agent_of(wallet), clock=lambda: now_s(wallet))
            result = asyncio.run(done)
            assert result.error is None, result
            return result.action, result.signed

        assert run() == ("skipped", 0)
        spend(pool, wallet, pool.purchase("p"), "what is spent is not replaced")
        assert run() == ("skipped", 0)
        pass_days(wallet.chain, 1)
        assert run() == ("refilled", A_DAY)
        assert max(slot.day for slot in slots(pool)) == wallet.today() + 2
        assert run() == ("skipped", 0)


def test_what_the_wallet_would_refuse_is_not_signed(pool: Pool, wallet: Wallet) -> None:
    dear = replace(wallet.offer, amount_atomic=UNIT + 1)
    with pytest.raises(PriceAboveCap, match="at most") as refusal:
        asyncio.run(prepare(pool, draft_of(wallet, terms=terms_of(dear)), 1, now_s(wallet)))
    assert "`farebox wallet policy`" in refusal.value.advice
    other_rail = replace(wallet.offer, method="eip3009" if wallet.offer.method == "permit2" else "permit2")
    with pytest.raises(TermsNotAllowed):
        asyncio.run(prepare(pool, draft_of(wallet, terms=terms_of(other_rail)), 1, now_s(wallet)))
    with pytest.raises(TermsNotAllowed, match="is spent by"):
        asyncio.run(prepare(pool, draft_of(wallet, agent=wallet.offer.pay_to), 1, now_s(wallet)))
    if wallet.offer.method == "permit2":
        forbid = approve_call(wallet.token, PERMIT2, 0)
        send(wallet.chain, wallet.owner, execute_call(wallet.address, forbid))
        with pytest.raises(InsufficientAllowance) as short:
            buy(pool, wallet)
        assert "its owner runs `farebox wallet policy`" in short.value.advice
    send(wallet.chain, wallet.owner, set_agent_call(wallet.address, Address(bytes(20))))
    with pytest.raises(TermsNotAllowed, match="frozen"):
        buy(pool, wallet)
    assert pool.purchases() == []


def test_the_agent_has_the_wallet_burn_the_slots_that_are_left(pool: Pool, wallet: Wallet) -> None:
    purchase = buy(pool, wallet)
    claim = spend(pool, wallet, purchase, "a")
    assert wallet.settle(claim.authorization, claim.signature)["status"] == "0x1"
    spender = pool.spender()
    kept = spender.claim(purchase, "b", now_s(wallet))
    spender.abort(kept)
    spender.close()
    plan = asyncio.run(plan_cancellation(purchase, pool, agent_of(wallet), [wallet.chain.rpc_url]))
    assert (len(plan.nonces), len(plan.transactions)) == (3 * A_DAY - 1, 3), "one transaction a day"
    found = asyncio.run(cancel(pool, purchase, plan, agent_of(wallet), [wallet.chain.rpc_url]))
    assert found == {"spent": 0, "expired": 0, "cancelled": 3 * A_DAY - 1, "unknown": 0}
    assert wallet.settle(kept.authorization, kept.signature)["status"] == "0x0"


def test_the_agents_key_alone_signs_for_the_wallet(pool: Pool, wallet: Wallet) -> None:
    plan = asyncio.run(prepare(pool, draft_of(wallet), 1, now_s(wallet)))
    with pytest.raises(TermsNotAllowed, match="not the one that was checked"):
        carry_out(pool, plan, KeySigner(wallet.chain.accounts[3].key), clock=lambda: now_s(wallet))


async def test_a_seller_settles_what_a_wallet_pays_before_it_serves(chain: Devnet, home: Home, tmp_path: Path) -> None:
    to_noon(chain)
    wallet = create_wallet(chain, "eip3009")
    async with open_shop(chain, tmp_path, settle="async") as shop:
        offer = offer_of(shop)
        with Pool.open(home) as pool:
            draft = draft_of(wallet, terms=terms_of(offer), price_cap_atomic=offer.amount_atomic)
            plan = await prepare(pool, draft, A_DAY, now_s(wallet))
            purchase = carry_out(pool, plan, agent_of(wallet), clock=lambda: now_s(wallet))
            spender = pool.spender()
            claim = spender.claim(purchase, "a", now_s(wallet))
            spender.sent(claim)
            before_atomic = shop.earned
            answer = await shop.buy(claim.headers()["PAYMENT-SIGNATURE"])
            assert answer.status_code == 200, answer.text
            assert shop.earned - before_atomic == offer.amount_atomic
            spender.served(claim, status=200, receipt=receipt_of(answer), latency_ms=1)
            spender.close()
            assert await pool.reconcile("p", [chain.rpc_url]) == {
                "spent": 0,
                "expired": 0,
                "cancelled": 0,
                "unknown": 0,
            }
            findings = await audit_chain(pool, [])
            assert [finding.differences for finding in findings] == [[]]

"""Pools over Permit2, on a chain with the real contract: signed ahead, capped by the allowance, revoked by the word."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from buyer.approval import carry_out_approval, plan_approval
from buyer.audit import audit_chain, audit_pool
from buyer.cancel import cancel, plan_cancellation
from buyer.home import Home
from buyer.pool import Claim, Counts, Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.purchase import Purchase
from buyer.signers import KeySigner
from contracts.address import address_text, parse_address
from contracts.errors import BudgetExceeded, InsufficientAllowance, InsufficientBalance, TermsNotAllowed
from contracts.evm.devnet import Devnet
from contracts.money import Asset
from contracts.networks import PERMIT2 as PERMIT2_ADDRESS
from contracts.networks import X402_EXACT_PROXY, X402_UPTO_PROXY
from contracts.offers import PERMIT2, Offer
from tests.buyer.parts import offer_of, settle, terms_of, token_of

# The code of a contract whose answer to everything is 32 bytes of 0x11: PUSH32, PUSH0, MSTORE, 32, 0, RETURN.
ANSWERS_11 = "0x7f" + "11" * 32 + "5f5260205ff3"

CENT = 10**16
COUNT = 5


@pytest.fixture
def wallet(chain: Devnet) -> KeySigner:
    account = chain.accounts[0]
    chain.mint(account.address, 100 * CENT, chain.plain_token)
    return KeySigner(account.key)


@pytest.fixture
def offer(chain: Devnet) -> Offer:
    """One cent, of a token with 18 decimals and no EIP-3009."""
    asset = Asset(parse_address(chain.plain_token), "Plain Dollar", "1", 18, "PLAIN")
    return replace(offer_of(CENT, asset=asset, pay_to=parse_address(chain.accounts[1].address)), method=PERMIT2)


@pytest.fixture
def metered(chain: Devnet, offer: Offer) -> Offer:
    """At most a cent, charged by the account that `settle` sends from."""
    return replace(offer, scheme="upto", extra={"facilitatorAddress": chain.accounts[9].address})


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


def buy(pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer, count: int = COUNT) -> Purchase:
    existing = next((purchase for purchase in pool.purchases() if purchase.name == "p"), None)
    draft = Draft(
        name="p",
        kind="pool",
        endpoint="http://127.0.0.1:8402",
        model="m",
        payer=wallet.address,
        terms=terms_of(offer),
        price_cap_atomic=offer.amount_atomic,
        ttl_s=86_400,
        refill=None,
        rpc_urls=(chain.rpc_url,),
        existing=existing,
    )
    return carry_out(pool, asyncio.run(prepare(pool, draft, count, int(time.time()))), wallet)


def approve(pool: Pool, chain: Devnet, wallet: KeySigner, amount: str) -> None:
    plan = asyncio.run(plan_approval(pool, wallet, chain.plain_token, amount, [chain.rpc_url]))
    asyncio.run(carry_out_approval(plan, wallet))


def spend(pool: Pool, purchase: Purchase, key: str, ending: str = "served") -> Claim:
    with closing(pool.spender()) as spender:
        claim = spender.claim(purchase, key, int(time.time()))
        spender.sent(claim)
        if ending == "served":
            spender.served(claim, status=200, receipt=None, latency_ms=1)
        else:
            spender.lost(claim, status=None, reason="lost")
    return claim


def pay_on_chain(chain: Devnet, claim: Claim, amount_atomic: int | None = None) -> str:
    return settle(chain, claim.authorization, claim.signature, claim.purchase.offer, amount_atomic)


def ask_chain(pool: Pool, chain: Devnet) -> dict[str, int]:
    return asyncio.run(pool.reconcile("p", [chain.rpc_url]))


def check_books(pool: Pool) -> None:
    findings = [*audit_pool(pool), *asyncio.run(audit_chain(pool, []))]
    assert not [finding.differences for finding in findings if finding.differences]


def test_a_pool_over_permit2_pays_a_token_of_18_decimals(
    pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer
) -> None:
    approve(pool, chain, wallet, "0.05")
    purchase = buy(pool, chain, wallet, offer)
    claims = [spend(pool, purchase, key) for key in ("a", "b")]
    for claim in claims:
        pay_on_chain(chain, claim)
    assert chain.balance_of(chain.accounts[1].address, chain.plain_token) == 2 * CENT
    assert pool.counts("p") == Counts(ready=COUNT - 2, spent=2)
    check_books(pool)


def test_nonces_fill_words_of_the_purchases_own_and_are_never_drawn_twice(
    pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer
) -> None:
    cheap = replace(offer, amount_atomic=1)
    approve(pool, chain, wallet, "1")
    for count in (3, 250, 10):
        buy(pool, chain, wallet, cheap, count)
    rows = pool.database.read(
        lambda connection: connection.execute("SELECT nonce FROM authorizations ORDER BY id").fetchall()
    )
    nonces = [bytes(row["nonce"]) for row in rows]
    assert len(set(nonces)) == 263
    assert len({nonce[:31] for nonce in nonces}) == 2, "263 nonces need two words"
    by_word: dict[bytes, set[int]] = {}
    for nonce in nonces:
        by_word.setdefault(nonce[:31], set()).add(nonce[31])
    assert sorted(len(bits) for bits in by_word.values()) == [7, 256]
    assert all(bits == set(range(len(bits))) for bits in by_word.values())


def test_what_permit2_may_not_move_is_not_signed(pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer) -> None:
    with pytest.raises(InsufficientAllowance) as refused:
        buy(pool, chain, wallet, offer)
    assert refused.value.advice == f"run `farebox approve --token {chain.plain_token} --amount 0.05`"
    assert pool.purchases() == []
    approve(pool, chain, wallet, "0.05")
    buy(pool, chain, wallet, offer)
    # What is promised already counts: one more is one too many.
    with pytest.raises(InsufficientAllowance) as refused:
        buy(pool, chain, wallet, offer, 1)
    assert "--amount 0.06" in refused.value.advice
    with pytest.raises(InsufficientBalance):
        buy(pool, chain, wallet, offer, 100)
    assert pool.counts("p") == Counts(ready=COUNT)


def test_an_approval_is_bounded_shown_beforehand_and_can_be_taken_back(
    pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer
) -> None:
    approve(pool, chain, wallet, "0.05")
    buy(pool, chain, wallet, offer)
    plan = asyncio.run(plan_approval(pool, wallet, pool.purchase("p"), "0", [chain.rpc_url]))
    assert (plan.before_atomic, plan.amount_atomic, plan.promised_atomic) == (5 * CENT, 0, 5 * CENT)
    asyncio.run(carry_out_approval(plan, wallet))
    with pytest.raises(InsufficientAllowance):
        buy(pool, chain, wallet, offer, 1)


def test_one_transaction_revokes_a_word(pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer) -> None:
    approve(pool, chain, wallet, "0.05")
    purchase = buy(pool, chain, wallet, offer)
    paid, lost = spend(pool, purchase, "paid", "lost"), spend(pool, purchase, "lost", "lost")
    pay_on_chain(chain, paid)
    plan = asyncio.run(plan_cancellation(purchase, pool, wallet, [chain.rpc_url]))
    assert (len(plan.nonces), len(plan.transactions)) == (COUNT, 1)
    found = asyncio.run(cancel(pool, purchase, plan, wallet, [chain.rpc_url]))
    assert found == {"spent": 1, "expired": 0, "cancelled": COUNT - 1, "unknown": 0}
    check_books(pool)
    with pytest.raises(AssertionError):
        pay_on_chain(chain, lost)


def test_a_used_bit_is_a_payment_only_where_the_chain_shows_this_very_permit_settled(
    pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer
) -> None:
    approve(pool, chain, wallet, "0.05")
    purchase = buy(pool, chain, wallet, offer)
    revoked, paid, neither = (spend(pool, purchase, key, "lost") for key in ("revoked", "paid", "neither"))
    sent = pay_on_chain(chain, paid)
    # The wallet burns a nonce elsewhere, and pays the very same amount to the very same payee by hand.
    word, bit = int.from_bytes(revoked.authorization.nonce[:31], "big"), revoked.authorization.nonce[31]
    from_wallet(chain, address_text(PERMIT2_ADDRESS), "3ff9dcb1", word, 1 << bit)
    from_wallet(chain, chain.plain_token, "a9059cbb", int(chain.accounts[1].address, 16), CENT)
    assert ask_chain(pool, chain) == {"spent": 1, "expired": 0, "cancelled": 1, "unknown": 1}
    receipts = {receipt.request_key: receipt for receipt in pool.receipts()}
    assert receipts["paid"].transaction == sent
    assert {key: receipt.state for key, receipt in receipts.items()} == {
        "paid": "spent", "revoked": "cancelled", "neither": "unknown",
    }  # fmt: skip
    assert neither.authorization.value_atomic == pool.worst_case_loss_atomic("p") - CENT * (COUNT - 3)
    check_books(pool)


def test_of_a_ceiling_the_chain_proves_the_charge_and_the_budget_gets_the_rest_back(
    pool: Pool, chain: Devnet, wallet: KeySigner, metered: Offer
) -> None:
    from buyer.budgets import parse_units, set_budget

    approve(pool, chain, wallet, "0.05")
    purchase = buy(pool, chain, wallet, metered)
    now_s = int(time.time())
    two_cents = parse_units("0.02", "max_total")
    pool.database.transact(lambda c: set_budget(c, "all", max_per_day=None, max_total=two_cents, now_s=now_s))
    claims = [spend(pool, purchase, key) for key in ("a", "b")]
    with pytest.raises(BudgetExceeded):
        spend(pool, purchase, "c")
    pay_on_chain(chain, claims[0], CENT // 4)
    with pytest.raises(BudgetExceeded):
        spend(pool, purchase, "c")
    ask_chain(pool, chain)
    receipts = {receipt.request_key: receipt for receipt in pool.receipts()}
    assert (receipts["a"].charged_atomic, receipts["a"].charge_proven) == (CENT // 4, True)
    assert (receipts["b"].charged_atomic, receipts["b"].charge_proven) == (None, False)
    with pytest.raises(BudgetExceeded):
        spend(pool, purchase, "c")  # three quarters of a cent are too little for another ceiling
    pay_on_chain(chain, claims[1], CENT // 4)
    ask_chain(pool, chain)
    spend(pool, purchase, "c")
    check_books(pool)


def test_a_ceiling_that_nobody_settles_in_time_has_cost_nothing(
    pool: Pool, own_chain: Devnet, home: Home, metered: Offer
) -> None:
    chain = own_chain
    chain.mint(chain.accounts[0].address, 100 * CENT, chain.plain_token)
    wallet = KeySigner(chain.accounts[0].key)
    approve(pool, chain, wallet, "0.05")
    purchase = buy(pool, chain, wallet, metered)
    claim = spend(pool, purchase, "a")
    over_s = claim.authorization.valid_before_s + 120
    chain.rpc("evm_setNextBlockTimestamp", over_s)
    chain.rpc("evm_mine")
    asyncio.run(pool.reconcile("p", [chain.rpc_url], clock=lambda: over_s))
    (receipt,) = pool.receipts()
    assert (receipt.state, receipt.charged_atomic, receipt.charge_proven) == ("spent", 0, True)


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        (X402_EXACT_PROXY, "0x", "proxy for exact is not deployed"),
        (PERMIT2_ADDRESS, "0x", "no Permit2"),
        (PERMIT2_ADDRESS, ANSWERS_11, "another EIP-712 domain"),
    ],
)
def test_nothing_is_signed_where_the_contracts_are_missing_or_others(
    pool: Pool, chain: Devnet, wallet: KeySigner, offer: Offer, address: bytes, code: str, words: str
) -> None:
    approve(pool, chain, wallet, "0.05")
    chain.rpc("anvil_setCode", address_text(address), code)
    with pytest.raises(TermsNotAllowed, match=words):
        buy(pool, chain, wallet, offer)


def test_nothing_is_signed_for_a_facilitator_that_is_not_named(
    pool: Pool, chain: Devnet, wallet: KeySigner, metered: Offer
) -> None:
    approve(pool, chain, wallet, "0.05")
    chain.rpc("anvil_setCode", address_text(X402_UPTO_PROXY), "0x")
    with pytest.raises(TermsNotAllowed, match="proxy for upto"):
        buy(pool, chain, wallet, metered)


def test_a_token_with_eip_3009_can_be_paid_over_permit2_too(pool: Pool, chain: Devnet) -> None:
    account = chain.accounts[2]
    chain.mint(account.address, 10_000)
    wallet = KeySigner(account.key)
    offer = replace(
        offer_of(1000, asset=token_of(chain), pay_to=parse_address(chain.accounts[3].address)), method=PERMIT2
    )
    plan = asyncio.run(plan_approval(pool, wallet, chain.token, "2000 atomic", [chain.rpc_url]))
    asyncio.run(carry_out_approval(plan, wallet))
    claim = spend(pool, buy(pool, chain, wallet, offer, 2), "a")
    pay_on_chain(chain, claim)
    assert chain.balance_of(chain.accounts[3].address) == 1000


def from_wallet(chain: Devnet, to: str, selector: str, *words: int) -> None:
    data = bytes.fromhex(selector) + b"".join(word.to_bytes(32, "big") for word in words)
    call = {"from": chain.accounts[0].address, "to": to, "data": "0x" + data.hex()}
    sent = chain.rpc("eth_sendTransaction", call)
    while (mined := chain.rpc("eth_getTransactionReceipt", sent)) is None:
        pass
    assert mined["status"] == "0x1"

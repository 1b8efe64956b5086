"""Signing, with a real chain behind it: every check is a named refusal that signs nothing; a crash loses nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from buyer.home import Home
from buyer.journal import intents_of
from buyer.orders import BuyOrder, RefillOrder, plan_buy
from buyer.pool import Counts, Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.purchase import Purchase, RefillPolicy
from buyer.refill import process
from buyer.signers import KeySigner, Signer
from contracts.address import parse_address
from contracts.errors import (
    BudgetExceeded,
    ChainUnavailable,
    FareboxError,
    InsufficientBalance,
    PayerHasCode,
    PriceAboveCap,
    SignerFailed,
    TermsChanged,
    TermsNotAllowed,
    UsageError,
)
from contracts.evm.devnet import Devnet
from contracts.money import Asset
from contracts.offers import Offer, requirements
from contracts.schemes.authorization import Authorization
from tests.buyer.parts import Shop, closed_port_url, offer_of, serving, terms_of, token_of
from tests.patience import PATIENCE_S

PRICE = 1000
BALANCE = 100 * PRICE


class Wallet(KeySigner):
    """A key that counts what it signs."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self.signed: list[Authorization] = []

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        self.signed += authorizations
        return super().sign_authorizations(authorizations, offer)


@pytest.fixture
def wallet(chain: Devnet) -> Wallet:
    account = chain.accounts[0]
    chain.mint(account.address, BALANCE)
    return Wallet(account.key)


@pytest.fixture
def offer(chain: Devnet) -> Offer:
    return offer_of(PRICE, asset=token_of(chain), pay_to=parse_address(chain.accounts[1].address))


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


def draft(offer: Offer, wallet: Signer, rpc_url: str, **changes: object) -> Draft:
    made = Draft(
        name="p",
        kind="pool",
        endpoint="http://127.0.0.1:8402",
        model="m",
        payer=wallet.address,
        terms=terms_of(offer),
        price_cap_atomic=PRICE,
        ttl_s=86_400,
        refill=None,
        rpc_urls=(rpc_url,),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def sign(pool: Pool, wanted: Draft, wallet: Signer, count: int) -> Purchase:
    plan = asyncio.run(prepare(pool, wanted, count, int(time.time())))
    return carry_out(pool, plan, wallet)


def test_a_pool_is_signed_within_its_worst_case(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    wanted = draft(offer, wallet, chain.rpc_url)
    plan = asyncio.run(prepare(pool, wanted, 70, int(time.time())))
    assert plan.worst_case_loss_atomic == 70 * PRICE
    steps: list[tuple[int, int]] = []
    carry_out(pool, plan, wallet, progress=lambda done, total: steps.append((done, total)))
    assert pool.counts("p") == Counts(ready=70)
    assert pool.worst_case_loss_atomic("p") == 70 * PRICE
    assert steps[-1] == (70, 70)
    assert {signed.valid_before_s for signed in wallet.signed} == {plan.valid_before_s}
    assert len({signed.nonce for signed in wallet.signed}) == 70


def refused(pool: Pool, wanted: Draft, wallet: Wallet, count: int, error: type[FareboxError], word: str) -> None:
    with pytest.raises(error, match=word):
        sign(pool, wanted, wallet, count)
    assert wallet.signed == []
    assert pool.payer_exposure_atomic(31337, wanted.terms.offer.asset.address, wallet.address) == 0


def test_a_balance_that_is_short_signs_nothing(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    refused(pool, draft(offer, wallet, chain.rpc_url), wallet, 101, InsufficientBalance, r"would add 0\.101 USDC")


def test_a_token_in_another_domain_signs_nothing(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    wrong = replace(offer, asset=replace(offer.asset, name="USD Coin"))
    refused(pool, draft(wrong, wallet, chain.rpc_url), wallet, 1, TermsNotAllowed, "EIP-712 domain")


def test_a_token_with_other_decimals_signs_nothing(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    wrong = replace(offer, asset=replace(offer.asset, decimals=18))
    refused(pool, draft(wrong, wallet, chain.rpc_url), wallet, 1, TermsNotAllowed, "6 decimals, not 18")


def test_an_address_without_a_token_signs_nothing(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    empty = Asset(parse_address(chain.accounts[5].address), "USDC", "2", 6, "USDC")
    wrong = replace(offer, asset=empty)
    refused(pool, draft(wrong, wallet, chain.rpc_url), wallet, 1, TermsNotAllowed, "no token contract")


def test_another_chain_behind_the_endpoint_signs_nothing(
    chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer
) -> None:
    elsewhere = replace(offer, network=replace(offer.network, chain_id=8453))
    refused(pool, draft(elsewhere, wallet, chain.rpc_url), wallet, 1, TermsNotAllowed, "chain 31337")


def test_a_wallet_with_code_signs_nothing(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    # What an EIP-7702 delegation leaves behind.
    chain.rpc("anvil_setCode", chain.accounts[0].address, "0xef0100" + "ab" * 20)
    try:
        refused(pool, draft(offer, wallet, chain.rpc_url), wallet, 1, PayerHasCode, "EIP-7702")
    finally:
        chain.rpc("anvil_setCode", chain.accounts[0].address, "0x")


def test_a_chain_that_does_not_answer_signs_nothing(pool: Pool, wallet: Wallet, offer: Offer) -> None:
    refused(pool, draft(offer, wallet, closed_port_url()), wallet, 1, ChainUnavailable, "no RPC endpoint")


@pytest.mark.parametrize("ttl_s", [60, 599, 91 * 86_400])
def test_a_ttl_out_of_bounds_signs_nothing(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer, ttl_s: int) -> None:
    refused(pool, draft(offer, wallet, chain.rpc_url, ttl_s=ttl_s), wallet, 1, UsageError, "--ttl: expected")


def test_live_authorizations_of_all_purchases_count_against_the_balance(
    chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer
) -> None:
    sign(pool, draft(offer, wallet, chain.rpc_url), wallet, 60)
    with pytest.raises(InsufficientBalance, match=r"already promise 0\.06 USDC"):
        asyncio.run(prepare(pool, draft(offer, wallet, chain.rpc_url, name="q"), 41, int(time.time())))
    sign(pool, draft(offer, wallet, chain.rpc_url, name="q"), wallet, 40)
    assert len(wallet.signed) == 100


def test_two_runs_prepared_at_once_do_not_promise_the_same_money(
    chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer
) -> None:
    plans = [
        asyncio.run(prepare(pool, draft(offer, wallet, chain.rpc_url, name=name), 60, int(time.time())))
        for name in ("p", "q")
    ]
    carry_out(pool, plans[0], wallet)
    with pytest.raises(InsufficientBalance):
        carry_out(pool, plans[1], wallet)
    assert len(wallet.signed) == 60


def test_what_was_being_signed_at_a_crash_is_exposure_and_signed_again_unchanged(
    chain: Devnet, pool: Pool, wallet: Wallet
) -> None:
    wanted = [str(pool.home.path), chain.rpc_url, chain.token, chain.accounts[0].key.hex()]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.buyer.buying", *wanted],
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=PATIENCE_S,
    )
    assert killed.returncode == -signal.SIGKILL
    # The first chunk of 50 is stored; of the second, the signatures died with the process.
    assert pool.counts("p") == Counts(ready=50)
    assert pool.worst_case_loss_atomic("p") == 80 * PRICE
    purchase = pool.purchase("p")
    pending = {intent.authorization.nonce for intent in pool.database.read(lambda c: intents_of(c, purchase))}
    assert len(pending) == 30
    with pytest.raises(InsufficientBalance):
        sign(pool, draft(purchase.offer, wallet, chain.rpc_url, name="q"), wallet, 21)
    again = draft(purchase.offer, wallet, chain.rpc_url, existing=purchase)
    plan = asyncio.run(prepare(pool, again, 10, int(time.time())))
    assert plan.worst_case_loss_atomic == 30 * PRICE, "what a person agrees to is all that will be signed"
    carry_out(pool, plan, wallet)
    assert {signed.nonce for signed in wallet.signed} == pending
    assert pool.counts("p") == Counts(ready=80)
    assert pool.worst_case_loss_atomic("p") == 80 * PRICE


def test_a_signer_that_lies_fills_no_pool(chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer) -> None:
    class Liar(Wallet):
        def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
            return KeySigner(chain.accounts[3].key).sign_authorizations(authorizations, offer)

    with pytest.raises(SignerFailed):
        sign(pool, draft(offer, wallet, chain.rpc_url), Liar(chain.accounts[0].key), 1)
    assert pool.counts("p") == Counts()


def test_a_key_of_our_own_that_signs_for_another_wallet_fills_no_pool(
    chain: Devnet, pool: Pool, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.mint(chain.accounts[0].address, 100 * PRICE)
    ours, another = KeySigner(chain.accounts[0].key), KeySigner(chain.accounts[3].key)
    signs = another.sign_authorizations
    monkeypatch.setattr(KeySigner, "sign_authorizations", lambda _, *words: signs(*words))
    with pytest.raises(SignerFailed):
        sign(pool, draft(offer, ours, chain.rpc_url), ours, 3)
    assert pool.counts("p") == Counts()


def test_max_total_and_max_per_day_bound_all_runs_together(
    chain: Devnet, pool: Pool, wallet: Wallet, offer: Offer
) -> None:
    policy = RefillPolicy(threshold=1, count=10, max_total="25000")
    purchase = sign(pool, draft(offer, wallet, chain.rpc_url, refill=policy), wallet, 20)
    again = draft(offer, wallet, chain.rpc_url, refill=policy, existing=purchase)
    with pytest.raises(BudgetExceeded, match="--max-total"):
        sign(pool, again, wallet, 6)
    daily = RefillPolicy(threshold=1, count=10, max_per_day="24000")
    with pytest.raises(BudgetExceeded, match="--max-per-day"):
        sign(pool, replace(again, refill=daily), wallet, 5)
    sign(pool, again, wallet, 5)
    assert len(wallet.signed) == 25


@pytest.fixture
def shop(offer: Offer) -> Shop:
    return Shop([offer])


@pytest.fixture
def shop_url(shop: Shop) -> Iterator[str]:
    with serving(shop) as url:
        yield url


def bought(pool: Pool, wallet: Wallet, shop_url: str, rpc_url: str, number: int | None, **changes: object) -> Purchase:
    order = BuyOrder(
        name="p",
        endpoint=shop_url,
        model="m",
        count=number,
        budget=None,
        max_price="0.0015",
        accept_quote=False,
        ttl_s=86_400,
        refill=RefillOrder(),
        networks=[],
        assets=[],
        rpc_urls=[rpc_url],
    )
    order = replace(order, **changes)  # type: ignore[arg-type]
    plan, _ = asyncio.run(plan_buy(pool, order, wallet, int(time.time())))
    return carry_out(pool, plan, wallet)


AUTO = RefillOrder(auto=True, threshold=2, count=5, max_total="0.012")


def refilled(pool: Pool, wallet: Wallet) -> tuple[str, str, int]:
    done = asyncio.run(process(pool, pool.purchase("p"), lambda: wallet))
    return done.action, done.reason, done.signed


def spend(pool: Pool, count: int) -> None:
    spender = pool.spender()
    for _ in range(count):
        claim = spender.claim(pool.purchase("p"), f"r{len(pool.receipts())}", int(time.time()))
        spender.sent(claim)
        spender.served(claim, status=200, receipt=None, latency_ms=1)
    spender.close()


def test_a_refill_waits_for_its_threshold_and_stops_at_its_total(
    chain: Devnet, pool: Pool, wallet: Wallet, shop_url: str
) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, 5, refill=AUTO)
    assert refilled(pool, wallet)[0] == "skipped"
    spend(pool, 3)
    assert refilled(pool, wallet) == ("refilled", "5 more were signed", 5)
    spend(pool, 5)
    # Ten were signed, and the total is for twelve.
    assert refilled(pool, wallet)[::2] == ("refilled", 2)
    spend(pool, 2)
    action, reason, signed = refilled(pool, wallet)
    assert (action, signed) == ("skipped", 0)
    assert "caps leave 0.00 USDC" in reason
    assert len(wallet.signed) == 12


def test_a_price_below_the_cap_is_adopted_and_one_above_is_not(
    chain: Devnet, pool: Pool, wallet: Wallet, shop: Shop, shop_url: str
) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, 2, refill=replace(AUTO, max_total=None))
    shop.offers = [replace(shop.offers[0], amount_atomic=1501)]
    action, reason, _ = refilled(pool, wallet)
    assert action == "skipped"
    assert "the price is 0.001501 USDC, the cap 0.0015 USDC" in reason
    shop.offers = [replace(shop.offers[0], amount_atomic=1500)]
    assert refilled(pool, wallet)[::2] == ("refilled", 5)
    purchase = pool.purchase("p")
    assert purchase.offer.amount_atomic == 1500
    assert pool.spendable(purchase, int(time.time())) == 5
    assert pool.worst_case_loss_atomic("p") == 2 * 1000 + 5 * 1500


def test_a_payee_that_changed_is_not_adopted(
    chain: Devnet, pool: Pool, wallet: Wallet, shop: Shop, shop_url: str
) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, 2, refill=AUTO)
    shop.offers = [replace(shop.offers[0], pay_to=parse_address("0x" + "99" * 20))]
    action, reason, signed = refilled(pool, wallet)
    assert (action, signed) == ("failed", 0)
    assert "no longer wants to be paid at" in reason


def test_terms_that_differ_in_nothing_signed_let_the_pool_serve_on(
    chain: Devnet, pool: Pool, wallet: Wallet, shop: Shop, shop_url: str
) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, 2, refill=AUTO)
    worker = pool.spender()
    worker.abort(worker.claim(pool.purchase("p"), "takes a lease", int(time.time())))
    stated = requirements(shop.offers[0])
    stated.extra = {**(stated.extra or {}), "facilitator": "another one"}
    shop.accepts = [stated]
    assert refilled(pool, wallet)[0] == "refilled"
    purchase = pool.purchase("p")
    assert purchase.accepted == stated
    nonces = {worker.claim(purchase, f"r{number}", int(time.time())).authorization.nonce for number in range(7)}
    assert len(nonces) == 7
    worker.close()


def test_a_top_up_keeps_the_terms_and_names_the_way_to_new_ones(
    chain: Devnet, pool: Pool, wallet: Wallet, shop: Shop, shop_url: str
) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, 2)
    bought(pool, wallet, shop_url, chain.rpc_url, 3)
    assert pool.counts("p") == Counts(ready=5)
    shop.offers = [replace(shop.offers[0], amount_atomic=900)]
    with pytest.raises(TermsChanged) as refused:
        bought(pool, wallet, shop_url, chain.rpc_url, 1)
    assert "farebox refill p" in refused.value.advice


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"max_price": None}, UsageError, "--max-price"),
        ({"max_price": "0.0009"}, PriceAboveCap, "0.001 USDC"),
        ({"max_price": "0,01"}, UsageError, "expected digits"),
        ({"count": None}, UsageError, "--count or --budget"),
        ({"budget": "1"}, UsageError, "--count or --budget"),
        ({"count": None, "budget": "0.0009"}, BudgetExceeded, "less than the price of one call"),
        ({"count": 10_001}, UsageError, "--count"),
        ({"name": "No Name"}, UsageError, "NAME"),
        ({"networks": ["base"]}, TermsNotAllowed, "network"),
        ({"assets": ["0x" + "44" * 20]}, TermsNotAllowed, "token"),
        ({"refill": RefillOrder(count=5)}, UsageError, "--auto-refill"),
        ({"refill": RefillOrder(auto=True, max_total="0.001")}, BudgetExceeded, "--max-total"),
    ],
)
def test_an_order_that_cannot_be_meant_is_refused(
    chain: Devnet,
    pool: Pool,
    wallet: Wallet,
    shop_url: str,
    changes: dict[str, object],
    error: type[FareboxError],
    word: str,
) -> None:
    with pytest.raises(error, match=word):
        bought(pool, wallet, shop_url, chain.rpc_url, 2, **changes)
    assert wallet.signed == []


def test_a_budget_buys_as_many_calls_as_fit(chain: Devnet, pool: Pool, wallet: Wallet, shop_url: str) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, None, budget="0.0059")
    assert pool.counts("p") == Counts(ready=5)


def test_another_wallet_cannot_top_up(chain: Devnet, pool: Pool, wallet: Wallet, shop_url: str) -> None:
    bought(pool, wallet, shop_url, chain.rpc_url, 1)
    with pytest.raises(TermsNotAllowed, match="is paid by"):
        bought(pool, Wallet(chain.accounts[4].key), shop_url, chain.rpc_url, 1)

"""The chain decides what became of authorizations: used, revoked, or unused past their time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from buyer.cancel import cancel, plan_cancellation
from buyer.home import Home
from buyer.limits import EXPIRY_CHAIN_MARGIN_S
from buyer.pool import Counts, Pool, Spender
from buyer.purchase import Purchase
from buyer.signers import KeySigner, open_signer
from contracts.errors import ChainUnavailable, InsufficientBalance, TermsNotAllowed
from contracts.evm.devnet import Devnet
from contracts.schemes.exact_eip3009 import cancel_call
from tests.buyer.parts import (
    add_purchase,
    call_token,
    closed_port_url,
    funded_purchase,
    offer_of,
    serving,
    settle,
)
from tests.buyer.signing_server import SigningServer

LIFE_S = 3600


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


@pytest.fixture
def purchase(chain: Devnet, pool: Pool) -> Purchase:
    return funded_purchase(pool, chain, 10, life_s=LIFE_S)


@pytest.fixture
def spender(pool: Pool, purchase: Purchase) -> Iterator[Spender]:
    opened = pool.spender()
    yield opened
    opened.close()


def lose(spender: Spender, purchase: Purchase, key: str) -> tuple[bytes, object, bytes]:
    """Send one payment and lose its answer."""
    claim = spender.claim(purchase, key, int(time.time()))
    spender.sent(claim)
    spender.lost(claim, status=None, reason="timeout")
    return claim.authorization.nonce, claim.authorization, claim.signature


def ask(pool: Pool, chain: Devnet, **options: bool) -> dict[str, int]:
    return asyncio.run(pool.reconcile("p", [chain.rpc_url], **options))


def test_a_used_one_is_spent_with_the_hash_of_its_transfer(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    _, authorization, signature = lose(spender, purchase, "r")
    transaction = settle(chain, authorization, signature, purchase.offer)  # type: ignore[arg-type]
    assert ask(pool, chain) == {"spent": 1, "expired": 0, "cancelled": 0, "unknown": 0}
    (receipt,) = pool.receipts()
    assert (receipt.state, receipt.transaction) == ("spent", transaction)


def test_an_unused_one_stays_unknown_until_the_chains_clock_is_safely_past_it(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    lose(spender, purchase, "r")
    assert ask(pool, chain) == {"spent": 0, "expired": 0, "cancelled": 0, "unknown": 1}
    end_s = pool.receipts()[0].valid_before_s
    chain.rpc("evm_setNextBlockTimestamp", end_s + EXPIRY_CHAIN_MARGIN_S)
    chain.mine()
    assert ask(pool, chain)["unknown"] == 1
    chain.rpc("evm_setNextBlockTimestamp", end_s + EXPIRY_CHAIN_MARGIN_S + 1)
    chain.mine()
    assert ask(pool, chain)["expired"] == 1
    counts = pool.counts("p")
    assert counts.signed == 10
    # What was never sent is too old as well, and the same look at the chain says so.
    assert counts == Counts(expired=10)
    assert pool.worst_case_loss_atomic("p") == 0


def test_a_revoked_one_is_cancelled_whoever_submitted_it(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    nonce, _, _ = lose(spender, purchase, "r")
    payer = KeySigner(chain.accounts[0].key)
    (signature,) = payer.sign_cancellations([nonce], purchase.offer.domain)
    call_token(chain, chain.token, cancel_call(payer.address, nonce, signature))
    assert ask(pool, chain)["cancelled"] == 1
    assert pool.counts("p") == Counts(ready=9, cancelled=1)


def test_a_restored_backup_learns_what_was_spent_since(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    claim = spender.claim(purchase, "spent after the backup", int(time.time()))
    spender.abort(claim)
    settle(chain, claim.authorization, claim.signature, purchase.offer)
    assert ask(pool, chain)["spent"] == 0
    assert ask(pool, chain, ready_too=True)["spent"] == 1
    assert pool.counts("p") == Counts(ready=9, spent=1)
    taken = {spender.claim(purchase, f"r{n}", int(time.time())).authorization.nonce for n in range(9)}
    assert claim.authorization.nonce not in taken


def test_without_a_chain_or_on_another_one_nothing_changes(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    lose(spender, purchase, "r")
    with pytest.raises(ChainUnavailable):
        asyncio.run(pool.reconcile("p", [closed_port_url()]))
    elsewhere = add_purchase(pool, "base", offer=offer_of(chain_id=8453))
    with pytest.raises(TermsNotAllowed, match="chain 31337"):
        asyncio.run(pool.reconcile(elsewhere.name, [chain.rpc_url]))
    assert pool.counts("p") == Counts(ready=9, unknown=1)


@pytest.mark.parametrize("remote", [False, True])
def test_everything_unspent_is_revoked_on_chain_in_one_transaction(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender, remote: bool
) -> None:
    _, used, signature = lose(spender, purchase, "paid meanwhile")
    lose(spender, purchase, "open")
    settle(chain, used, signature, purchase.offer)  # type: ignore[arg-type]
    key = chain.accounts[0].key
    with serving(SigningServer([key])) as url:
        signer = open_signer(f"remote:{url}") if remote else KeySigner(key)
        plan = asyncio.run(plan_cancellation(purchase, pool, signer, [chain.rpc_url]))
        assert (len(plan.nonces), len(plan.transactions)) == (10, 1)
        before_wei = int(chain.rpc("eth_getBalance", chain.accounts[0].address, "latest"), 16)
        pool.remove(purchase)
        found = asyncio.run(cancel(pool, purchase, plan, signer, [chain.rpc_url]))
        signer.close()
    after_wei = int(chain.rpc("eth_getBalance", chain.accounts[0].address, "latest"), 16)
    assert 0 < before_wei - after_wei <= plan.cost_max_wei
    assert found == {"spent": 1, "expired": 0, "cancelled": 9, "unknown": 0}
    assert pool.counts_of(purchase) == Counts(spent=1, cancelled=9)
    assert pool.exposure_of(purchase) == 0


def test_revoking_without_gas_or_with_another_wallet_is_refused_before_anything_is_sent(
    chain: Devnet, pool: Pool, purchase: Purchase
) -> None:
    with pytest.raises(TermsNotAllowed, match="only the wallet"):
        asyncio.run(plan_cancellation(purchase, pool, KeySigner(chain.accounts[3].key), [chain.rpc_url]))
    wallet = chain.accounts[0]
    chain.fund_gas(wallet.address, 1000)
    with pytest.raises(InsufficientBalance, match="wei of gas"):
        asyncio.run(plan_cancellation(purchase, pool, KeySigner(wallet.key), [chain.rpc_url]))
    assert pool.counts("p") == Counts(ready=10)

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
from contracts.schemes.exact_eip3009 import AUTHORIZATION_CANCELED_TOPIC, cancel_call
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
from tests.faults.rpc_proxy import RpcProxy

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


def ask(pool: Pool, chain: Devnet, *others: str, our_s: float = 0, **options: bool) -> dict[str, int]:
    """Ask `chain` and other endpoints, at `our_s` by our clock, or now."""
    clock = (lambda: our_s) if our_s else time.time
    return asyncio.run(pool.reconcile("p", [chain.rpc_url, *others], clock=clock, **options))


def test_a_used_one_is_spent_with_the_hash_of_its_transfer(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    _, authorization, signature = lose(spender, purchase, "r")
    transaction = settle(chain, authorization, signature, purchase.offer)  # type: ignore[arg-type]
    assert ask(pool, chain) == {"spent": 1, "expired": 0, "cancelled": 0, "unknown": 0}
    (receipt,) = pool.receipts()
    assert (receipt.state, receipt.transaction) == ("spent", transaction)


def pass_time(chain: Devnet, time_s: int) -> None:
    chain.rpc("evm_setNextBlockTimestamp", time_s)
    chain.mine()


def test_an_unused_one_stays_unknown_until_the_chains_clock_is_safely_past_it(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    lose(spender, purchase, "r")
    end_s = pool.receipts()[0].valid_before_s
    our_s = end_s + 3600
    assert ask(pool, chain, our_s=our_s) == {"spent": 0, "expired": 0, "cancelled": 0, "unknown": 1}
    pass_time(chain, end_s + EXPIRY_CHAIN_MARGIN_S)
    assert ask(pool, chain, our_s=our_s)["unknown"] == 1
    pass_time(chain, end_s + EXPIRY_CHAIN_MARGIN_S + 1)
    assert ask(pool, chain, our_s=our_s)["expired"] == 1
    counts = pool.counts("p")
    assert counts.signed == 10
    # What was never sent is too old as well, and the same look at the chain says so.
    assert counts == Counts(expired=10)
    assert pool.worst_case_loss_atomic("p") == 0


def test_an_endpoint_whose_time_is_ahead_of_ours_gives_no_money_back(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    lose(spender, purchase, "r")
    exposure_atomic = pool.exposure_of(purchase)
    pass_time(chain, pool.receipts()[0].valid_before_s + 3600)
    assert ask(pool, chain)["unknown"] == 1
    assert pool.counts("p") == Counts(ready=9, unknown=1)
    assert pool.exposure_of(purchase) == exposure_atomic


def test_one_of_two_endpoints_that_tells_a_time_to_come_gives_no_money_back(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    lose(spender, purchase, "r")
    our_s = pool.receipts()[0].valid_before_s + 3600
    with RpcProxy(chain.rpc_url) as liar:
        ahead = {"timestamp": hex(our_s)}
        liar.inject("eth_getBlockByNumber", "lie", times=9, lie=lambda _, block: block | ahead)
        for endpoints in ((chain.rpc_url, liar.url), (liar.url, chain.rpc_url)):
            assert asyncio.run(pool.reconcile("p", endpoints, clock=lambda: our_s))["unknown"] == 1
        pass_time(chain, our_s)
        assert ask(pool, chain, liar.url, our_s=our_s)["expired"] == 1


def test_a_used_one_that_one_of_two_endpoints_calls_unused_stays_unknown_and_it_is_told(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender, caplog: pytest.LogCaptureFixture
) -> None:
    _, authorization, signature = lose(spender, purchase, "r")
    settle(chain, authorization, signature, purchase.offer)  # type: ignore[arg-type]
    our_s = pool.receipts()[0].valid_before_s + 3600
    pass_time(chain, our_s)
    with RpcProxy(chain.rpc_url) as liar:
        liar.inject("eth_call", "lie", times=9, lie=lambda *_: "0x" + "0" * 64)
        for endpoints in ((chain.rpc_url, liar.url), (liar.url, chain.rpc_url)):
            found = asyncio.run(pool.reconcile("p", endpoints, clock=lambda: our_s))
            assert (found["unknown"], found["spent"], found["expired"]) == (1, 0, 0)
    assert "purchase p: the RPC endpoints do not agree about 1 payments" in caplog.text
    # The one that is away has no say.
    assert ask(pool, chain, liar.url, our_s=our_s)["spent"] == 1


def test_a_revocation_that_only_one_of_two_endpoints_shows_gives_no_money_back(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    _, authorization, signature = lose(spender, purchase, "r")
    settle(chain, authorization, signature, purchase.offer)  # type: ignore[arg-type]

    def revoked(_: object, logs: list[dict[str, object]]) -> list[dict[str, object]]:
        return [log | {"topics": [AUTHORIZATION_CANCELED_TOPIC]} for log in logs]

    with RpcProxy(chain.rpc_url) as liar:
        liar.inject("eth_getLogs", "lie", times=9, lie=revoked)
        assert ask(pool, chain, liar.url) == {"spent": 0, "expired": 0, "cancelled": 0, "unknown": 1}
        assert asyncio.run(pool.reconcile("p", [liar.url, chain.rpc_url]))["unknown"] == 1
    assert ask(pool, chain)["spent"] == 1


def test_an_endpoint_of_another_chain_has_no_say(
    chain: Devnet, pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    _, authorization, signature = lose(spender, purchase, "r")
    settle(chain, authorization, signature, purchase.offer)  # type: ignore[arg-type]
    with RpcProxy(chain.rpc_url) as elsewhere:
        elsewhere.inject("eth_chainId", "lie", times=9, lie=lambda *_: "0x2105")
        elsewhere.inject("eth_call", "lie", times=9, lie=lambda *_: "0x" + "0" * 64)
        assert ask(pool, chain, elsewhere.url)["spent"] == 1


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

"""The real x402 proxies and the real Permit2 answer as ours do: the same payments on a fork of a real chain.

Opt-in, because it needs an endpoint of a chain: FAREBOX_FORK_URL=https://… make test ARGS=tests/contracts/test_fork.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from contracts.address import address_text
from contracts.evm.artifact import load_artifact
from contracts.evm.devnet import Devnet
from contracts.networks import PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY
from tests.contracts import test_x402_proxies as here

FORK_URL = os.environ.get("FAREBOX_FORK_URL")

pytestmark = pytest.mark.skipif(not FORK_URL, reason="FAREBOX_FORK_URL names no endpoint of a chain to fork")


@pytest.fixture(scope="module")
def fork() -> Iterator[Devnet]:
    with Devnet(fork_url=FORK_URL) as running:
        yield running


@pytest.fixture
def chain(fork: Devnet) -> Iterator[Devnet]:
    before = fork.snapshot()
    yield fork
    fork.revert(before)


def test_the_contracts_on_the_fork_are_the_chains_own(chain: Devnet) -> None:
    for address, ours in ((X402_EXACT_PROXY, "X402ExactPermit2Proxy"), (X402_UPTO_PROXY, "X402UptoPermit2Proxy")):
        code = chain.rpc("eth_getCode", address_text(address), "latest")
        assert code not in ("0x", load_artifact(ours).deployed_bytecode), f"{ours}: not the audited one"
    assert chain.rpc("eth_getCode", address_text(PERMIT2), "latest") != "0x"


funded = here.funded
test_exact_anybody_settles = here.test_anybody_may_settle_an_exact_payment_and_the_payee_gets_all_of_it
test_exact_settles_once = here.test_an_exact_payment_settles_once
test_exact_goes_where_signed = here.test_an_exact_payment_goes_only_where_the_payer_signed
test_time_is_kept = here.test_a_payment_waits_for_its_first_second_and_ends_after_its_deadline
test_nobody_is_refused = here.test_a_payment_to_nobody_is_refused
test_upto_settles_less_once = here.test_the_named_facilitator_settles_less_than_the_cap_once
test_upto_refusals = here.test_upto_refuses_strangers_more_than_the_cap_and_nothing
test_two_signatures = here.test_a_payer_without_an_approval_pays_with_two_signatures
test_failed_permit = here.test_a_permit_that_fails_does_not_stop_a_payer_who_had_approved
test_permit_amount = here.test_a_permit_for_another_amount_is_refused

"""AgentWallet on a real chain: what its owner, its agent and anybody else may do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contracts.address import ZERO, address_text
from contracts.evm.agent_wallet import SLOT_SIGNATURE_BYTES, set_agent_call
from contracts.evm.devnet import Devnet
from contracts.schemes.rails import rail_of
from tests.contracts.wallets import SLOTS, UNIT, Wallet, create_wallet, succeeds, to_noon

RAILS = ("eip3009", "permit2", "upto")


@pytest.fixture
def noon(chain: Devnet) -> Iterator[Devnet]:
    to_noon(chain)
    yield chain


@pytest.fixture(params=RAILS)
def wallet(noon: Devnet, request: pytest.FixtureRequest) -> Wallet:
    return create_wallet(noon, request.param)


def test_the_agent_pays_with_any_slot_of_the_day_once(wallet: Wallet) -> None:
    first, last = wallet.authorization(0), wallet.authorization(SLOTS - 1, UNIT - 1)
    assert wallet.pays(first)
    assert wallet.pays(last)
    assert not wallet.pays(first)


def test_a_signature_is_322_bytes_and_good_for_its_own_message_only(wallet: Wallet) -> None:
    authorization = wallet.authorization(0)
    signature = wallet.sign(authorization)
    assert len(signature) == SLOT_SIGNATURE_BYTES == 322
    digest = rail_of(wallet.offer).digest(authorization, wallet.offer)
    assert wallet.agrees(digest, signature)
    assert not wallet.agrees(rail_of(wallet.offer).digest(wallet.authorization(1), wallet.offer), signature)


def test_a_frozen_wallet_pays_nothing_from_the_next_block_on(wallet: Wallet) -> None:
    authorization = wallet.authorization(0)
    assert succeeds(wallet.chain, wallet.owner, set_agent_call(wallet.address, ZERO))
    assert wallet.state().is_frozen
    assert not wallet.pays(authorization)

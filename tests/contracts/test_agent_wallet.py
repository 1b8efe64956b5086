"""AgentWallet on a real chain: what its owner, its agent and anybody else may do."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data

from contracts.address import ZERO, address_text, parse_address
from contracts.errors import UsageError
from contracts.evm.agent_wallet import (
    SLOT_SIGNATURE_BYTES,
    Policy,
    Slot,
    WalletRail,
    approval_digest,
    cancel_slots_call,
    drip_call,
    reserve_call,
    reserved_signature,
    set_agent_call,
    slot_authorization,
    slot_nonce,
    slot_of,
)
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from tests.contracts.wallets import (
    PAYEE,
    SLOTS,
    UNIT,
    Wallet,
    call_data,
    create_wallet,
    offer_for,
    pass_days,
    succeeds,
    to_noon,
)

RAILS = ("eip3009", "permit2", "upto")


@pytest.fixture
def noon(chain: Devnet) -> Devnet:
    to_noon(chain)
    return chain


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


def test_one_day_reads_back_from_the_chain_as_it_was_set(wallet: Wallet) -> None:
    state = wallet.state()
    assert address_text(state.owner) == wallet.owner
    assert state.agent == wallet.agent.address
    assert not state.is_frozen
    assert (state.policy.unit_atomic, state.policy.slots, state.policy.from_day) == (UNIT, SLOTS, wallet.today())
    assert state.spendable_atomic == state.policy.day_cap_atomic == UNIT * SLOTS
    assert state.balance_atomic == 100 * UNIT


def test_cancelled_slots_pay_nothing_and_the_others_do(wallet: Wallet) -> None:
    signature = wallet.sign(wallet.authorization(1))
    call = cancel_slots_call(wallet.address, wallet.token, wallet.today(), 1, 2)
    assert succeeds(wallet.chain, wallet.owner, call)
    assert not wallet.pays(wallet.authorization(1), signature)
    assert not wallet.pays(wallet.authorization(2))
    assert wallet.pays(wallet.authorization(0))
    assert wallet.pays(wallet.authorization(3))


def test_tomorrow_is_signed_today_and_paid_tomorrow(wallet: Wallet) -> None:
    tomorrow = wallet.authorization(0, day=wallet.today() + 1)
    signature = wallet.sign(tomorrow)
    assert not wallet.pays(tomorrow, signature)
    pass_days(wallet.chain, 1)
    assert wallet.pays(tomorrow, signature)


def test_a_reserved_payment_carries_a_nonce_that_others_dictate(noon: Devnet) -> None:
    wallet = create_wallet(noon, "eip3009", reserve_cap=3 * UNIT)
    payee = noon.accounts[6].address
    terms = wallet.authorization(0, 3 * UNIT, nonce=keccak(b"the terms"), payee=parse_address(payee))
    agent = noon.accounts[2].address
    assert succeeds(noon, agent, reserve_call(wallet.address, wallet.token, terms))
    digest = receive_digest(wallet, terms)
    signature = reserved_signature(wallet.agent.sign(approval_digest(wallet.address, noon.chain_id, digest)))
    take = "receiveWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
    window = (terms.valid_after_s, terms.valid_before_s)
    data = call_data(take, address_text(wallet.address), payee, 3 * UNIT, *window, terms.nonce, signature)
    assert succeeds(noon, payee, Call(wallet.token, data))
    assert noon.balance_of(payee) == 3 * UNIT
    assert not succeeds(noon, agent, reserve_call(wallet.address, wallet.token, terms)), "the cap is used up"


def receive_digest(wallet: Wallet, terms: Authorization) -> bytes:
    members = [("from", "address"), ("to", "address"), ("value", "uint256"), ("validAfter", "uint256")]
    members += [("validBefore", "uint256"), ("nonce", "bytes32")]
    values = (terms.payer, terms.payee, terms.value_atomic, terms.valid_after_s, terms.valid_before_s, terms.nonce)
    message = {name: value for (name, _), value in zip(members, values, strict=True)}
    domain = {
        "name": "USDC",
        "version": "2",
        "chainId": wallet.chain.chain_id,
        "verifyingContract": address_text(wallet.token),
    }
    types = {"ReceiveWithAuthorization": [{"name": name, "type": kind} for name, kind in members]}
    return bytes(_hash_eip191_message(encode_typed_data(domain, types, message)))


def test_a_drip_fills_the_agents_account_once_a_day(noon: Devnet) -> None:
    wallet = create_wallet(noon, "eip3009")
    assert wallet.set_policy(WalletRail.DRIP)
    pass_days(noon, 1)
    agent = noon.accounts[2].address
    before, limit = noon.balance_of(agent), UNIT * SLOTS
    for _ in range(2):
        assert succeeds(noon, noon.accounts[9].address, drip_call(wallet.address, wallet.token))
    assert noon.balance_of(agent) == max(before, limit)


def test_the_owner_acts_without_gas_through_the_forwarder_that_the_wallet_trusts(noon: Devnet) -> None:
    forwarder = noon.accounts[8].address
    wallet = create_wallet(noon, "permit2", forwarder=parse_address(forwarder))
    freeze = set_agent_call(wallet.address, ZERO)
    named = Call(freeze.to, freeze.data + parse_address(wallet.owner))
    assert not succeeds(noon, noon.accounts[2].address, named)
    assert succeeds(noon, forwarder, named)
    assert wallet.state().is_frozen


def test_a_slots_nonce_tells_its_token_day_and_number() -> None:
    slot = Slot(7, 20_512, 65_535)
    assert slot_of(slot_nonce(slot)) == slot
    assert slot_of(bytes(32)) is None
    assert slot_nonce(Slot(7, 20_512, 255))[:31] == slot_nonce(Slot(7, 20_512, 0))[:31], "one word of Permit2"


def test_what_the_wallet_would_refuse_is_not_made() -> None:
    policy = Policy(UNIT, 0, SLOTS, 1, 20_000, WalletRail.EIP3009)
    payment: dict[str, Any] = {"day": 20_000, "number": 0, "payee": PAYEE, "value_atomic": UNIT}
    assert slot_authorization(PAYEE, policy, **payment).value_atomic == UNIT
    for field, value, name in (
        ("day", 19_999, "day"),
        ("number", SLOTS, "slot"),
        ("number", -1, "slot"),
        ("value_atomic", UNIT + 1, "value"),
    ):
        with pytest.raises(UsageError, match=name):
            slot_authorization(PAYEE, policy, **(payment | {field: value}))


def test_an_address_without_a_wallet_is_named(chain: Devnet) -> None:
    stranger = Wallet(chain, PAYEE, "", SigningKey(b"\x01" * 32), offer_for(chain, "eip3009"))
    with pytest.raises(UsageError, match="no AgentWallet"):
        stranger.state()

"""A thief has the agent's key and a day to spend it: unit x slots leave the wallet, and not an atom more.

The thief first takes every slot of the day, which the policy allows, and then tries everything else on chain. The forge
tests in contracts/foundry hold the same for random policies, times and messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils.crypto import keccak

from contracts.address import Address, address_text, parse_address
from contracts.evm.agent_wallet import (
    Policy,
    WalletRail,
    approval_digest,
    approve_call,
    create_call,
    execute_call,
    reserve_call,
    reserved_signature,
    set_agent_call,
    set_policy_call,
    slot_signature,
    transfer_call,
    wallet_address,
)
from contracts.evm.devnet import Devnet
from contracts.networks import PERMIT2
from contracts.schemes import exact_eip3009, exact_permit2
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from tests.contracts.wallets import (
    DAY_S,
    SLOTS,
    UNIT,
    Wallet,
    call_data,
    create_wallet,
    offer_for,
    pass_days,
    send,
    succeeds,
    to_noon,
)

PERMISSIONS = [{"name": "token", "type": "address"}, {"name": "amount", "type": "uint256"}]
DETAILS = [
    {"name": "token", "type": "address"},
    {"name": "amount", "type": "uint160"},
    {"name": "expiration", "type": "uint48"},
    {"name": "nonce", "type": "uint48"},
]


@pytest.fixture(params=("eip3009", "permit2", "upto"))
def robbed(chain: Devnet, request: pytest.FixtureRequest) -> Wallet:
    """A wallet whose day was spent by the thief, slot by slot."""
    to_noon(chain)
    wallet = create_wallet(chain, request.param)
    # Permit2 may move the dollar, too: the wallet alone stands before it.
    approve = execute_call(wallet.address, approve_call(parse_address(chain.token), PERMIT2, 2**256 - 1))
    assert succeeds(chain, wallet.owner, approve)
    start = wallet.balance()
    for number in range(SLOTS):
        assert wallet.pays(wallet.authorization(number))
    assert wallet.balance() == start - UNIT * SLOTS
    return wallet


@pytest.fixture
def thief(robbed: Wallet) -> str:
    """The account that belongs to the agent's key."""
    return robbed.chain.accounts[2].address


def forgeries(wallet: Wallet, digest: bytes) -> Iterator[bytes]:
    """Every form in which the holder of the agent's key can sign a digest."""
    key = wallet.agent
    approval = key.sign(approval_digest(wallet.address, wallet.chain.chain_id, digest))
    yield key.sign(digest)
    yield approval
    yield reserved_signature(approval)
    for kind in ("eip3009", "eip3009-receive", "permit2", "upto"):
        yield slot_signature(approval, wallet.authorization(0), wallet.token, kind)


def typed_digest(chain: Devnet, contract: str, types: dict[str, Any], message: dict[str, Any]) -> bytes:
    """Return the digest of any typed message for the dollar or for Permit2, as eth-account makes it."""
    token = {"name": "USDC", "version": "2"} if contract == chain.token else {"name": "Permit2"}
    domain = token | {"chainId": chain.chain_id, "verifyingContract": contract}
    return bytes(_hash_eip191_message(encode_typed_data(domain, types, message)))


def spend_more_slots(wallet: Wallet, _thief: str) -> None:
    for number in (SLOTS, SLOTS + 1, 255, 256, 2**16 - 1):
        assert not wallet.pays(wallet.authorization(number))


def spend_a_slot_again_for_somebody_else(wallet: Wallet, thief: str) -> None:
    for number in range(SLOTS):
        assert not wallet.pays(wallet.authorization(number, 1, payee=parse_address(thief)))


def spend_other_days_slots_today(wallet: Wallet, _thief: str) -> None:
    today = wallet.today()
    window = {"valid_after_s": today * DAY_S, "valid_before_s": (today + 1) * DAY_S - 1}
    for day in (today - 1, today + 1, today + 2):
        assert not wallet.pays(wallet.authorization(0, day=day))
        assert not wallet.pays(wallet.authorization(0, day=day, **window))
        assert not wallet.pays(wallet.authorization(0, day=day, valid_after_s=0, valid_before_s=2**40))


def spend_nonces_beside_the_slots(wallet: Wallet, _thief: str) -> None:
    slot = wallet.authorization(0)
    for bit in (0, 8, 15, 16, 17, 39, 40, 55, 56, 57, 128, 255):
        nonce = (int.from_bytes(slot.nonce) ^ (1 << bit)).to_bytes(32)
        other = wallet.authorization(0, nonce=nonce)
        digest = rail_of(wallet.offer).digest(other, wallet.offer)
        approval = wallet.agent.sign(approval_digest(wallet.address, wallet.chain.chain_id, digest))
        named = slot_signature(approval, slot, wallet.token, rail_of(wallet.offer).NAME)
        assert not wallet.pays(other, named)
        # The same bits in the numbers that the signature states.
        numbers = int.from_bytes(named[-96:-32]) | (1 << max(bit, 16)) if bit < 56 else int.from_bytes(named[-96:-32])
        assert not wallet.pays(other, named[:-96] + numbers.to_bytes(64) + named[-32:])


def sign_as_an_account(wallet: Wallet, _thief: str) -> None:
    fresh = wallet.authorization(0, nonce=keccak(b"fresh"))
    for signature in forgeries(wallet, rail_of(wallet.offer).digest(fresh, wallet.offer)):
        assert not wallet.pays(fresh, signature)
    vrs = exact_eip3009.transfer_call(fresh, wallet.agent.sign(exact_eip3009.digest(fresh, wallet.offer)))
    assert not succeeds(wallet.chain, wallet.owner, Call(wallet.token, vrs))


def take_the_other_rail(wallet: Wallet, _thief: str) -> None:
    other = "permit2" if rail_of(wallet.offer).NAME == "eip3009" else "eip3009"
    twin = Wallet(wallet.chain, wallet.address, wallet.owner, wallet.agent, offer_for(wallet.chain, other))
    for number in range(2):
        assert not twin.pays(twin.authorization(number))


def permit_oneself(wallet: Wallet, thief: str) -> None:
    chain, dollar = wallet.chain, wallet.chain.token
    fields = (("owner", "address"), ("spender", "address"), ("value", "uint256"), ("nonce", "uint256"))
    types = {"Permit": [{"name": name, "type": kind} for name, kind in (*fields, ("deadline", "uint256"))]}
    message = {"owner": address_text(wallet.address), "spender": thief, "value": UNIT, "nonce": 0, "deadline": 2**40}
    head = [address_text(wallet.address), thief, UNIT, 2**40]
    permit = "permit(address,address,uint256,uint256,bytes)"
    for signature in forgeries(wallet, typed_digest(chain, dollar, types, message)):
        send(chain, thief, Call(parse_address(dollar), call_data(permit, *head, signature)))
    take = "transferFrom(address,address,uint256)"
    assert not succeeds(
        chain, thief, Call(parse_address(dollar), call_data(take, address_text(wallet.address), thief, UNIT))
    )


def take_a_permit2_allowance(wallet: Wallet, thief: str) -> None:
    token, owner = address_text(wallet.token), address_text(wallet.address)
    details = {"token": token, "amount": UNIT, "expiration": 2**40, "nonce": 0}
    for name, member, value, kind in (
        ("PermitSingle", "PermitDetails", details, "(address,uint160,uint48,uint48)"),
        ("PermitBatch", "PermitDetails[]", [details], "(address,uint160,uint48,uint48)[]"),
    ):
        types = {
            name: [
                {"name": "details", "type": member},
                {"name": "spender", "type": "address"},
                {"name": "sigDeadline", "type": "uint256"},
            ],
            "PermitDetails": DETAILS,
        }
        message = {"details": value, "spender": thief, "sigDeadline": 2**40}
        digest = typed_digest(wallet.chain, address_text(PERMIT2), types, message)
        row = tuple(details.values())
        stated = ([row] if name == "PermitBatch" else row, thief, 2**40)
        permit = f"permit(address,({kind},address,uint256),bytes)"
        for signature in forgeries(wallet, digest):
            send(wallet.chain, thief, Call(PERMIT2, call_data(permit, owner, stated, signature)))
    take = call_data("transferFrom(address,address,uint160,address)", owner, thief, UNIT, token)
    assert not succeeds(wallet.chain, thief, Call(PERMIT2, take))


def spend_by_permit2_itself(wallet: Wallet, thief: str) -> None:
    """`permitTransferFrom` and its batch: the thief is the spender, and there is no witness."""
    token, owner = address_text(wallet.token), address_text(wallet.address)
    nonce = int.from_bytes(wallet.authorization(SLOTS).nonce)
    for batch in (False, True):
        name = "PermitBatchTransferFrom" if batch else "PermitTransferFrom"
        permitted = {"token": token, "amount": UNIT}
        types = {
            name: [
                {"name": "permitted", "type": "TokenPermissions" + "[]" * batch},
                {"name": "spender", "type": "address"},
                {"name": "nonce", "type": "uint256"},
                {"name": "deadline", "type": "uint256"},
            ],
            "TokenPermissions": PERMISSIONS,
        }
        message = {"permitted": [permitted] if batch else permitted, "spender": thief, "nonce": nonce}
        digest = typed_digest(wallet.chain, address_text(PERMIT2), types, message | {"deadline": 2**40})
        lists = "[]" * batch
        take = f"permitTransferFrom(((address,uint256){lists},uint256,uint256),(address,uint256){lists},address,bytes)"
        pair, details = (token, UNIT), (thief, UNIT)
        stated = (([pair] if batch else pair), nonce, 2**40)
        wanted = [details] if batch else details
        for signature in forgeries(wallet, digest):
            send(wallet.chain, thief, Call(PERMIT2, call_data(take, stated, wanted, owner, signature)))


def spend_a_token_without_a_policy(wallet: Wallet, _thief: str) -> None:
    chain = wallet.chain
    token = chain.deploy("TestUSD", "USDC", "USDC", "2")
    chain.mint(address_text(wallet.address), UNIT, token)
    offer = offer_for(chain, "eip3009")
    asset = type(offer.asset)(parse_address(token), "USDC", "2", 6, "USDC")
    unlisted = type(offer)("exact", offer.network, asset, UNIT, offer.pay_to, 60)
    payment = wallet.authorization(SLOTS)
    for number in range(SLOTS):
        payment = Authorization(
            payer=wallet.address,
            payee=payment.payee,
            value_atomic=1,
            valid_after_s=payment.valid_after_s,
            valid_before_s=payment.valid_before_s,
            nonce=wallet.authorization(number).nonce,
        )
        for signature in forgeries(wallet, exact_eip3009.digest(payment, unlisted)):
            call = exact_eip3009.settle_call(payment, signature, asset.address, 1, contract_payer=True)
            assert not succeeds(chain, wallet.owner, call)
    assert chain.balance_of(address_text(wallet.address), token) == UNIT


def act_as_the_owner(wallet: Wallet, thief: str) -> None:
    wanted = (
        execute_call(wallet.address, transfer_call(wallet.token, parse_address(thief), UNIT)),
        set_policy_call(wallet.address, wallet.token, WalletRail.EIP3009, unit_atomic=2**96 - 1, slots=2**16 - 1),
        set_agent_call(wallet.address, parse_address(thief)),
        Call(wallet.address, call_data("transferOwnership(address)", thief)),
        Call(wallet.address, call_data("acceptOwnership()")),
    )
    for call in wanted:
        assert not succeeds(wallet.chain, thief, call)
        # The way a forwarder names the sender; this wallet trusts none.
        named = Call(call.to, call.data + bytes(parse_address(wallet.owner)))
        assert not succeeds(wallet.chain, thief, named)


def reserve_more_than_the_cap(wallet: Wallet, thief: str) -> None:
    payment = wallet.authorization(0, 1, nonce=keccak(b"terms"), payee=parse_address(thief))
    assert not succeeds(wallet.chain, thief, reserve_call(wallet.address, wallet.token, payment))


def create_the_wallet_again(wallet: Wallet, thief: str) -> None:
    owner, agent = parse_address(wallet.owner), wallet.agent.address
    assert succeeds(wallet.chain, thief, create_call(owner, agent, bytes(32)))
    assert address_text(wallet.state().owner) == wallet.owner
    own = parse_address(thief)
    assert succeeds(wallet.chain, thief, create_call(own, agent, bytes(32)))
    assert wallet_address(own, agent, bytes(32)) != wallet.address


ATTEMPTS = (
    spend_more_slots,
    spend_a_slot_again_for_somebody_else,
    spend_other_days_slots_today,
    spend_nonces_beside_the_slots,
    sign_as_an_account,
    take_the_other_rail,
    permit_oneself,
    take_a_permit2_allowance,
    spend_by_permit2_itself,
    spend_a_token_without_a_policy,
    act_as_the_owner,
    reserve_more_than_the_cap,
    create_the_wallet_again,
)


def test_nothing_that_a_thief_tries_moves_more_than_the_day_allows(robbed: Wallet, thief: str) -> None:
    chain = robbed.chain
    dollar, plain = (offer_for(chain, rail).asset.address for rail in ("eip3009", "permit2"))
    for token in (dollar, plain):
        chain.mint(address_text(robbed.address), UNIT * SLOTS, address_text(token))
    held = [chain.balance_of(address_text(robbed.address), address_text(token)) for token in (dollar, plain)]
    for attempt in ATTEMPTS:
        attempt(robbed, thief)
        now = [chain.balance_of(address_text(robbed.address), address_text(token)) for token in (dollar, plain)]
        assert now == held, attempt.__name__


@dataclass(frozen=True)
class Agreeable(Wallet):
    """A wallet that agrees to whatever its agent signed."""

    real: Wallet

    def policy(self) -> Policy:
        return self.real.policy()

    def today(self) -> int:
        return self.real.today()


@pytest.mark.parametrize("attempt", [permit_oneself, take_a_permit2_allowance, spend_by_permit2_itself])
def test_these_attempts_would_rob_a_wallet_that_agrees_to_anything(
    chain: Devnet, attempt: Callable[[Wallet, str], None]
) -> None:
    to_noon(chain)
    real, thief = create_wallet(chain, "eip3009"), chain.accounts[2].address
    naive = chain.deploy("TestWallet", thief)
    chain.mint(naive, 3 * UNIT)
    chain.rpc("anvil_impersonateAccount", naive)
    chain.fund_gas(naive, 10**18)
    chain.approve_permit2(naive, 2**256 - 1)
    wallet = Agreeable(chain, parse_address(naive), naive, real.agent, real.offer, real)
    # The attempt itself says that it must not succeed.
    with contextlib.suppress(AssertionError):
        attempt(wallet, thief)
    assert wallet.balance() < 3 * UNIT


def test_a_thief_gains_nothing_from_a_policy_change_until_the_next_day(robbed: Wallet) -> None:
    rail = robbed.policy().rail
    assert robbed.set_policy(rail, unit=2 * UNIT, slots=2 * SLOTS)
    for number in range(2 * SLOTS):
        assert not robbed.pays(robbed.authorization(number))
    pass_days(robbed.chain, 1)
    assert robbed.pays(robbed.authorization(2 * SLOTS - 1, 2 * UNIT))
    assert not robbed.pays(robbed.authorization(2 * SLOTS, 2 * UNIT))


def test_a_frozen_wallet_refuses_what_was_signed_for_tomorrow(robbed: Wallet) -> None:
    tomorrow = robbed.authorization(0, day=robbed.today() + 1)
    signature = robbed.sign(tomorrow)
    assert succeeds(robbed.chain, robbed.owner, set_agent_call(robbed.address, Address(bytes(20))))
    pass_days(robbed.chain, 1)
    assert not robbed.pays(tomorrow, signature)


def test_a_signature_for_one_wallet_is_worthless_to_another_of_the_same_agent(chain: Devnet) -> None:
    to_noon(chain)
    first = create_wallet(chain, "permit2")
    second = create_wallet(chain, "permit2", salt=b"\x01" * 32)
    payment = first.authorization(0)
    signature = first.sign(payment)
    # A Permit2 message does not name its owner: the digest is the same for both wallets.
    stolen = second.authorization(0)
    assert exact_permit2.digest(stolen, second.offer) == exact_permit2.digest(payment, first.offer)
    assert not second.pays(stolen, signature)
    assert first.pays(payment, signature)


def test_another_key_signs_nothing(chain: Devnet) -> None:
    to_noon(chain)
    wallet = create_wallet(chain, "eip3009")
    stranger = SigningKey(bytes(Account.create().key))
    payment = wallet.authorization(0)
    assert not wallet.pays(payment, wallet.sign(payment, stranger))
    assert wallet.pays(payment)

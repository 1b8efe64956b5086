"""`AgentWallet`: slots, signatures, calls and reads of the wallet that an agent may spend from within a daily limit.

A payment by the wallet is an ordinary `Authorization` whose payer is the wallet and whose nonce is a slot:

    day = day_of(now_s)
    authorization = slot_authorization(wallet, policy, day=…, number=…, payee=…, value_atomic=…)   # upto: facilitator=…
    digest = rail_of(offer).digest(authorization, offer)
    approval = agent_key.sign(approval_digest(wallet, chain_id, digest))
    signature = slot_signature(approval, authorization, token, rail.NAME)                  # 322 bytes, ERC-1271

`policy` comes from `read_wallet`. Days are whole days since 1970 (UTC), as the chain counts them. A day's slots are
good for that day only, so tomorrow's may be signed today. Everything but the reads is pure.
Source: contracts/evm/solidity/AgentWallet.sol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

from eth_abi.abi import encode

from contracts.address import ZERO, Address, address_text
from contracts.errors import ChainUnavailable, UsageError
from contracts.evm.artifact import load_artifact
from contracts.evm.create2 import create2_address, deployed_address, deployment
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import call_object
from contracts.keccak import keccak
from contracts.networks import PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY
from contracts.schemes.authorization import Authorization, Call
from contracts.typed_data import Domain, padded_bytes, signing_digest, word_of_address, word_of_uint

__all__ = [
    "DAY_S",
    "RESERVED_SIGNATURE_BYTES",
    "SLOTS_MAX",
    "SLOT_SIGNATURE_BYTES",
    "Policy",
    "Slot",
    "WalletKeys",
    "WalletRail",
    "WalletState",
    "approval_digest",
    "approve_call",
    "cancel_slots_call",
    "create_call",
    "day_of",
    "drip_call",
    "execute_call",
    "factory_address",
    "factory_deployment",
    "read_keys",
    "read_wallet",
    "reserve_call",
    "reserved_signature",
    "set_agent_call",
    "set_policy_call",
    "slot_authorization",
    "slot_nonce",
    "slot_of",
    "slot_signature",
    "slot_window",
    "transfer_call",
    "wallet_address",
]

DAY_S = 86_400
# A slot's number is a uint16, and a policy counts slots in one too.
SLOTS_MAX = 2**16 - 1
# kind ‖ r ‖ s ‖ v ‖ eight words; never 65, the length that senders take for an account's signature.
SLOT_SIGNATURE_BYTES = 1 + 65 + 8 * 32
RESERVED_SIGNATURE_BYTES = 1 + 65

_UNIT_MAX = 2**96 - 1
_NONCE_TAG = keccak(b"Farebox AgentWallet slot 1")[:25]
_APPROVE_TYPE_HASH = keccak(b"Approve(bytes32 digest)")
_KINDS = {"eip3009": 1, "eip3009-receive": 2, "permit2": 3, "upto": 4}
_KIND_RESERVED = 5


class WalletRail(IntEnum):
    """How the wallet pays a token; the numbers are the contract's. One at a time for each token."""

    NONE = 0
    EIP3009 = 1
    PERMIT2 = 2
    DRIP = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """What the agent may move of one token per day: `slots` payments of at most `unit_atomic`, plus reserved ones."""

    unit_atomic: int
    reserve_cap_atomic: int
    slots: int
    token_id: int
    from_day: int
    rail: WalletRail

    @property
    def day_cap_atomic(self) -> int:
        """The most that a day moves of the token."""
        reserved = self.reserve_cap_atomic if self.rail is WalletRail.EIP3009 else 0
        return 0 if self.rail is WalletRail.NONE else self.unit_atomic * self.slots + reserved


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one payment: token id, day, number within the day."""

    token_id: int
    day: int
    number: int


@dataclass(frozen=True, slots=True)
class WalletState:
    """What the chain says of a wallet and one token. `permit2_allowance_atomic` caps all Permit2 payments together."""

    owner: Address
    pending_owner: Address
    agent: Address
    policy: Policy
    spendable_atomic: int
    balance_atomic: int
    permit2_allowance_atomic: int

    @property
    def is_frozen(self) -> bool:
        """Whether nobody's signature counts."""
        return self.agent == ZERO


def day_of(unix_s: int) -> int:
    """Return the day (UTC, since 1970) that a time lies in."""
    return unix_s // DAY_S


def slot_window(day: int) -> tuple[int, int]:
    """Return (valid after, valid before) of a day's payments, in unix seconds: the widest that the wallet signs."""
    return day * DAY_S, (day + 1) * DAY_S - 1


def slot_nonce(slot: Slot) -> bytes:
    """Return the 32-byte nonce of a slot; 256 slots in a row share a word of Permit2. Raises OverflowError."""
    return _NONCE_TAG + slot.token_id.to_bytes(2, "big") + slot.day.to_bytes(3, "big") + slot.number.to_bytes(2, "big")


def slot_of(nonce: bytes) -> Slot | None:
    """Return the slot that a 32-byte nonce means, or None when it is not a slot's."""
    if len(nonce) != 32 or not nonce.startswith(_NONCE_TAG):
        return None
    numbers = nonce[len(_NONCE_TAG) :]
    return Slot(
        int.from_bytes(numbers[:2], "big"), int.from_bytes(numbers[2:5], "big"), int.from_bytes(numbers[5:], "big")
    )


def slot_authorization(
    wallet: Address,
    policy: Policy,
    *,
    day: int,
    number: int,
    payee: Address,
    value_atomic: int,
    facilitator: Address | None = None,
) -> Authorization:
    """Return the payment of one slot, valid for all of its day. Raises `UsageError` for what the wallet refuses."""
    if day < policy.from_day:
        raise UsageError(f"day: the wallet's policy holds from day {policy.from_day} on, got {day}")
    if not 0 <= number < policy.slots:
        raise UsageError(f"slot: expected 0 to {policy.slots - 1}, got {number}")
    if not 0 <= value_atomic <= policy.unit_atomic:
        raise UsageError(f"value: a slot of this wallet pays at most {policy.unit_atomic}, got {value_atomic}")
    valid_after_s, valid_before_s = slot_window(day)
    nonce = slot_nonce(Slot(policy.token_id, day, number))
    return Authorization(wallet, payee, value_atomic, valid_after_s, valid_before_s, nonce, facilitator)


def approval_digest(wallet: Address, chain_id: int, digest: bytes) -> bytes:
    """Return the 32 bytes that the agent signs to approve a payment's `digest`, in the wallet's own domain."""
    separator = Domain("AgentWallet", "1", chain_id, wallet).separator
    return signing_digest(separator, keccak(_APPROVE_TYPE_HASH + digest))


def slot_signature(approval: bytes, authorization: Authorization, token: Address, rail: str) -> bytes:
    """Return the ERC-1271 signature of a slot's payment: the agent's 65-byte `approval` and what it is for.

    `rail` is "eip3009", "eip3009-receive", "permit2" or "upto". Raises `UsageError` for a nonce that is not a slot's.
    """
    slot = slot_of(authorization.nonce)
    if slot is None:
        raise UsageError("nonce: not a slot of an AgentWallet")
    words = (
        word_of_address(token),
        word_of_address(authorization.payee),
        word_of_uint(authorization.value_atomic),
        word_of_uint(authorization.valid_after_s),
        word_of_uint(authorization.valid_before_s),
        word_of_uint(slot.day),
        word_of_uint(slot.number),
        word_of_address(authorization.facilitator or ZERO),
    )
    return bytes((_KINDS[rail],)) + approval + b"".join(words)


def reserved_signature(approval: bytes) -> bytes:
    """Return the ERC-1271 signature of a reserved payment: the agent's 65-byte `approval` behind its kind."""
    return bytes((_KIND_RESERVED,)) + approval


def factory_deployment(forwarder: Address = ZERO) -> Call:
    """Return the call that puts the wallet factory at `factory_address(forwarder)`; anybody may send it, once."""
    return deployment(_factory_creation_code(forwarder))


@lru_cache(maxsize=16)
def factory_address(forwarder: Address = ZERO) -> Address:
    """Return where the factory of wallets that trust this ERC-2771 forwarder stands; zero for no forwarder."""
    return deployed_address(_factory_creation_code(forwarder))


def wallet_address(owner: Address, agent: Address, salt: bytes, forwarder: Address = ZERO) -> Address:
    """Return where the wallet of this owner, first agent and 32-byte salt is or will be."""
    arguments = (forwarder, owner, agent, PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY)
    code = _bytecode("AgentWallet") + b"".join(word_of_address(argument) for argument in arguments)
    return create2_address(factory_address(forwarder), salt, code)


def create_call(owner: Address, agent: Address, salt: bytes, forwarder: Address = ZERO) -> Call:
    """Return the factory's call that creates `wallet_address(…)`; anybody may send it, and again without effect."""
    data = _selector("create(address,address,bytes32)") + word_of_address(owner) + word_of_address(agent) + salt
    return Call(factory_address(forwarder), data)


def set_policy_call(
    wallet: Address, token: Address, rail: WalletRail, *, unit_atomic: int, slots: int, reserve_cap_atomic: int = 0
) -> Call:
    """Return the owner's call that sets a token's policy. Raises `UsageError` for numbers the contract cannot hold."""
    for name, value, most in (
        ("unit", unit_atomic, _UNIT_MAX),
        ("slots", slots, SLOTS_MAX),
        ("reserve cap", reserve_cap_atomic, _UNIT_MAX),
    ):
        if not 0 <= value <= most:
            raise UsageError(f"{name}: expected 0 to {most}, got {value}")
    numbers = b"".join(word_of_uint(number) for number in (rail, unit_atomic, slots, reserve_cap_atomic))
    selector = _selector("setPolicy(address,uint8,uint96,uint16,uint96)")
    return Call(wallet, selector + word_of_address(token) + numbers)


def set_agent_call(wallet: Address, agent: Address) -> Call:
    """Return the owner's call that names the agent's key; the zero address freezes the wallet at once."""
    return Call(wallet, _selector("setAgent(address)") + word_of_address(agent))


def execute_call(wallet: Address, call: Call) -> Call:
    """Return the owner's call by which the wallet itself makes `call`."""
    head = word_of_address(call.to) + word_of_uint(0) + word_of_uint(96)
    return Call(wallet, _selector("execute(address,uint256,bytes)") + head + padded_bytes(call.data))


def approve_call(token: Address, spender: Address, amount_atomic: int) -> Call:
    """Return ERC-20 `approve`; inside `execute_call` it lets Permit2 move the wallet's tokens, up to an amount."""
    return Call(token, _selector("approve(address,uint256)") + word_of_address(spender) + word_of_uint(amount_atomic))


def transfer_call(token: Address, to: Address, amount_atomic: int) -> Call:
    """Return ERC-20 `transfer`."""
    return Call(token, _selector("transfer(address,uint256)") + word_of_address(to) + word_of_uint(amount_atomic))


def cancel_slots_call(wallet: Address, token: Address, day: int, first: int, last: int) -> Call:
    """Return the owner's or agent's call that burns the slots `first` to `last`, both included, of one day."""
    numbers = word_of_uint(day) + word_of_uint(first) + word_of_uint(last)
    return Call(wallet, _selector("cancelSlots(address,uint24,uint16,uint16)") + word_of_address(token) + numbers)


def reserve_call(wallet: Address, token: Address, authorization: Authorization) -> Call:
    """Return the agent's call that allows one `ReceiveWithAuthorization` with a nonce that others dictate, today."""
    types = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
    arguments = encode(
        types,
        (
            address_text(token),
            address_text(authorization.payee),
            authorization.value_atomic,
            authorization.valid_after_s,
            authorization.valid_before_s,
            authorization.nonce,
        ),
    )
    return Call(wallet, _selector(f"reserve({','.join(types)})") + arguments)


def drip_call(wallet: Address, token: Address) -> Call:
    """Return anybody's call that fills the agent's own account up to the day's limit (rail DRIP)."""
    return Call(wallet, _selector("drip(address)") + word_of_address(token))


@dataclass(frozen=True, slots=True)
class WalletKeys:
    """Who acts for a wallet: its owner, its agent (zero when frozen), and its ERC-2771 forwarder (zero for none)."""

    owner: Address
    agent: Address
    forwarder: Address


async def read_keys(rpc: Rpc, wallet: Address) -> WalletKeys:
    """Return who acts for `wallet`. Raises `ChainUnavailable`, and `UsageError` when there is no AgentWallet."""
    asked = (_selector(name) for name in ("owner()", "agent()", "trustedForwarder()"))
    answers = await rpc.batch([("eth_call", [call_object(wallet, data), "latest"]) for data in asked])
    return WalletKeys(*(Address(word[12:32]) for word in _words(answers, wallet)))


async def read_wallet(rpc: Rpc, wallet: Address, token: Address, day: int) -> WalletState:
    """Return what the chain says of `wallet` and `token` on `day`, in one round trip. Raises `ChainUnavailable`.

    Raises `UsageError` when there is no AgentWallet at the address.
    """
    held = word_of_address(wallet)
    answers = await rpc.batch(
        [
            ("eth_call", [call_object(to, data), "latest"])
            for to, data in (
                (wallet, _selector("owner()")),
                (wallet, _selector("pendingOwner()")),
                (wallet, _selector("agent()")),
                (wallet, _selector("policy(address)") + word_of_address(token)),
                (wallet, _selector("spendable(address,uint24)") + word_of_address(token) + word_of_uint(day)),
                (token, _selector("balanceOf(address)") + held),
                (token, _selector("allowance(address,address)") + held + word_of_address(PERMIT2)),
            )
        ]
    )
    words = _words(answers, wallet)
    owner, pending, agent = (Address(word[12:32]) for word in words[:3])
    try:
        return WalletState(owner, pending, agent, _policy(words[3]), *(int.from_bytes(word) for word in words[4:]))
    except ValueError:
        raise ChainUnavailable(f"{address_text(wallet)}: the answers are not those of an AgentWallet") from None


def _words(answers: Sequence[Any], wallet: Address) -> list[bytes]:
    if any(isinstance(answer, RpcRefused) or answer == "0x" for answer in answers):
        raise UsageError(f"{address_text(wallet)}: no AgentWallet is at this address on this chain, or no token")
    try:
        return [bytes.fromhex(answer.removeprefix("0x")) for answer in answers]
    except (AttributeError, ValueError):
        raise ChainUnavailable(f"{address_text(wallet)}: the answers are not hex") from None


def _policy(words: bytes) -> Policy:
    """Return the policy in the six words of `policy(address)`."""
    unit, reserve_cap, slots, token_id, from_day, rail = (
        int.from_bytes(words[at : at + 32]) for at in range(0, 6 * 32, 32)
    )
    return Policy(unit, reserve_cap, slots, token_id, from_day, WalletRail(rail))


@lru_cache(maxsize=32)
def _selector(signature: str) -> bytes:
    return keccak(signature.encode())[:4]


def _bytecode(name: str) -> bytes:
    return bytes.fromhex(load_artifact(name).bytecode.removeprefix("0x"))


def _factory_creation_code(forwarder: Address) -> bytes:
    arguments = (forwarder, PERMIT2, X402_EXACT_PROXY, X402_UPTO_PROXY)
    return _bytecode("AgentWalletFactory") + b"".join(word_of_address(argument) for argument in arguments)

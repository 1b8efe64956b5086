"""What the owner of an `AgentWallet` does with it: create, fund, set policies, freeze, revoke, and look.

Every act is planned first, priced, and shown; nothing is signed or sent before `carry_out`. Where the wallet has an
ERC-2771 forwarder, its owner may sign and leave the gas to another account, the relay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

import msgspec

from buyer.approval import token_at
from buyer.chain import endpoints_by_chain
from buyer.forwarding import Forwarding, forward, sign_requests
from buyer.limits import REVOKED_NONCES_PER_TRANSACTION, REVOKED_WORDS_PER_TRANSACTION
from buyer.signing import Signer, Transaction
from buyer.transact import check_gas, price, submit
from contracts.address import ZERO, Address, address_text, parse_address
from contracts.errors import InsufficientBalance, TermsNotAllowed, UsageError
from contracts.evm.agent_wallet import (
    DAY_S,
    SLOTS_MAX,
    Policy,
    WalletRail,
    WalletState,
    approve_call,
    cancel_slots_call,
    create_call,
    day_of,
    execute_call,
    factory_address,
    factory_deployment,
    read_keys,
    read_wallet,
    set_agent_call,
    set_policy_call,
    transfer_call,
    wallet_address,
)
from contracts.evm.forwarder import forwarder_address, forwarder_deployment
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token, read_head
from contracts.keccak import keccak
from contracts.money import Asset, format_amount, parse_amount
from contracts.networks import PERMIT2, Network
from contracts.schemes.authorization import Call

__all__ = [
    "Act",
    "Hands",
    "Place",
    "PolicyTerms",
    "Shown",
    "carry_out",
    "day_text",
    "place_of",
    "plan_agent",
    "plan_creation",
    "plan_funding",
    "plan_policy",
    "plan_revocation",
    "show",
]

# A creation cannot be estimated before its factory is there; it needs some 2,620,000.
_CREATION_GAS = 3_000_000
_RAILS = {
    "eip3009": WalletRail.EIP3009,
    "permit2": WalletRail.PERMIT2,
    "drip": WalletRail.DRIP,
    "none": WalletRail.NONE,
}
_SLOTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """One chain: its network, and the endpoints that serve it."""

    network: Network
    rpc_urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Act:
    """What will be done to `wallet`, in words, and the transactions that do it, priced."""

    place: Place
    wallet: Address
    what: str
    transactions: list[Transaction]
    forwarding: Forwarding | None = None


@dataclass(frozen=True, slots=True)
class Hands:
    """Whose act it is, `signer`, and who sends it and pays the gas: `relay`, or the same."""

    signer: Signer
    relay: Signer | None = None

    @property
    def payer(self) -> Signer:
        """Who pays the gas."""
        return self.relay or self.signer


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """A policy as it is typed: amounts as text, `rail` a word. `allowance` is what Permit2 may move in all."""

    rail: str
    unit: str
    slots: int
    reserve: str = "0"
    allowance: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A wallet as the chain has it, seen through one token on `day`."""

    place: Place
    wallet: Address
    asset: Asset
    state: WalletState
    day: int


async def place_of(rpc_urls: Sequence[str]) -> Place:
    """Return the one chain that the endpoints serve. Raises `UsageError` for several, `ChainUnavailable` for none."""
    endpoints = await endpoints_by_chain(rpc_urls)
    if len(endpoints) != 1:
        raise UsageError("--rpc: the endpoints are of several chains", remedy="name those of one chain")
    ((chain_id, urls),) = endpoints.items()
    return Place(Network(chain_id), urls)


async def plan_creation(place: Place, who: Hands, agent: str, salt: str, forwarder: str | None) -> Act:
    """Plan a wallet owned by the signer's account; without transactions when it is there already.

    The first wallet of a chain also brings its factory. `salt` is any text: it tells wallets of one owner and agent
    apart. `forwarder` is an address, or "own" for Farebox's, which is brought where it is missing.
    """
    owner = who.signer.address
    agent_address = parse_address(agent, "--agent")
    trusted = _forwarder(forwarder)
    word = keccak(salt.encode()) if salt else bytes(32)
    wallet = wallet_address(owner, agent_address, word, trusted)
    what = f"create the wallet {address_text(wallet)} for the agent {address_text(agent_address)}"
    async with Rpc(place.rpc_urls) as rpc:
        if await _has_code(rpc, wallet):
            return Act(place, wallet, what, [])
        calls = []
        if trusted != ZERO and not await _has_code(rpc, trusted):
            if trusted != forwarder_address():
                where = f"{address_text(trusted)} on {place.network.label}"
                raise UsageError(f"--forwarder: there is no contract at {where}", remedy="name one, or own")
            calls.append(forwarder_deployment())
        factory_missing = not await _has_code(rpc, factory_address(trusted))
        if factory_missing:
            calls.append(factory_deployment(trusted))
        calls.append(create_call(owner, agent_address, word, trusted))
        transactions = await price(rpc, place.network.chain_id, who.payer.address, calls)
        if factory_missing:
            # A call to what is not there yet is estimated as a mere transfer.
            transactions[-1] = msgspec.structs.replace(transactions[-1], gas_limit=_CREATION_GAS)
        await check_gas(rpc, who.payer.address, transactions, "creating the wallet")
    return Act(place, wallet, what, transactions)


async def plan_funding(place: Place, signer: Signer, wallet: Address, token: str, amount: str) -> Act:
    """Plan a transfer of the signer's tokens to the wallet. Raises `InsufficientBalance` when there are not enough."""
    asset = await _asset_at(place, token)
    amount_atomic = parse_amount(amount, asset, "--amount")
    async with Rpc(place.rpc_urls) as rpc:
        await read_keys(rpc, wallet)
        held = await Token(rpc, asset.address).balance_of(signer.address)
    if held < amount_atomic:
        raise InsufficientBalance(
            f"{address_text(signer.address)} holds {format_amount(held, asset)}", remedy="fund less, or get more first"
        )
    what = f"send {format_amount(amount_atomic, asset)} to the wallet {address_text(wallet)}"
    return await _act(place, Hands(signer), wallet, what, [transfer_call(asset.address, wallet, amount_atomic)])


async def plan_policy(place: Place, who: Hands, wallet: Address, token: str, terms: PolicyTerms) -> Act:
    """Plan a token's policy, and with `allowance` how much of it Permit2 may move. Raises `TermsNotAllowed`."""
    if terms.rail not in _RAILS:
        raise UsageError(f"--rail: expected one of {', '.join(_RAILS)}, got {terms.rail[:20]!r}")
    rail = _RAILS[terms.rail]
    asset = await _asset_at(place, token)
    unit_atomic = parse_amount(terms.unit, asset, "--unit", zero_allowed=rail is WalletRail.NONE)
    reserve_atomic = parse_amount(terms.reserve, asset, "--reserve", zero_allowed=True)
    if reserve_atomic and rail is not WalletRail.EIP3009:
        raise UsageError("--reserve: only tokens paid by eip3009 have reserved payments")
    wanted = Policy(unit_atomic, reserve_atomic, terms.slots, 0, 0, rail)
    async with Rpc(place.rpc_urls) as rpc:
        state = await read_wallet(rpc, wallet, asset.address, 0)
        _check_owner(who.signer, state.owner)
        if rail is WalletRail.EIP3009 and not await Token(rpc, asset.address).has_eip3009():
            raise UsageError(
                f"--rail: {asset.address_text} has no EIP-3009", remedy="pay it by --rail permit2 and an --allowance"
            )
    what = (
        f"let the agent of {address_text(wallet)} spend at most {format_amount(wanted.day_cap_atomic, asset)} a day by "
        f"{terms.rail}"
    )
    calls = []
    # A policy that is set again would suspend the agent until tomorrow, and change nothing.
    if not _is_same(state.policy, wanted):
        numbers = {"unit_atomic": unit_atomic, "slots": terms.slots, "reserve_cap_atomic": reserve_atomic}
        calls.append(set_policy_call(wallet, asset.address, rail, **numbers))
    if terms.allowance is not None:
        allowance_atomic = parse_amount(terms.allowance, asset, "--allowance", zero_allowed=True)
        calls.append(execute_call(wallet, approve_call(asset.address, PERMIT2, allowance_atomic)))
        what += f", and Permit2 move up to {format_amount(allowance_atomic, asset)} in all,"
    return await _act(place, who, wallet, what, calls)


def _is_same(policy: Policy, wanted: Policy) -> bool:
    """Tell whether a token that has a policy has this one."""
    return policy.token_id != 0 and policy == replace(wanted, token_id=policy.token_id, from_day=policy.from_day)


async def plan_agent(place: Place, who: Hands, wallet: Address, agent: str | None) -> Act:
    """Plan to name another key as the agent; None freezes the wallet. Raises `TermsNotAllowed` but for the owner."""
    address = ZERO if agent is None else parse_address(agent, "--agent")
    async with Rpc(place.rpc_urls) as rpc:
        _check_owner(who.signer, (await read_keys(rpc, wallet)).owner)
    named = f"make {address_text(address)} the agent of" if agent else "freeze"
    what = f"{named} the wallet {address_text(wallet)}"
    return await _act(place, who, wallet, what, [set_agent_call(wallet, address)])


async def plan_revocation(place: Place, who: Hands, wallet: Address, token: str, *, day: str, slots: str | None) -> Act:
    """Plan to burn slots of one day, all of them without `slots` ("7" or "0-99"), by the owner or the agent."""
    shown = await show(place, wallet, token)
    if who.signer.address not in (shown.state.owner, shown.state.agent):
        raise TermsNotAllowed(
            f"only the owner {address_text(shown.state.owner)} and the agent may revoke, not "
            f"{address_text(who.signer.address)}",
            remedy="name the owner's or the agent's key with --signer",
        )
    policy = shown.state.policy
    if policy.rail not in (WalletRail.EIP3009, WalletRail.PERMIT2):
        raise TermsNotAllowed("this token has no slots to revoke", remedy="freeze the wallet, or set another policy")
    number = _day(day, shown.day)
    first, last = _slot_range(slots, policy.slots)
    # Permit2 burns 256 slots at once; a token one at a time.
    step = REVOKED_NONCES_PER_TRANSACTION
    if policy.rail is WalletRail.PERMIT2:
        step = REVOKED_WORDS_PER_TRANSACTION * 256
    calls = [
        cancel_slots_call(wallet, shown.asset.address, number, start, min(start + step - 1, last))
        for start in range(first, last + 1, step)
    ]
    what = f"revoke the slots {first} to {last} of {day_text(number)} of the wallet {address_text(wallet)}"
    return await _act(place, who, wallet, what, calls)


async def show(place: Place, wallet: Address, token: str) -> Shown:
    """Return what the chain says of the wallet, seen through one token, today by the chain's clock."""
    asset = await _asset_at(place, token)
    async with Rpc(place.rpc_urls) as rpc:
        today = day_of((await read_head(rpc)).timestamp_s)
        state = await read_wallet(rpc, wallet, asset.address, today)
    return Shown(place, wallet, asset, state, today)


async def carry_out(act: Act, who: Hands) -> list[str]:
    """Send what was planned, wait until it is mined, and return the transactions' hashes."""
    transactions = act.transactions
    if act.forwarding is not None:
        transactions = sign_requests(act.forwarding, who.signer, transactions)
    async with Rpc(act.place.rpc_urls) as rpc:
        return await submit(rpc, who.payer, transactions, act.what)


async def _asset_at(place: Place, token: str) -> Asset:
    """Return the token at an address that was typed. Raises `UsageError` when there is none."""
    _, asset = await token_at(token, {place.network.chain_id: place.rpc_urls})
    return asset


def day_text(day: int) -> str:
    """Return a day's date (UTC), as 2026-11-21."""
    return datetime.fromtimestamp(day * DAY_S, UTC).date().isoformat()


async def _act(place: Place, who: Hands, wallet: Address, what: str, calls: Sequence[Call]) -> Act:
    async with Rpc(place.rpc_urls) as rpc:
        transactions = await price(rpc, place.network.chain_id, who.signer.address, calls)
        forwarding = None
        if who.relay is not None:
            forwarder = (await read_keys(rpc, wallet)).forwarder
            forwarding, transactions = await forward(rpc, forwarder, who.signer, who.relay, transactions)
        await check_gas(rpc, who.payer.address, transactions, what)
    return Act(place, wallet, what, transactions, forwarding)


def _forwarder(given: str | None) -> Address:
    if given is None:
        return ZERO
    return forwarder_address() if given == "own" else parse_address(given, "--forwarder")


async def _has_code(rpc: Rpc, address: Address) -> bool:
    return await rpc.call("eth_getCode", address_text(address), "latest") not in ("0x", None)


def _check_owner(signer: Signer, owner: Address) -> None:
    if signer.address != owner:
        raise TermsNotAllowed(
            f"only the owner {address_text(owner)} may do this, not {address_text(signer.address)}",
            remedy="name the owner's key with --signer",
        )


def _day(text: str, today: int) -> int:
    if text in ("today", "tomorrow"):
        return today + (text == "tomorrow")
    try:
        return int(datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC).timestamp()) // DAY_S
    except ValueError:
        raise UsageError(f"--day: expected today, tomorrow or a date as 2026-11-21, got {text[:20]!r}") from None


def _slot_range(text: str | None, slots: int) -> tuple[int, int]:
    if text is None:
        if slots == 0:
            raise TermsNotAllowed("this policy has no slots", remedy="name those of an earlier one with --slots")
        return 0, slots - 1
    found = _SLOTS.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= SLOTS_MAX:
        raise UsageError(f"--slots: expected one as 7 or a range as 0-99, up to {SLOTS_MAX}, got {text[:20]!r}")
    return first, last

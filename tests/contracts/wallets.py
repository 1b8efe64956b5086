"""An AgentWallet on the local chain, for tests: its owner, its agent's key, and payments by either rail."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from eth_abi.abi import encode

from contracts.address import Address, address_text, parse_address
from contracts.evm.agent_wallet import (
    Policy,
    WalletRail,
    WalletState,
    approval_digest,
    approve_call,
    create_call,
    day_of,
    execute_call,
    factory_address,
    factory_deployment,
    read_wallet,
    set_policy_call,
    slot_authorization,
    slot_signature,
    wallet_address,
)
from contracts.evm.devnet import Devnet
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.keccak import keccak
from contracts.money import Asset
from contracts.networks import PERMIT2, Network
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from tests.patience import PATIENCE_S

UNIT = 10_000
SLOTS = 5
DAY_S = 86_400
GAS = 8_000_000
MAGIC = "0x1626ba7e" + "00" * 28
PAYEE = Address(keccak(b"a payee of the wallet tests")[12:])
PLAIN = ("Plain Dollar", "1", 18)
USDC = ("USDC", "2", 6)


def call_data(signature: str, *arguments: object) -> bytes:
    """Return the ABI encoding of a call; tuples are written as `(a,b)` without spaces."""
    return keccak(signature.encode())[:4] + encode(_types(signature), arguments)


def _types(signature: str) -> list[str]:
    kinds: list[str] = []
    depth = 0
    for character in signature[signature.index("(") + 1 : -1]:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            kinds.append("")
        else:
            kinds = kinds or [""]
            kinds[-1] += character
    return kinds


def to_noon(chain: Devnet) -> int:
    """Take the chain to noon of tomorrow, far from midnight, and return that day."""
    noon = (int(time.time()) // DAY_S + 1) * DAY_S + DAY_S // 2
    chain.rpc("evm_setTime", noon)
    chain.mine()
    return day_of(noon)


def pass_days(chain: Devnet, days: int) -> None:
    chain.rpc("evm_increaseTime", days * DAY_S)
    chain.mine()


def send(chain: Devnet, sender: Address | str, call: Call) -> dict[str, Any]:
    """Mine one transaction, also one that reverts; return its receipt."""
    sender = sender if isinstance(sender, str) else address_text(sender)
    transaction = {"from": sender, "to": address_text(call.to), "data": "0x" + call.data.hex(), "gas": hex(GAS)}
    done = chain.rpc("eth_sendTransaction", transaction)
    receipt: dict[str, Any] | None = None
    deadline = time.monotonic() + PATIENCE_S
    while receipt is None:
        assert time.monotonic() < deadline, "the transaction was not mined"
        receipt = chain.rpc("eth_getTransactionReceipt", done)
    return receipt


def succeeds(chain: Devnet, sender: Address | str, call: Call) -> bool:
    return bool(send(chain, sender, call)["status"] == "0x1")


@dataclass(frozen=True)
class Wallet:
    """A wallet with a policy for one token. `agent` signs; `owner` is an account of the chain."""

    chain: Devnet
    address: Address
    owner: str
    agent: SigningKey
    offer: Offer

    @property
    def token(self) -> Address:
        return self.offer.asset.address

    def state(self) -> WalletState:
        async def read() -> WalletState:
            async with Rpc([self.chain.rpc_url]) as rpc:
                return await read_wallet(rpc, self.address, self.token, self.today())

        return asyncio.run(read())

    def policy(self) -> Policy:
        return self.state().policy

    def today(self) -> int:
        return day_of(int(self.chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16))

    def authorization(self, number: int, value: int = UNIT, **changes: Any) -> Authorization:
        """Return the payment of one of today's slots, made as asked also where the wallet would refuse it."""
        policy = replace(self.policy(), slots=2**16, unit_atomic=2**256 - 1, from_day=0)
        day = changes.pop("day", self.today())
        facilitator = parse_address(self.chain.accounts[5].address) if self.offer.scheme == "upto" else None
        made = slot_authorization(
            self.address, policy, day=day, number=number, payee=PAYEE, value_atomic=value, facilitator=facilitator
        )
        fields = {name: getattr(made, name) for name in made.__struct_fields__}
        return Authorization(**(fields | changes))

    def sign(self, authorization: Authorization, key: SigningKey | None = None) -> bytes:
        """Return the signature the agent makes for a payment by this wallet."""
        rail = rail_of(self.offer)
        digest = approval_digest(self.address, self.chain.chain_id, rail.digest(authorization, self.offer))
        return slot_signature((key or self.agent).sign(digest), authorization, self.token, rail.NAME)

    def settle(self, authorization: Authorization, signature: bytes) -> dict[str, Any]:
        """Send the settlement from the facilitator's account and return its receipt."""
        rail = rail_of(self.offer)
        call = rail.settle_call(authorization, signature, self.token, authorization.value_atomic, contract_payer=True)
        return send(self.chain, self.chain.accounts[5].address, call)

    def pays(self, authorization: Authorization, signature: bytes | None = None) -> bool:
        """Say whether the payment moves its money."""
        before = self.received()
        signed = self.sign(authorization) if signature is None else signature
        done = bool(self.settle(authorization, signed)["status"] == "0x1")
        assert self.received() - before == (authorization.value_atomic if done else 0)
        return done

    def agrees(self, digest: bytes, signature: bytes, sender: str | None = None) -> bool:
        """Say whether the wallet answers an ERC-1271 question with yes; an answer that reverts fails the test."""
        data = call_data("isValidSignature(bytes32,bytes)", digest, signature)
        call = {"to": address_text(self.address), "data": "0x" + data.hex()} | ({"from": sender} if sender else {})
        answer: str = self.chain.rpc("eth_call", call, "latest")
        assert len(answer) == 66
        return answer == MAGIC

    def received(self) -> int:
        return self.chain.balance_of(address_text(PAYEE), address_text(self.token))

    def balance(self) -> int:
        return self.chain.balance_of(address_text(self.address), address_text(self.token))

    def set_policy(self, rail: WalletRail, unit: int = UNIT, slots: int = SLOTS, reserve_cap: int = 0) -> bool:
        call = set_policy_call(
            self.address, self.token, rail, unit_atomic=unit, slots=slots, reserve_cap_atomic=reserve_cap
        )
        return succeeds(self.chain, self.owner, call)

    def refusal(self, sender: str, call: Call) -> str:
        """Return the four bytes of the error that a call answers with."""
        try:
            data = {"from": sender, "to": address_text(call.to), "data": "0x" + call.data.hex()}
            self.chain.rpc("eth_call", data, "latest")
        except RpcRefused as refused:
            return str(refused.data)[:10]
        return "none"


def offer_for(chain: Devnet, rail: str) -> Offer:
    """Return an offer of one unit by "eip3009", "permit2" (plain token) or "upto" (plain token)."""
    token, (name, version, decimals) = (chain.token, USDC) if rail == "eip3009" else (chain.plain_token, PLAIN)
    return Offer(
        scheme="upto" if rail == "upto" else "exact",
        network=Network(chain.chain_id),
        asset=Asset(parse_address(token), name, version, decimals, name),
        amount_atomic=UNIT,
        pay_to=PAYEE,
        max_timeout_s=60,
        method="eip3009" if rail == "eip3009" else "permit2",
    )


def create_wallet(
    chain: Devnet, rail: str, *, reserve_cap: int = 0, salt: bytes = bytes(32), forwarder: Address | None = None
) -> Wallet:
    """Create a wallet of 100 units whose agent may spend `SLOTS` of them a day by `rail`."""
    owner, agent = chain.accounts[1], SigningKey(chain.accounts[2].key)
    owner_address, forwarder_address = parse_address(owner.address), forwarder or Address(bytes(20))
    if chain.rpc("eth_getCode", address_text(factory_address(forwarder_address)), "latest") == "0x":
        assert succeeds(chain, owner.address, factory_deployment(forwarder_address))
    assert succeeds(chain, owner.address, create_call(owner_address, agent.address, salt, forwarder_address))
    address = wallet_address(owner_address, agent.address, salt, forwarder_address)
    wallet = Wallet(chain, address, owner.address, agent, offer_for(chain, rail))
    token = address_text(wallet.token)
    chain.mint(address_text(address), 100 * UNIT, token)
    wallet_rail = WalletRail.EIP3009 if rail == "eip3009" else WalletRail.PERMIT2
    if wallet_rail is WalletRail.PERMIT2:
        approve = execute_call(address, approve_call(wallet.token, PERMIT2, 2**256 - 1))
        assert succeeds(chain, owner.address, approve)
    assert wallet.set_policy(wallet_rail, reserve_cap=reserve_cap)
    return wallet

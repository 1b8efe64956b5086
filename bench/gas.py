"""Gas of settlements and of the wallet's own calls, from receipts of a local chain: `python -m bench gas [--json]`.

Every figure is `gasUsed` of a mined transaction, with payees that hold the token already, as sellers do. The x402
proxies are our compatible ones; the token is a dollar on OpenZeppelin's EIP-3009, without USDC's proxy in front of it,
which costs some 7,000 more.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from eth_abi.abi import encode

from contracts.address import Address, address_text, parse_address
from contracts.console import print_document
from contracts.evm.agent_wallet import (
    Policy,
    WalletRail,
    approval_digest,
    approve_call,
    create_call,
    day_of,
    execute_call,
    factory_deployment,
    reserve_call,
    set_policy_call,
    slot_authorization,
    slot_signature,
    wallet_address,
)
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.money import Asset
from contracts.networks import MULTICALL3, PERMIT2, Network
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey

__all__ = ["UNIT_ATOMIC", "Chain", "Gas", "main", "measure"]

# What every payment moves.
UNIT_ATOMIC = 10_000
_SLOTS = 1_000
_DAY_S = 86_400
_GAS_LIMIT = 10_000_000
_AGGREGATE3 = keccak(b"aggregate3((address,bool,bytes)[])")[:4]


@dataclass(frozen=True, slots=True)
class Gas:
    """What one transaction used; for a batch, per payment. `target` is the most that the design allows, if it says."""

    name: str
    gas: int
    target: int | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is kept; None without one."""
        return None if self.target is None else self.gas <= self.target


class Chain:
    """A local chain with a payer, a wallet for each rail, and a facilitator that sends everything."""

    def __init__(self, devnet: Devnet) -> None:
        self.devnet = devnet
        self.payer = SigningKey(devnet.accounts[0].key)
        self.owner = parse_address(devnet.accounts[1].address)
        self.agent = SigningKey(devnet.accounts[2].key)
        self.payee = parse_address(devnet.accounts[3].address)
        self.facilitator = devnet.accounts[5].address
        dollar = Asset(parse_address(devnet.token), "USDC", "2", 6, "USDC")
        network = Network(devnet.chain_id)
        self.eip3009 = Offer("exact", network, dollar, UNIT_ATOMIC, self.payee, 60)
        self.permit2 = Offer("exact", network, dollar, UNIT_ATOMIC, self.payee, 60, method="permit2")
        # At noon, so that a measurement never runs into the next day.
        noon = (int(time.time()) // _DAY_S + 1) * _DAY_S + _DAY_S // 2
        devnet.rpc("evm_setTime", noon)
        devnet.mine()
        self.day = day_of(noon)
        for account in (address_text(self.payer.address), address_text(self.payee)):
            devnet.mint(account, 10**12)
        devnet.approve_permit2(address_text(self.payer.address), 2**256 - 1)

    def send(self, call: Call, sender: str | None = None) -> int:
        """Mine one transaction that must succeed and return the gas it used."""
        sent = self.devnet.rpc(
            "eth_sendTransaction",
            {
                "from": sender or self.facilitator,
                "to": address_text(call.to),
                "data": "0x" + call.data.hex(),
                "gas": hex(_GAS_LIMIT),
            },
        )
        while (receipt := self.devnet.rpc("eth_getTransactionReceipt", sent)) is None:
            time.sleep(0.01)
        assert receipt["status"] == "0x1", "a transaction of the measurement reverted"
        return int(receipt["gasUsed"], 16)

    def make_wallet(self, rail: WalletRail, salt: bytes) -> tuple[Address, dict[str, int]]:
        """Create and fund a wallet with a policy for the dollar; return it and what its making used."""
        owner = address_text(self.owner)
        address = wallet_address(self.owner, self.agent.address, salt)
        used = {"create": self.send(create_call(self.owner, self.agent.address, salt), owner)}
        self.devnet.mint(address_text(address), 10**12)
        approve = approve_call(self.eip3009.asset.address, PERMIT2, 2**256 - 1)
        self.send(execute_call(address, approve), owner)
        policy = set_policy_call(
            address,
            self.eip3009.asset.address,
            rail,
            unit_atomic=UNIT_ATOMIC,
            slots=_SLOTS,
            reserve_cap_atomic=UNIT_ATOMIC if rail is WalletRail.EIP3009 else 0,
        )
        used["setPolicy"] = self.send(policy, owner)
        return address, used

    @property
    def day_end_s(self) -> int:
        """The end of the chain's present day, unix seconds."""
        return (self.day + 1) * _DAY_S

    def account_payment(self, offer: Offer, nonce: bytes) -> Call:
        """Return the settlement of a payment by the payer's account."""
        payment = Authorization(self.payer.address, self.payee, UNIT_ATOMIC, 0, self.day_end_s, nonce)
        rail = rail_of(offer)
        signature = self.payer.sign(rail.digest(payment, offer))
        return rail.settle_call(payment, signature, offer.asset.address, UNIT_ATOMIC)

    def wallet_authorization(self, offer: Offer, wallet: Address, number: int) -> tuple[Authorization, bytes]:
        """Return what one slot of a wallet pays, and the agent's signature for it."""
        rail = rail_of(offer)
        wallet_rail = WalletRail.EIP3009 if rail.NAME == "eip3009" else WalletRail.PERMIT2
        payment = slot_authorization(
            wallet,
            Policy(UNIT_ATOMIC, 0, _SLOTS, 1, self.day, wallet_rail),
            day=self.day,
            number=number,
            payee=self.payee,
            value_atomic=UNIT_ATOMIC,
        )
        approval = self.agent.sign(approval_digest(wallet, self.devnet.chain_id, rail.digest(payment, offer)))
        return payment, slot_signature(approval, payment, offer.asset.address, rail.NAME)

    def wallet_payment(self, offer: Offer, wallet: Address, number: int) -> Call:
        """Return the settlement of one slot of a wallet."""
        payment, signature = self.wallet_authorization(offer, wallet, number)
        return rail_of(offer).settle_call(payment, signature, offer.asset.address, UNIT_ATOMIC, contract_payer=True)


def measure() -> list[Gas]:
    """Return the gas of every operation, measured on a chain of its own."""
    with Devnet() as devnet:
        chain = Chain(devnet)
        factory = chain.send(factory_deployment(), address_text(chain.owner))
        dollars, made = chain.make_wallet(WalletRail.EIP3009, bytes(32))
        permits, _ = chain.make_wallet(WalletRail.PERMIT2, b"\x01" * 32)
        rows = _by_eip3009(chain, dollars) + _by_permit2(chain, permits)
        terms = Authorization(dollars, chain.payee, UNIT_ATOMIC, 0, chain.day_end_s - 1, keccak(b"terms"))
        reserve = chain.send(
            reserve_call(dollars, chain.eip3009.asset.address, terms), address_text(chain.agent.address)
        )
    return [
        *rows,
        Gas("AgentWallet: setPolicy, the first of a token", made["setPolicy"]),
        Gas("AgentWallet: reserve", reserve),
        Gas("AgentWallet: creation by the factory", made["create"]),
        Gas("the factory itself, once a chain", factory),
    ]


def _by_eip3009(chain: Chain, wallet: Address) -> list[Gas]:
    account = chain.send(chain.account_payment(chain.eip3009, os.urandom(32)))
    chain.send(chain.wallet_payment(chain.eip3009, wallet, 0))
    return [
        Gas("EIP-3009 by an account", account),
        Gas("EIP-3009 by an AgentWallet", chain.send(chain.wallet_payment(chain.eip3009, wallet, 1)), 90_000),
        *(_batch(chain, count, target) for count, target in ((1, None), (10, 43_000), (50, None))),
    ]


def _batch(chain: Chain, count: int, target: int | None) -> Gas:
    calls = [chain.account_payment(chain.eip3009, os.urandom(32)) for _ in range(count)]
    rows = [(address_text(call.to), True, call.data) for call in calls]
    before = chain.devnet.balance_of(address_text(chain.payee))
    used = chain.send(Call(MULTICALL3, _AGGREGATE3 + encode(["(address,bool,bytes)[]"], [rows])))
    assert chain.devnet.balance_of(address_text(chain.payee)) == before + count * UNIT_ATOMIC
    return Gas(f"EIP-3009 by accounts, {count} in a Multicall3, each", used // count, target)


def _by_permit2(chain: Chain, wallet: Address) -> list[Gas]:
    nonces = [(2**200 + offset).to_bytes(32) for offset in range(300)]
    # The first use of a proxy on a chain pays for its re-entrancy word.
    chain.send(chain.account_payment(chain.permit2, nonces[-1]))
    fresh, same = (chain.send(chain.account_payment(chain.permit2, nonce)) for nonce in nonces[:2])
    wallet_fresh, wallet_same = (chain.send(chain.wallet_payment(chain.permit2, wallet, slot)) for slot in (0, 1))
    return [
        Gas("Permit2 by an account, first of 256 nonces", fresh),
        Gas("Permit2 by an account, same word", same),
        Gas("Permit2 by an AgentWallet, first of 256 slots", wallet_fresh),
        Gas("Permit2 by an AgentWallet, same word", wallet_same, 88_000),
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the figures beside their targets. Return 1 when one is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench gas", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    as_json = parser.parse_args(arguments).json
    rows = measure()
    document = {
        "ok": all(row.met is not False for row in rows),
        "gas": [{"name": row.name, "gas": row.gas, "target": row.target, "met": row.met} for row in rows],
    }
    print_document(document, as_json=as_json, human=lambda: _print_table(rows))
    return 0 if document["ok"] else 1


def _print_table(rows: Sequence[Gas]) -> None:
    width = max(len(row.name) for row in rows)
    for row in rows:
        verdict = "" if row.met is None else f"   {'hit' if row.met else 'MISSED'}: at most {row.target:,}"
        print(f"{row.name:<{width}}  {row.gas:>9,}{verdict}")

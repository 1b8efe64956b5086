"""Gas and settlements/s of the settlement queue, by batch size, payer and store: `python -m bench settle [--json]`.

Payments are reserved and owed in the seller's real books, then our settler simulates, signs, stores, sends and judges
them on a local chain that mines at once: `farebox settle` without its pauses. Gas is that of receipts; every payer of
an account row pays once and holds the token before and after, as the payee does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bench.gas import UNIT_ATOMIC, Chain
from bench.gates import Gate, gate_lines, gates_met
from bench.harness import spread
from bench.machine import this_machine
from bench.stores import postgres
from contracts.address import Address, address_text
from contracts.console import print_document
from contracts.evm.agent_wallet import WalletRail, factory_deployment
from contracts.evm.devnet import Devnet
from contracts.evm.rpc import Rpc
from contracts.networks import MULTICALL3
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import settle_call, transfer_digest
from contracts.signature import SigningKey
from seller.claims import Claim
from seller.ledger import Ledger
from seller.limits import LEASE_RENEW_S, RECEIPT_POLL_S
from seller.policy import Caps
from seller.settlement.chain import ChainSettler
from seller.settlement.key import GasKey
from seller.settlement.multicall import aggregate_call
from seller.settlement.outbox import Outbox
from seller.verify import VerifiedPayment

__all__ = ["main", "measure"]

BATCHES = (1, 10, 50, 100)
_GATE_BATCH, _GATE_RATIO = 50, 0.66
# Payments of one round of each batch size: enough transactions for a rate, and few enough payers to fund.
_PAYMENTS = {1: 40, 10: 100, 50: 200, 100: 200}
_WALLETS, _WALLET_PAYMENTS = 4, 24
_ROUNDS = 3
_STALLED_S = 120.0


@dataclass(slots=True)
class Settled:
    """What one kind of settlement took: per payment, one value a round. `gas` is the same in every round but for
    the zero bytes of what is signed.
    """

    store: str
    payers: str
    batch: int
    gas: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)

    def document(self, single: Settled) -> dict[str, Any]:
        """Return the row as members of a JSON document; `ratio` is its gas over that of `single`."""
        gas = spread(self.gas).median
        return {
            "store": self.store,
            "payers": self.payers,
            "batch": self.batch,
            "gas": round(gas),
            "ratio": gas / spread(single.gas).median,
            "cpu_us": spread(self.cpu_us).median,
            "per_second": spread(self.per_second).median,
        }


class _Shop:
    """The seller's books in one store, and the settler that empties their queue."""

    def __init__(self, store: str, url: str, chain: Chain, key: GasKey) -> None:
        self.store = store
        self._chain, self._key = chain, key
        token = chain.eip3009.asset.address
        self._ledger = Ledger(url, chain.devnet.chain_id, token)
        self._outbox = Outbox(self._ledger.database, chain.devnet.chain_id, token, self._ledger.owner.id)
        self._rpc = Rpc([chain.devnet.rpc_url])
        self._settler = ChainSettler(self._outbox, self._rpc, chain.devnet.chain_id, token, key)

    async def close(self) -> None:
        """Close the store."""
        await self._rpc.close()
        self._ledger.close()

    async def settle(self, payments: Sequence[VerifiedPayment], row: Settled) -> None:
        """Queue payments, settle them in transactions of `row.batch`, and note what that took."""
        ids = [await self._owe(payment) for payment in payments]
        first_block = int(self._chain.devnet.rpc("eth_blockNumber"), 16) + 1
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        await self._empty_queue(row.batch)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        for payment_id in ids:
            state = self._ledger.state(payment_id)
            assert state is not None
            assert state.money.value == "settled", f"expected settled, got {state}"
        row.gas.append(self._gas_since(first_block) / len(ids))
        row.cpu_us.append(cpu_s / len(ids) * 1e6)
        row.per_second.append(len(ids) / wall_s)

    async def _owe(self, payment: VerifiedPayment) -> int:
        claim = await self._ledger.reserve(
            payment,
            bytes(32),
            "POST /v1/chat/completions",
            setting="async",
            caps=Caps(10**30, 10**30),
            balance_atomic=lambda _: 10**30,
            since_block=0,
            now_s=self._chain.day_end_s - 3600,
        )
        assert isinstance(claim, Claim)
        await self._ledger.owe(claim)
        return claim.id

    async def _empty_queue(self, batch: int) -> None:
        stalled, renewal = time.monotonic() + _STALLED_S, 0.0
        while True:
            if time.monotonic() >= renewal:
                renewal = time.monotonic() + LEASE_RENEW_S
                assert await self._outbox.hold(self._settler.account, self._ledger.is_gone)
            await self._settler.resolve()
            open_ones = await self._settler.push()
            due = self._outbox.due(batch)
            if not due and not open_ones:
                return
            if due and self._settler.has_room():
                await self._settler.submit(due)
            else:
                await asyncio.sleep(RECEIPT_POLL_S)
            assert time.monotonic() < stalled, f"the queue does not get empty within {_STALLED_S:.0f} s"

    def _gas_since(self, first_block: int) -> int:
        last = int(self._chain.devnet.rpc("eth_blockNumber"), 16)
        return sum(
            int(self._chain.devnet.rpc("eth_getBlockByNumber", hex(number), False)["gasUsed"], 16)
            for number in range(first_block, last + 1)
        )


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return the rows, on a chain, a SQLite file and a PostgreSQL of their own."""
    rounds = 1 if quick else _ROUNDS
    with ExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="farebox-bench-"))
        chain = Chain(running.enter_context(Devnet()))
        stores = [("SQLite", f"sqlite:///{folder}/seller.db")]
        stores.append(("PostgreSQL", running.enter_context(postgres()).new_database()))
        return asyncio.run(_measure(chain, stores, rounds, {1: 4, 10: 20, 50: 50} if quick else _PAYMENTS))


async def _measure(
    chain: Chain, stores: Sequence[tuple[str, str]], rounds: int, payments: dict[int, int]
) -> list[dict[str, Any]]:
    secret = chain.devnet.accounts[6].key
    key = GasKey(SigningKey(secret).address, secret)
    key.prepare()
    shops = [_Shop(store, url, chain, key) for store, url in stores]
    wallets = _wallet_payments(chain)
    accounts = [Settled(shop.store, "accounts", batch) for shop in shops for batch in payments]
    contracts = [Settled(shop.store, "AgentWallets", 1) for shop in shops]
    try:
        for shop in shops:
            # The token of a first settlement, its payee's balance and the settler's own imports are paid for here.
            await shop.settle(_account_payments(chain, 2), Settled(shop.store, "warm-up", 2))
        for _ in range(rounds):
            for row in (*accounts, *contracts):
                shop = next(each for each in shops if each.store == row.store)
                if row.payers == "AgentWallets":
                    some = list(islice(wallets, _WALLET_PAYMENTS if rounds > 1 else _WALLETS))
                else:
                    some = _account_payments(chain, payments[row.batch])
                await shop.settle(some, row)
    finally:
        for shop in shops:
            await shop.close()
    return [row.document(next(each for each in accounts if each.store == row.store)) for row in (*accounts, *contracts)]


def _account_payments(chain: Chain, count: int) -> list[VerifiedPayment]:
    """Return payments of as many new payers, each of whom has been given the money for it."""
    offer = chain.eip3009
    keys = [SigningKey(secrets.token_bytes(32)) for _ in range(count)]
    # Twice the price: an emptied balance would refund gas.
    gifts = [_signed(chain, chain.payer, key.address, 2 * UNIT_ATOMIC) for key in keys]
    calls = [settle_call(gift, signature, offer.asset.address, gift.value_atomic) for gift, signature in gifts]
    for start in range(0, len(calls), max(BATCHES)):
        data = aggregate_call(calls[start : start + max(BATCHES)])
        chain.devnet.send(chain.facilitator, address_text(MULTICALL3), data)
    return [VerifiedPayment(*_signed(chain, key, chain.payee), offer, 2) for key in keys]


def _signed(
    chain: Chain, payer: SigningKey, payee: Address, value_atomic: int = UNIT_ATOMIC
) -> tuple[Authorization, bytes]:
    payment = Authorization(payer.address, payee, value_atomic, 0, chain.day_end_s, os.urandom(32))
    return payment, payer.sign(transfer_digest(payment, chain.eip3009.domain))


def _wallet_payments(chain: Chain) -> Iterator[VerifiedPayment]:
    """Yield payments of some wallets in turn, after the first of each, whose gas is another."""
    chain.send(factory_deployment(), address_text(chain.owner))
    made = [chain.make_wallet(WalletRail.EIP3009, bytes([number]) * 32)[0] for number in range(_WALLETS)]
    for wallet in made:
        chain.send(chain.wallet_payment(chain.eip3009, wallet, 0))
    number = 1
    while True:
        for wallet in made:
            payment = chain.wallet_authorization(chain.eip3009, wallet, number)
            yield VerifiedPayment(*payment, chain.eip3009, 2, contract_payer=True)
        number += 1


def main(arguments: Sequence[str]) -> int:
    """Measure and print. Return 1 when the gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench settle", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--quick", action="store_true", help="a smoke test: only its gas means something")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    rows = measure(quick=options.quick)
    gates = [
        Gate(
            f"gas per settlement in a batch of {_GATE_BATCH}, against a single one", "at most", _GATE_RATIO,
            max(row["ratio"] for row in rows if row["batch"] == _GATE_BATCH),
        )
    ]  # fmt: skip
    document = {
        "bench": "settle",
        "machine": this_machine(),
        "quick": options.quick,
        "rows": rows,
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(
        document, as_json=options.json, human=lambda: print("\n".join([*lines(document), *gate_lines(gates)]))
    )
    return 0 if gates_met(gates) else 1


def lines(document: Mapping[str, Any]) -> list[str]:
    """Return the rows of a document as lines of plain text."""
    shown = [
        f"{'payers':<13}{'batch':>6}{'gas each':>10}{'ratio':>9}   {'store':<11}{'CPU us each':>12}{'per second':>12}"
    ]
    shown += [
        f"{row['payers']:<13}{row['batch']:>6}{row['gas']:>10,}{row['ratio']:>7.2f} x   {row['store']:<11}"
        f"{row['cpu_us']:>12,.0f}{row['per_second']:>12,.0f}"
        for row in document["rows"]
    ]
    return ["settle: the settlement queue emptied into a local chain, per payment", "", *shown, ""]

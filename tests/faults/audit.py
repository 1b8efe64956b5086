"""Reads both stores, the chain and the model server, and says where they disagree. Opens nothing for writing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from contracts.address import parse_address
from contracts.schemes.exact_eip3009 import AUTHORIZATION_USED_TOPIC
from contracts.typed_data import word_of_address
from tests.faults.town import PRICE_ATOMIC, Town
from tests.patience import PATIENCE_S

__all__ = ["Books", "differences", "read_books"]

# An authorization in one of these has never left the machine.
_KEPT = ("ready", "claimed")


@dataclass(frozen=True, slots=True)
class Books:
    """What each party believes at one moment. Nonces are 32 bytes.

    The world does not stand still while it is read, so the chain is read first and last: the stores may know more than
    `used_before`, and must not know more than `used_after`.
    """

    signed: int
    states: Counter[str]
    by_nonce: dict[bytes, tuple[str, str | None]]
    payments: list[Mapping[str, Any]]
    used_before: Counter[bytes]
    used_after: Counter[bytes]
    earned_atomic: int
    runs: dict[str, int]
    lost_atomic: int
    outstanding_atomic: int


def read_books(town: Town) -> Books:
    """Read all books."""
    used_before, _ = _chain(town)
    authorizations = _rows(town, "buyer", "SELECT nonce, state, request_key FROM authorizations")
    payments = _rows(town, "seller", "SELECT * FROM payments")
    books = _rows(town, "seller", "SELECT * FROM books")
    sums = {row["name"]: int(str(row["amount_atomic"])) for row in books}
    used_after, earned_atomic = _chain(town)
    return Books(
        signed=len(authorizations),
        states=Counter(str(row["state"]) for row in authorizations),
        by_nonce={bytes(row["nonce"]): (row["state"], row["request_key"]) for row in authorizations},
        payments=payments,
        used_before=used_before,
        used_after=used_after,
        earned_atomic=earned_atomic,
        runs=town.runs_by_prompt(),
        lost_atomic=sums.get("lost", 0),
        outstanding_atomic=sums.get("outstanding", 0),
    )


def differences(books: Books, *, signed: int, quiet: bool) -> list[str]:
    """Return every broken promise, in words. `quiet`: nothing is under way, so the books must be equal, not only close.

    Doubled: one request with two authorizations, or one authorization used twice. Lost: money that moved without a
    trace in the books, or goods that will not be paid.
    """
    found = []
    if books.signed != signed:
        found.append(f"lost: {signed} authorizations were signed, the pool knows {books.signed}")
    requests = Counter(key for _, key in books.by_nonce.values() if key is not None)
    found += [f"doubled: {count} authorizations for the request {key}" for key, count in requests.items() if count > 1]
    digests = Counter(bytes(row["request_digest"]) for row in books.payments)
    found += [f"doubled: {n} payments for one request {digest.hex()[:12]}" for digest, n in digests.items() if n > 1]
    ledger = {bytes(row["nonce"]): str(row["money"]) for row in books.payments}
    for nonce, times in books.used_before.items():
        state = books.by_nonce.get(nonce, ("missing", None))[0]
        if times > 1:
            found.append(f"doubled: nonce {nonce.hex()[:12]} was used {times} times")
        if state in (*_KEPT, "missing", "expired"):
            found.append(f"lost: nonce {nonce.hex()[:12]} is used on chain, the buyer believes it {state}")
        if ledger.get(nonce, "missing") not in ("submitted", "settled"):
            found.append(f"lost: nonce {nonce.hex()[:12]} is used on chain, the seller has it {ledger.get(nonce)}")
    for nonce, money in ledger.items():
        if money == "settled" and nonce not in books.used_after:
            found.append(f"lost: the seller believes {nonce.hex()[:12]} settled, the chain does not")
    if books.earned_atomic != PRICE_ATOMIC * len(books.used_after):
        found.append(f"lost: {books.earned_atomic} arrived for {len(books.used_after)} payments")
    if books.lost_atomic:
        found.append(f"lost: the seller gave goods for {books.lost_atomic} that will not come")
    if quiet:
        found += _still_open(books, ledger)
    return found


def _still_open(books: Books, ledger: dict[bytes, str]) -> list[str]:
    found = []
    if books.outstanding_atomic:
        found.append(f"lost: {books.outstanding_atomic} are still outstanding")
    for nonce, money in ledger.items():
        if (money == "settled") != (nonce in books.used_after):
            found.append(f"lost: the seller has {nonce.hex()[:12]} {money}, the chain disagrees")
    for nonce, (state, _) in books.by_nonce.items():
        if state == "spent" and nonce not in books.used_after:
            found.append(f"lost: the buyer has {nonce.hex()[:12]} spent, the chain does not")
        if state in ("claimed", "sent"):
            found.append(f"lost: {nonce.hex()[:12]} is still {state}")
    return found


def _rows(town: Town, room: str, query: str) -> list[Mapping[str, Any]]:
    if town.store:
        with psycopg.connect(town.store, options=f"-c search_path=farebox_{room}", row_factory=dict_row) as session:
            return list(session.execute(query).fetchall())
    file = town.pool_file if room == "buyer" else town.seller_file
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=PATIENCE_S)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


def _chain(town: Town) -> tuple[Counter[bytes], int]:
    """Return the used nonces of the wallet and the payee's balance, of one and the same block."""
    topics = [AUTHORIZATION_USED_TOPIC, "0x" + word_of_address(parse_address(town.wallet)).hex()]
    search = {"address": town.chain.token, "fromBlock": "0x0", "toBlock": "latest", "topics": topics}
    while True:
        block = town.chain.rpc("eth_blockNumber")
        logs, earned_atomic = town.chain.rpc("eth_getLogs", search), town.earned_atomic()
        if town.chain.rpc("eth_blockNumber") == block:
            return Counter(bytes.fromhex(log["topics"][2][2:]) for log in logs), earned_atomic

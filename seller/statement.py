"""What the ledger tells when it is asked. Every function reads in a transaction that the caller holds."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.address import Address
from contracts.lifecycle import Money
from contracts.storage import Connection, Row
from seller import books

__all__ = ["Found", "PaymentState", "Sums", "found", "settled_atomic", "state", "sums", "transactions"]


@dataclass(frozen=True, slots=True)
class PaymentState:
    """What became of a payment's money. `charged_atomic` is its value, or what a metered one has come to so far."""

    money: Money
    transaction_hash: str
    reason: str
    charged_atomic: int


@dataclass(frozen=True, slots=True)
class Found:
    """A payment as the ledger knows it."""

    id: int
    request_digest: bytes
    money: Money
    transaction_hash: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sums:
    """The books of one token in atomic units, and the number of payments per state of their money."""

    earned_atomic: int
    outstanding_atomic: int
    exposure_atomic: int
    lost_atomic: int
    payments: dict[str, int]


def found(row: Row | None) -> Found | None:
    """Return what a row of `payments` says to a facilitator's caller."""
    if row is None:
        return None
    return Found(
        row["id"], row["request_digest"], Money(row["money"]), row["transaction_hash"] or "", row["reason"] or ""
    )


def state(connection: Connection, payment_id: int) -> PaymentState | None:
    """Return what became of a payment's money, or None when it left no trace."""
    row = connection.execute(
        "SELECT money, transaction_hash, reason, value_atomic, charged_atomic FROM payments WHERE id = ?",
        (payment_id,),
    ).fetchone()
    if row is None:
        return None
    return PaymentState(Money(row["money"]), row["transaction_hash"] or "", row["reason"] or "", books.due_atomic(row))


def settled_atomic(connection: Connection, chain_id: int, token: Address, payer: Address) -> int:
    """Return what was settled of one payer so far."""
    row = connection.execute(
        "SELECT settled_atomic FROM payers WHERE chain_id = ? AND token = ? AND payer = ?", (chain_id, token, payer)
    ).fetchone()
    return int(row["settled_atomic"]) if row else 0


def sums(connection: Connection, chain_id: int, token: Address) -> Sums:
    """Return the books of one token."""
    key = (chain_id, token)
    amounts: dict[str, str] = dict(
        connection.execute("SELECT name, amount_atomic FROM books WHERE chain_id = ? AND token = ?", key)
    )
    # What has ended is counted as it ends; the rest is found by its indexes, and is little. (`+ 0` keeps the planner
    # from the index of all payments of a token.)
    counts = connection.execute(
        "SELECT money, payments FROM payment_counts WHERE chain_id = ? AND token = ? AND payments > 0"
        " UNION ALL SELECT money, count(*) FROM payments WHERE chain_id = ? AND token = ?"
        " AND money IN ('queued', 'submitted') GROUP BY money"
        " UNION ALL SELECT money, count(*) FROM payments WHERE chain_id + 0 = ? AND token = ?"
        " AND owner IS NOT NULL AND money = 'reserved' GROUP BY money",
        key * 3,
    )
    earned, outstanding, exposure, lost = (int(amounts.get(name, 0)) for name in books.BOOKS)
    return Sums(earned, outstanding, exposure, lost, {row[0]: row[1] for row in counts})


def transactions(connection: Connection, chain_id: int, token: Address, limit: int) -> list[str]:
    """Return the transactions that settled the latest `limit` payments, newest first."""
    # Backwards from the newest (`+ 0`), not by the index of all payments of a token.
    rows = connection.execute(
        "SELECT transaction_hash FROM payments WHERE chain_id + 0 = ? AND token = ? AND money = 'settled'"
        " AND transaction_hash <> '' ORDER BY id DESC LIMIT ?",
        (chain_id, token, limit),
    ).fetchall()
    return list(dict.fromkeys(row["transaction_hash"] for row in rows))

"""Moves a payment's money along its life cycle and keeps the sums over all payments equal to it.

Every function runs inside a write transaction that the caller holds, so a payment and the sums never disagree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

import msgspec

from contracts.address import Address
from contracts.errors import (
    AllowanceRequired,
    ContractPayer,
    InsufficientFunds,
    PaymentExpired,
    PaymentReplayed,
    PaymentRevoked,
    SettlementFailed,
)
from contracts.lifecycle import Money, MoneyEvent, Work, advance_money
from contracts.storage import Connection, Row
from contracts.storage.bulk import in_pieces, placeholders
from seller.policy import Mode

__all__ = [
    "BOOKS",
    "Before",
    "Changes",
    "PayerSums",
    "charge",
    "count_entered",
    "due_atomic",
    "move",
    "read_before",
    "remove",
]

BOOKS = ("earned", "outstanding", "exposure", "lost")

_ENDED = (Money.SETTLED, Money.VOID, Money.LOST)
# Why a payment was refused on chain, when it had been good before the work began.
_WITHDRAWN = frozenset(
    kind.code
    for kind in (
        AllowanceRequired, ContractPayer, InsufficientFunds, PaymentExpired, PaymentReplayed, PaymentRevoked,
        SettlementFailed,
    )
)  # fmt: skip

_CLAIMED = (Money.RESERVED, Money.QUEUED, Money.SUBMITTED)
# What the chain decided, and could decide otherwise as long as it is young.
_JUDGED = (Money.SETTLED, Money.LOST)


def due_atomic(row: Row) -> int:
    """Return what a payment is counted for: what is charged where that is known, else its whole value."""
    return int(row["value_atomic"] if row["charged_atomic"] is None else row["charged_atomic"])


class PayerSums(msgspec.Struct, frozen=True):
    """What the books say of one payer; before its first payment, nothing but zeros."""

    settled_count: int = 0
    settled_atomic: int = 0
    outstanding_atomic: int = 0
    exposure_atomic: int = 0
    withdrawn_count: int = 0


_STRANGER = PayerSums()


class Before(msgspec.Struct, frozen=True):
    """What the books say before payments are entered: of each of their payers, and in all, by the book's name."""

    payers: Mapping[Address, PayerSums]
    books_atomic: Mapping[str, int]


class Changes:
    """What payments that enter together add to the sums, by payer."""

    def __init__(self) -> None:
        self.outstanding_atomic: defaultdict[Address, int] = defaultdict(int)
        self.exposure_atomic: defaultdict[Address, int] = defaultdict(int)
        self.total_atomic = 0

    def add(self, payer: Address, value_atomic: int, *, on_credit: bool) -> None:
        """Count one more payment: money on its way is outstanding; where the goods leave first, it is also exposure."""
        self.total_atomic += value_atomic
        self.outstanding_atomic[payer] += value_atomic
        if on_credit:
            self.exposure_atomic[payer] += value_atomic


def read_before(connection: Connection, chain_id: int, token: Address, payers: Collection[Address]) -> Before:
    """Return what the books say of `payers`, and of all together."""
    sums = dict.fromkeys(payers, _STRANGER)
    for piece in in_pieces(list(sums)):
        sql = _PAYERS.format(placeholders(len(piece), 1))
        rows = connection.execute(sql, (chain_id, token, *piece))
        for payer, settled_count, settled, outstanding, exposure, withdrawn_count in rows:
            sums[payer] = PayerSums(settled_count, int(settled), int(outstanding), int(exposure), withdrawn_count)
    books = connection.execute(
        "SELECT name, amount_atomic FROM books WHERE chain_id = ? AND token = ?", (chain_id, token)
    )
    return Before(sums, {name: int(amount) for name, amount in books})


def count_entered(connection: Connection, chain_id: int, token: Address, before: Before, changes: Changes) -> None:
    """Count payments that were just inserted."""
    sums = [
        (
            *(chain_id, token, payer),
            str(before.payers[payer].outstanding_atomic + delta_atomic),
            str(before.payers[payer].exposure_atomic + changes.exposure_atomic[payer]),
        )
        for payer, delta_atomic in changes.outstanding_atomic.items()
    ]
    for piece in in_pieces(sums):
        connection.execute(_COUNT_PAYERS.format(placeholders(5, len(piece))), list(chain.from_iterable(piece)))
    deltas = {"outstanding": changes.total_atomic, "exposure": sum(changes.exposure_atomic.values())}
    for name, delta_atomic in deltas.items():
        amount = str(before.books_atomic.get(name, 0) + delta_atomic)
        connection.execute(_COUNT_BOOK, (chain_id, token, name, amount))


_PAYERS = (
    "SELECT payer, settled_count, settled_atomic, outstanding_atomic, exposure_atomic, withdrawn_count"
    " FROM payers WHERE chain_id = ? AND token = ? AND payer IN {}"
)
_COUNT_PAYERS = (
    "INSERT INTO payers (chain_id, token, payer, outstanding_atomic, exposure_atomic) VALUES {}"
    " ON CONFLICT (chain_id, token, payer) DO UPDATE"
    " SET outstanding_atomic = excluded.outstanding_atomic, exposure_atomic = excluded.exposure_atomic"
)
_COUNT_BOOK = (
    "INSERT INTO books (chain_id, token, name, amount_atomic) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (chain_id, token, name) DO UPDATE SET amount_atomic = excluded.amount_atomic"
)


def charge(connection: Connection, payment_id: int, charged_atomic: int, now_ms: int) -> None:
    """Note what a payment is charged, which is at most its value, before its money is on its way."""
    row: Row = connection.execute("SELECT * FROM payments WHERE id = ?", (payment_id,)).fetchone()
    assert row["money"] == Money.RESERVED.value, "what was sent to the chain is not charged anew"
    assert 0 <= charged_atomic <= int(row["value_atomic"]), "a charge lies between zero and what was signed"
    connection.execute(
        "UPDATE payments SET charged_atomic = ?, updated_ms = ? WHERE id = ?", (str(charged_atomic), now_ms, payment_id)
    )
    _count_claimed(connection, row, charged_atomic - due_atomic(row))


def remove(connection: Connection, row: Row) -> None:
    """Delete a payment for which nothing was done and nothing was sent; its key is free again."""
    if Money(row["money"]) in _CLAIMED:
        _count_claimed(connection, row, -due_atomic(row))
    if Money(row["money"]) in _ENDED:
        _count_ended(connection, row, Money(row["money"]), -1)
    connection.execute("DELETE FROM payments WHERE id = ?", (row["id"],))


def move(
    connection: Connection,
    payment_id: int,
    event: MoneyEvent,
    now_ms: int,
    *,
    reason: str | None = None,
    transaction_hash: str | None = None,
) -> Money:
    """Advance one payment's money by `event` and return its new state."""
    row: Row = connection.execute("SELECT * FROM payments WHERE id = ?", (payment_id,)).fetchone()
    before = Money(row["money"])
    after = advance_money(before, event)
    delivered = row["work"] == Work.DELIVERED.value
    assert not (delivered and after is Money.VOID), "delivered work stays owed"
    amount_atomic = due_atomic(row)
    connection.execute(
        "UPDATE payments SET money = ?, reason = ?, transaction_hash = coalesce(?, transaction_hash), updated_ms = ?"
        " WHERE id = ?",
        (after.value, reason, transaction_hash, now_ms, payment_id),
    )
    for money, delta in ((before, -1), (after, 1)):
        if money in _ENDED and before is not after:
            _count_ended(connection, row, money, delta)
    if after in (Money.VOID, Money.LOST) and reason in _WITHDRAWN:
        _note_withdrawal(connection, row, reason)
    if (before in _CLAIMED) != (after in _CLAIMED):
        _count_claimed(connection, row, amount_atomic if after in _CLAIMED else -amount_atomic)
    if Money.SETTLED in (before, after):
        earned_atomic = amount_atomic if after is Money.SETTLED else -amount_atomic
        _add_to_payer(connection, row, settled_atomic=earned_atomic)
        _add_to_book(connection, row, "earned", earned_atomic)
    if after in _JUDGED and event is not MoneyEvent.FREE:
        connection.execute("INSERT INTO unproven (payment_id) VALUES (?) ON CONFLICT DO NOTHING", (payment_id,))
    elif before in _JUDGED:
        connection.execute("DELETE FROM unproven WHERE payment_id = ?", (payment_id,))
    if delivered and Money.LOST in (before, after) and before is not after:
        _add_to_book(connection, row, "lost", amount_atomic if after is Money.LOST else -amount_atomic)
    return after


def _note_withdrawal(connection: Connection, row: Row, reason: str) -> None:
    """Remember a payer whose money went away after the work for it had begun: the next time it settles first.

    What was served on credit and then expired in our own queue is not the payer's doing.
    """
    has_begun = row["work"] in (Work.RUNNING.value, Work.DELIVERED.value)
    if has_begun and not (row["mode"] == Mode.ASYNC.value and reason == PaymentExpired.code):
        connection.execute(
            "UPDATE payers SET withdrawn_count = withdrawn_count + 1 WHERE chain_id = ? AND token = ? AND payer = ?",
            (row["chain_id"], row["token"], row["payer"]),
        )


def _count_ended(connection: Connection, row: Row, money: Money, delta: int) -> None:
    connection.execute(
        "INSERT INTO payment_counts (chain_id, token, money, payments) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (chain_id, token, money) DO UPDATE SET payments = payment_counts.payments + excluded.payments",
        (row["chain_id"], row["token"], money.value, delta),
    )


def _count_claimed(connection: Connection, row: Row, delta_atomic: int) -> None:
    """Money on its way is outstanding; where the goods leave first, it is also exposure."""
    on_credit_atomic = delta_atomic if row["mode"] == Mode.ASYNC.value else 0
    _add_to_payer(connection, row, outstanding_atomic=delta_atomic, exposure_atomic=on_credit_atomic)
    _add_to_book(connection, row, "outstanding", delta_atomic)
    _add_to_book(connection, row, "exposure", on_credit_atomic)


def _add_to_payer(
    connection: Connection,
    row: Row,
    *,
    settled_atomic: int = 0,
    outstanding_atomic: int = 0,
    exposure_atomic: int = 0,
) -> None:
    key = (row["chain_id"], row["token"], row["payer"])
    sums = _found_or_made(
        connection,
        key,
        "SELECT * FROM payers WHERE chain_id = ? AND token = ? AND payer = ?",
        "INSERT INTO payers (chain_id, token, payer) VALUES (?, ?, ?)",
    )
    connection.execute(
        "UPDATE payers SET settled_count = settled_count + ?, settled_atomic = ?, outstanding_atomic = ?,"
        " exposure_atomic = ? WHERE chain_id = ? AND token = ? AND payer = ?",
        (
            (settled_atomic > 0) - (settled_atomic < 0),
            _never_negative(int(sums["settled_atomic"]) + settled_atomic),
            _never_negative(int(sums["outstanding_atomic"]) + outstanding_atomic),
            _never_negative(int(sums["exposure_atomic"]) + exposure_atomic),
            *key,
        ),
    )


def _add_to_book(connection: Connection, row: Row | Mapping[str, Any], name: str, delta_atomic: int) -> None:
    if delta_atomic == 0:
        return
    key = (row["chain_id"], row["token"], name)
    (amount,) = _found_or_made(
        connection,
        key,
        "SELECT amount_atomic FROM books WHERE chain_id = ? AND token = ? AND name = ?",
        "INSERT INTO books (chain_id, token, name) VALUES (?, ?, ?)",
    )
    connection.execute(
        "UPDATE books SET amount_atomic = ? WHERE chain_id = ? AND token = ? AND name = ?",
        (_never_negative(int(amount) + delta_atomic), *key),
    )


def _found_or_made(connection: Connection, key: tuple[Any, ...], select: str, insert: str) -> Row:
    """Return the row of `key`, which is there after its first payment. Writers take turns, so nobody else makes it."""
    found: Row | None = connection.execute(select, key).fetchone()
    if found is None:
        connection.execute(insert, key)
        found = connection.execute(select, key).fetchone()
    assert found is not None
    return found


def _never_negative(amount_atomic: int) -> str:
    assert amount_atomic >= 0, "the sums and the payments disagree"
    return str(amount_atomic)

"""How the work for a payment ends: delivered, given up, or taken over from a process that has ended.

Every function runs inside a write transaction of the ledger's. A claim is one owner's, by a name that no other claim
ever has (`process/number`); what an ended or forgotten owner would still write finds nothing of its name.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from contracts.errors import StoreUnavailable
from contracts.lifecycle import Money, MoneyEvent, Work, advance_money
from contracts.storage import Conflict, Connection
from contracts.storage.bulk import in_pieces, placeholders
from seller import books, spool
from seller.claims import Claim
from seller.spool import Beginning

__all__ = [
    "Delivery",
    "check_held",
    "deliver",
    "end_metered",
    "end_work",
    "give_up",
    "give_up_by_name",
    "owe",
    "owe_together",
    "recover_owner",
]


def check_held(connection: Connection, claim: Claim) -> None:
    """Raise `StoreUnavailable` when a claim is no longer its owner's, who was taken for dead."""
    row = connection.execute("SELECT owner FROM payments WHERE id = ?", (claim.id,)).fetchone()
    if row is None or row["owner"] != claim.owner:
        raise StoreUnavailable("this process was taken for dead and its claim given back; nothing is served")


def end_work(connection: Connection, payment_id: int, work: Work) -> None:
    """Note that nobody works for a payment any more, and how that ended."""
    connection.execute(
        "UPDATE payments SET work = ?, owner = NULL, updated_ms = ? WHERE id = ?", (work.value, _now_ms(), payment_id)
    )


class Delivery(msgspec.Struct, frozen=True):
    """A claim whose answer is about to leave, and that answer's beginning."""

    claim: Claim
    answer: Beginning


def deliver(connection: Connection, process_id: str, delivery: Delivery) -> bool:
    """Note that the first byte of a claim's answer is about to leave; return whether the answer is kept."""
    check_held(connection, delivery.claim)
    end_work(connection, delivery.claim.id, Work.DELIVERED)
    return spool.keep(connection, delivery.claim.id, process_id, delivery.answer, _now_ms())


def owe_together(connection: Connection, process_id: str, deliveries: Sequence[Delivery]) -> list[bool]:
    """Deliver many claims and queue them for their whole value; return of each whether its answer is kept.

    Raises `Conflict` where one of them is no longer held, was answered before, or finds no room: then all are done
    alone.
    """
    now_ms = _now_ms()
    queued = advance_money(Money.RESERVED, MoneyEvent.OWE)
    for piece in in_pieces([delivery.claim.owner for delivery in deliveries]):
        changed = connection.execute(
            "UPDATE payments SET work = ?, owner = NULL, money = ?, reason = NULL, updated_ms = ?"  # noqa: S608 - placeholders
            f" WHERE owner IN {placeholders(len(piece), 1)} AND money = ?",
            (Work.DELIVERED.value, queued.value, now_ms, *piece, Money.RESERVED.value),
        ).rowcount
        if changed != len(piece):
            raise Conflict("a claim is no longer its owner's")
    kept = [(delivery.claim.id, delivery.answer) for delivery in deliveries]
    return spool.keep_together(connection, process_id, kept, now_ms)


def owe(connection: Connection, payment_id: int, charged_atomic: int | None) -> None:
    """Queue a payment for what is charged (None: its whole value); where that is nothing, it is settled."""
    if charged_atomic is not None:
        books.charge(connection, payment_id, charged_atomic, _now_ms())
    books.move(connection, payment_id, MoneyEvent.FREE if charged_atomic == 0 else MoneyEvent.OWE, _now_ms())


def end_metered(connection: Connection, claim: Claim, charged_atomic: int) -> None:
    """End a claim whose answer has left and came to `charged_atomic`. Nothing happens to one that has ended."""
    row = connection.execute("SELECT owner, work FROM payments WHERE id = ?", (claim.id,)).fetchone()
    if row is not None and (row["owner"], row["work"]) == (claim.owner, Work.DELIVERED.value):
        end_work(connection, claim.id, Work.DELIVERED)
        owe(connection, claim.id, charged_atomic)


def give_up(connection: Connection, claim: Claim, reason: str, *, undelivered: bool = False) -> Money | None:
    """End a claim whose goods were withheld; return what its money is now, or None when its key is free.

    Nothing happens to a claim that has ended. Only `undelivered` ends one whose delivery was noted: its goods never
    left, because the note was not known to be written. Where they were given since, to a client that came back, it
    stays delivered.
    """
    row = connection.execute("SELECT * FROM payments WHERE id = ?", (claim.id,)).fetchone()
    if row is None:
        return None
    delivered = row["work"] == Work.DELIVERED.value
    if delivered and undelivered and not spool.was_given(connection, claim.id):
        spool.forget(connection, claim.id)
    elif delivered or row["owner"] != claim.owner:
        return Money(row["money"])
    return _without_goods(connection, row["id"], reason)


def give_up_by_name(connection: Connection, owner: str, reason: str) -> None:
    """End the claim that `owner` names, if it was ever written."""
    for row in connection.execute("SELECT id FROM payments WHERE owner = ?", (owner,)).fetchall():
        _without_goods(connection, row["id"], reason)


def recover_owner(connection: Connection, process_id: str) -> None:
    """End every claim of a process: no byte of them left, because what left is noted before it leaves.

    A metered answer that was leaving is charged what it was last known to have come to.
    """
    # Between "id/" and "id0", the next character: an index serves it in both stores.
    names = (f"{process_id}/", f"{process_id}0")
    for row in connection.execute("SELECT * FROM payments WHERE owner > ? AND owner < ?", names).fetchall():
        if row["work"] == Work.DELIVERED.value:
            end_work(connection, row["id"], Work.DELIVERED)
            owe(connection, row["id"], int(row["metered_atomic"]))
        else:
            _without_goods(connection, row["id"], "the server stopped")
    spool.break_off(connection, process_id)
    connection.execute("DELETE FROM owners WHERE id = ?", (process_id,))


def _without_goods(connection: Connection, payment_id: int, reason: str) -> Money | None:
    row = connection.execute("SELECT * FROM payments WHERE id = ?", (payment_id,)).fetchone()
    money = Money(row["money"])
    if row["runs"] == 0 and money in (Money.RESERVED, Money.QUEUED, Money.VOID):
        books.remove(connection, row)
        return None
    end_work(connection, payment_id, Work.FAILED)
    if money in (Money.RESERVED, Money.QUEUED):
        return books.move(connection, payment_id, MoneyEvent.WAIVE, _now_ms(), reason=reason)
    return money


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""Answers that were paid for, kept in the store for clients that lost them on the way.

Status, headers and first bytes are written in the transaction that notes the delivery, before anything leaves; what
follows is appended as it passes. The functions here run inside a transaction of the ledger's, so an answer is seen by
every worker and replica that shares the store, and is as private as the store (a SQLite file has mode 0600).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

import msgspec

from contracts.storage import Conflict, Connection
from contracts.storage.bulk import in_pieces, placeholders
from seller.limits import (
    ANSWER_BYTES_MAX,
    ANSWER_HEADER_BYTES_MAX,
    ANSWER_OVERHEAD_BYTES,
    ANSWER_TTL_S,
    ANSWERS_BYTES_MAX,
    ANSWERS_SWEPT_MAX,
)

__all__ = [
    "Beginning",
    "Kept",
    "State",
    "append",
    "break_off",
    "chunk",
    "count_replay",
    "find",
    "forget",
    "is_event_stream",
    "keep",
    "keep_together",
    "sweep",
    "was_given",
]

RawHeaders = list[tuple[bytes, bytes]]

# What belongs to one connection or one session is not part of the goods.
_NOT_KEPT = frozenset(
    (b"set-cookie", b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"trailer", b"date", b"server")
)


class State(Enum):
    """How far an answer got. Values are what the store holds."""

    OPEN = "open"
    WHOLE = "whole"
    BROKEN = "broken"
    DROPPED = "dropped"


class Beginning(msgspec.Struct, frozen=True):
    """An answer at the moment of its release: what the client is sent first. `whole` when nothing follows."""

    status: int
    headers: RawHeaders
    body: bytes
    whole: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept answer; `body` is its beginning, `chunk` reads the rest."""

    payment_id: int
    state: State
    status: int
    headers: RawHeaders
    body: bytes
    replays: int


def is_event_stream(headers: RawHeaders) -> bool:
    """Tell whether an answer is server-sent events, so that a part of it is of use and a last word can be added."""
    return any(name == b"content-type" and value.lower().startswith(b"text/event-stream") for name, value in headers)


def keep(connection: Connection, payment_id: int, owner: str, beginning: Beginning, now_ms: int) -> bool:
    """Write the beginning of an answer, replacing an earlier one of the payment; tell whether it was kept.

    One that is too large, or finds no room, leaves a note that it was dropped.
    """
    forget(connection, payment_id)
    row, kept = _row(payment_id, owner, beginning, now_ms)
    if kept and not _take(connection, row[_SIZE]):
        row, kept = _dropped(row), False
    if not kept:
        _add(connection, row[_SIZE])
    connection.execute(f"{_INSERT} {placeholders(len(row), 1)}", row)
    return kept


def keep_together(
    connection: Connection, owner: str, beginnings: Sequence[tuple[int, Beginning]], now_ms: int
) -> list[bool]:
    """Write the beginnings of many answers, by their payments, none of which had one; tell of each whether it was kept.

    Raises `Conflict` where there is no room for all of them, or one had an answer.
    """
    rows = [_row(payment_id, owner, beginning, now_ms) for payment_id, beginning in beginnings]
    if not _take(connection, sum(row[_SIZE] for row, _ in rows), len(rows)):
        raise Conflict("there is no room for so many answers at once")
    for piece in in_pieces([row for row, _ in rows]):
        connection.execute(
            f"{_INSERT} {placeholders(len(piece[0]), len(piece))}",
            list(chain.from_iterable(piece)),
        )
    return [kept for _, kept in rows]


def append(
    connection: Connection, payment_id: int, position: int, body: bytes, state: State, *, owner: str, now_ms: int
) -> bool:
    """Add what followed to an open answer, and leave it in `state`; tell whether it is still kept."""
    row = connection.execute(
        "SELECT size_bytes FROM answers WHERE payment_id = ? AND owner = ? AND state = 'open'", (payment_id, owner)
    ).fetchone()
    if row is None:
        return False
    if state is not State.DROPPED and (
        row["size_bytes"] + len(body) > ANSWER_BYTES_MAX or not _take(connection, len(body))
    ):
        state = State.DROPPED
    if state is State.DROPPED:
        _empty(connection, payment_id, row["size_bytes"])
        body = b""
    elif body:
        connection.execute(
            "INSERT INTO answer_chunks (payment_id, position, body) VALUES (?, ?, ?)", (payment_id, position, body)
        )
    connection.execute(
        "UPDATE answers SET state = ?, size_bytes = size_bytes + ?, owner = ?, expires_ms = ? WHERE payment_id = ?",
        (
            state.value,
            len(body),
            owner if state is State.OPEN else None,
            now_ms + ANSWER_TTL_S * 1000,
            payment_id,
        ),
    )
    return state is not State.DROPPED


def break_off(connection: Connection, owner: str) -> None:
    """Close the answers of a process that has ended: nobody will finish them."""
    connection.execute("UPDATE answers SET state = 'broken', owner = NULL WHERE owner = ?", (owner,))


def find(connection: Connection, payment_id: int, now_ms: int) -> Kept | None:
    """Return the answer to a payment while it lives."""
    row = connection.execute(
        "SELECT * FROM answers WHERE payment_id = ? AND expires_ms > ?", (payment_id, now_ms)
    ).fetchone()
    if row is None:
        return None
    state = State(row["state"])
    headers = _read_headers(row["headers"]) if state is not State.DROPPED else []
    return Kept(payment_id, state, row["status"], headers, row["body"], row["replays"])


def chunk(connection: Connection, payment_id: int, position: int) -> bytes | None:
    """Return one later piece of an answer, or None past its end."""
    row: Any = connection.execute(
        "SELECT body FROM answer_chunks WHERE payment_id = ? AND position = ?", (payment_id, position)
    ).fetchone()
    return None if row is None else bytes(row["body"])


def count_replay(connection: Connection, payment_id: int) -> None:
    """Note that an answer is given once more."""
    connection.execute("UPDATE answers SET replays = replays + 1 WHERE payment_id = ?", (payment_id,))


def was_given(connection: Connection, payment_id: int) -> bool:
    """Tell whether a kept answer was given to a client that came back."""
    row = connection.execute("SELECT replays FROM answers WHERE payment_id = ?", (payment_id,)).fetchone()
    return row is not None and row["replays"] > 0


def sweep(connection: Connection, now_ms: int) -> int:
    """Delete up to `ANSWERS_SWEPT_MAX` answers whose time is over; return how many."""
    rows = connection.execute(
        "SELECT payment_id FROM answers WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?", (now_ms, ANSWERS_SWEPT_MAX)
    ).fetchall()
    for row in rows:
        forget(connection, row["payment_id"])
    return len(rows)


def forget(connection: Connection, payment_id: int) -> None:
    """Delete the answer to a payment, if there is one."""
    row = connection.execute("SELECT size_bytes FROM answers WHERE payment_id = ?", (payment_id,)).fetchone()
    if row is None:
        return
    connection.execute("DELETE FROM answer_chunks WHERE payment_id = ?", (payment_id,))
    connection.execute("DELETE FROM answers WHERE payment_id = ?", (payment_id,))
    _add(connection, -row["size_bytes"])


def _take(connection: Connection, size_bytes: int, answers: int = 1) -> bool:
    """Count `size_bytes` more, making room where the oldest answers are at their end; tell whether there was room."""
    held_bytes = _add(connection, size_bytes)
    if held_bytes <= ANSWERS_BYTES_MAX:
        return True
    oldest = connection.execute(
        "SELECT payment_id, size_bytes FROM answers WHERE state <> 'open' ORDER BY expires_ms LIMIT ?",
        (ANSWERS_SWEPT_MAX + answers,),
    ).fetchall()
    going: list[int] = []
    freed_bytes = 0
    for row in oldest:
        if held_bytes - freed_bytes <= ANSWERS_BYTES_MAX:
            break
        going.append(row["payment_id"])
        freed_bytes += row["size_bytes"]
    has_room = held_bytes - freed_bytes <= ANSWERS_BYTES_MAX
    for piece in in_pieces(going):
        for table in ("answer_chunks", "answers"):
            connection.execute(f"DELETE FROM {table} WHERE payment_id IN {placeholders(len(piece), 1)}", piece)  # noqa: S608
    _add(connection, -freed_bytes if has_room else -freed_bytes - size_bytes)
    return has_room


_INSERT = "INSERT INTO answers (payment_id, state, status, headers, body, size_bytes, owner, expires_ms) VALUES"
_SIZE = 5


def _row(payment_id: int, owner: str, beginning: Beginning, now_ms: int) -> tuple[tuple[Any, ...], bool]:
    """Return the row of an answer, and whether it is small enough to be kept."""
    headers = _kept_headers(beginning.headers)
    size_bytes = ANSWER_OVERHEAD_BYTES + len(headers) + len(beginning.body)
    row = (
        payment_id,
        (State.WHOLE if beginning.whole else State.OPEN).value,
        beginning.status,
        headers,
        beginning.body,
        size_bytes,
        None if beginning.whole else owner,
        now_ms + ANSWER_TTL_S * 1000,
    )
    return (row, True) if size_bytes <= ANSWER_BYTES_MAX else (_dropped(row), False)


def _dropped(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the note that the answer of `row` was not kept."""
    payment_id, _, status, _, _, _, _, expires_ms = row
    return (payment_id, State.DROPPED.value, status, b"", b"", ANSWER_OVERHEAD_BYTES, None, expires_ms)


def _add(connection: Connection, delta_bytes: int) -> int:
    (held_bytes,) = connection.execute(
        "UPDATE answers_held SET bytes = bytes + ? RETURNING bytes", (delta_bytes,)
    ).fetchone()
    return int(held_bytes)


def _empty(connection: Connection, payment_id: int, size_bytes: int) -> None:
    connection.execute("DELETE FROM answer_chunks WHERE payment_id = ?", (payment_id,))
    connection.execute(
        "UPDATE answers SET headers = ?, body = ?, size_bytes = ? WHERE payment_id = ?",
        (b"", b"", ANSWER_OVERHEAD_BYTES, payment_id),
    )
    _add(connection, ANSWER_OVERHEAD_BYTES - size_bytes)


def _kept_headers(headers: RawHeaders) -> bytes:
    kept = [(name, value) for name, value in headers if name not in _NOT_KEPT]
    packed = msgspec.msgpack.encode(kept)
    if len(packed) > ANSWER_HEADER_BYTES_MAX:
        packed = msgspec.msgpack.encode([(name, value[:256]) for name, value in kept if name.startswith(b"content-")])
    return packed


def _read_headers(packed: bytes) -> RawHeaders:
    return msgspec.msgpack.decode(packed, type=list[tuple[bytes, bytes]])

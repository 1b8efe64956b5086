"""The row of a payment: found, entered, reserved again. Every function runs inside a transaction of the ledger's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

from contracts.address import Address
from contracts.lifecycle import Money, MoneyEvent, Work
from contracts.schemes.permit2 import TokenPermit
from contracts.schemes.rails import rail_of
from contracts.storage import Connection, Row
from contracts.storage.bulk import in_pieces, placeholders
from contracts.typed_data import word_of_uint
from seller import books
from seller.claims import Claim, Wanted
from seller.policy import Mode
from seller.verify import VerifiedPayment

__all__ = ["find", "insert", "new_row", "permit_of", "reserve_again"]


def find(connection: Connection, chain_id: int, token: Address, payment: VerifiedPayment) -> Row | None:
    """Return the row of this payer and nonce in the payment's registry, or on any rail of the token."""
    authorization, registry = payment.authorization, rail_of(payment.offer).registry(token)
    row: Row | None = connection.execute(
        "SELECT * FROM payments WHERE chain_id = ? AND token = ? AND payer = ? AND nonce = ?",
        (chain_id, token, authorization.payer, authorization.nonce),
    ).fetchone()
    if row is None and registry != token:
        row = connection.execute(
            "SELECT * FROM payments WHERE chain_id = ? AND registry = ? AND payer = ? AND nonce = ?"
            " AND registry <> token",
            (chain_id, registry, authorization.payer, authorization.nonce),
        ).fetchone()
    return row


def new_row(chain_id: int, token: Address, wanted: Wanted, mode: Mode) -> tuple[Any, ...]:
    """Return the row of a payment that was never here, reserved: the values of `insert`."""
    payment = wanted.payment
    authorization, rail = payment.authorization, rail_of(payment.offer)
    begun = mode is Mode.ASYNC
    now_ms = _now_ms()
    return (
        chain_id,
        token,
        rail.NAME,
        rail.registry(token),
        authorization.payer,
        authorization.nonce,
        authorization.payee,
        str(authorization.value_atomic),
        str(authorization.valid_after_s),
        str(authorization.valid_before_s),
        authorization.facilitator,
        payment.signature,
        int(payment.contract_payer),
        None if payment.token_permit is None else _permit_bytes(payment.token_permit),
        payment.payment_id,
        wanted.route,
        wanted.request_digest,
        mode.value,
        (Work.RUNNING if begun else Work.WAITING).value,
        Money.RESERVED.value,
        wanted.owner,
        int(begun),
        wanted.since_block,
        now_ms,
        now_ms,
    )


def insert(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> dict[str, int]:
    """Insert the rows of payments that are not here; return the id of each by its owner. Those here are left out."""
    ids: dict[str, int] = {}
    for piece in in_pieces(rows):
        sql = _INSERT.format(placeholders(len(_COLUMNS), len(piece)))
        inserted = connection.execute(sql, list(chain.from_iterable(piece)))
        ids |= {owner: payment_id for payment_id, owner in inserted}
    return ids


_COLUMNS = (
    *("chain_id", "token", "rail", "registry", "payer", "nonce", "payee", "value_atomic", "valid_after_s"),
    *("valid_before_s", "facilitator", "signature", "contract_payer", "token_permit", "payment_id", "route"),
    *("request_digest", "mode", "work", "money", "owner", "runs", "since_block", "created_ms", "updated_ms"),
)
_INSERT = (
    f"INSERT INTO payments ({', '.join(_COLUMNS)})"  # noqa: S608 - the names above
    " VALUES {} ON CONFLICT DO NOTHING RETURNING id, owner"
)


def reserve_again(connection: Connection, row: Row, payment: VerifiedPayment, mode: Mode, owner: str) -> Claim:
    """Reserve a payment that came back for the same request, after nothing was delivered for it."""
    begun = mode is Mode.ASYNC
    connection.execute(
        "UPDATE payments SET mode = ?, work = ?, owner = ?, runs = runs + ?, attempts = 0, due_ms = 0,"
        " charged_atomic = NULL, signature = ?, contract_payer = ?, token_permit = ? WHERE id = ?",
        (
            mode.value,
            (Work.RUNNING if begun else Work.WAITING).value,
            owner,
            int(begun),
            payment.signature,
            int(payment.contract_payer),
            None if payment.token_permit is None else _permit_bytes(payment.token_permit),
            row["id"],
        ),
    )
    books.move(connection, row["id"], MoneyEvent.RESERVE_AGAIN, _now_ms())
    return Claim(row["id"], payment, mode, owner)


def permit_of(row: Row) -> TokenPermit | None:
    """Return the token permit that came with a payment."""
    data: bytes | None = row["token_permit"]
    if data is None:
        return None
    return TokenPermit(int.from_bytes(data[:32], "big"), int.from_bytes(data[32:64], "big"), bytes(data[64:]))


def _permit_bytes(permit: TokenPermit) -> bytes:
    return word_of_uint(permit.value_atomic) + word_of_uint(permit.deadline_s) + permit.signature


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""The row of a payment: found, entered, reserved again. Every function runs inside a transaction of the ledger's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from contracts.address import Address
from contracts.lifecycle import MoneyEvent, Work
from contracts.schemes.permit2 import TokenPermit
from contracts.schemes.rails import rail_of
from contracts.storage import Connection, Row
from contracts.typed_data import word_of_uint
from seller import books
from seller.claims import Claim
from seller.policy import Mode, Standing
from seller.verify import VerifiedPayment

__all__ = ["enter", "find", "permit_of", "reserve_again", "standing"]


def find(connection: Connection, chain_id: int, token: Address, payment: VerifiedPayment) -> Row | None:
    """Return the row of this payer and nonce in the payment's registry, or on any rail of the token."""
    authorization, registry = payment.authorization, rail_of(payment.offer).registry(token)
    row: Row | None = connection.execute(
        "SELECT * FROM payments WHERE chain_id = ? AND token = ? AND payer = ? AND nonce = ?",
        (chain_id, token, authorization.payer, authorization.nonce),
    ).fetchone()
    if row is None and registry != token:
        row = connection.execute(
            "SELECT * FROM payments WHERE chain_id = ? AND registry = ? AND payer = ? AND nonce = ?",
            (chain_id, registry, authorization.payer, authorization.nonce),
        ).fetchone()
    return row


def standing(
    connection: Connection,
    chain_id: int,
    token: Address,
    payer: Address,
    balance_atomic: Callable[[int], int | None],
) -> Standing:
    """Return where a payer stands now. `balance_atomic` is told what the ledger has settled of it."""
    row = connection.execute(
        "SELECT * FROM payers WHERE chain_id = ? AND token = ? AND payer = ?", (chain_id, token, payer)
    ).fetchone()
    total = connection.execute(
        "SELECT amount_atomic FROM books WHERE chain_id = ? AND token = ? AND name = 'outstanding'", (chain_id, token)
    ).fetchone()
    return Standing(
        settled_count=row["settled_count"] if row else 0,
        outstanding_atomic=int(row["outstanding_atomic"]) if row else 0,
        exposure_atomic=int(row["exposure_atomic"]) if row else 0,
        total_outstanding_atomic=int(total["amount_atomic"]) if total else 0,
        withdrawn_count=row["withdrawn_count"] if row else 0,
        balance_atomic=balance_atomic(int(row["settled_atomic"]) if row else 0),
    )


def enter(
    connection: Connection,
    chain_id: int,
    token: Address,
    payment: VerifiedPayment,
    *,
    mode: Mode,
    owner: str,
    request_digest: bytes,
    route: str,
    since_block: int,
) -> Claim:
    """Insert a payment that was never here, reserved by `owner`."""
    authorization, rail = payment.authorization, rail_of(payment.offer)
    begun = mode is Mode.ASYNC
    now_ms = _now_ms()
    values: dict[str, Any] = {
        "chain_id": chain_id,
        "token": token,
        "rail": rail.NAME,
        "registry": rail.registry(token),
        "payer": authorization.payer,
        "nonce": authorization.nonce,
        "payee": authorization.payee,
        "value_atomic": str(authorization.value_atomic),
        "valid_after_s": str(authorization.valid_after_s),
        "valid_before_s": str(authorization.valid_before_s),
        "facilitator": authorization.facilitator,
        "signature": payment.signature,
        "contract_payer": int(payment.contract_payer),
        "token_permit": None if payment.token_permit is None else _permit_bytes(payment.token_permit),
        "payment_id": payment.payment_id,
        "route": route,
        "request_digest": request_digest,
        "mode": mode.value,
        "work": (Work.RUNNING if begun else Work.WAITING).value,
        "money": "reserved",
        "owner": owner,
        "runs": int(begun),
        "since_block": since_block,
        "created_ms": now_ms,
        "updated_ms": now_ms,
    }
    row = connection.execute(_INSERT, values).fetchone()
    books.enter(connection, row)
    return Claim(row["id"], payment, mode, owner)


_COLUMNS = (
    *("chain_id", "token", "rail", "registry", "payer", "nonce", "payee", "value_atomic", "valid_after_s"),
    *("valid_before_s", "facilitator", "signature", "contract_payer", "token_permit", "payment_id", "route"),
    *("request_digest", "mode", "work", "money", "owner", "runs", "since_block", "created_ms", "updated_ms"),
)
_INSERT = (
    f"INSERT INTO payments ({', '.join(_COLUMNS)})"  # noqa: S608 - the names above
    f" VALUES ({', '.join(f':{column}' for column in _COLUMNS)}) RETURNING *"
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

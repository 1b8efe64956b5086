"""Receipts: what every authorization that left was used for."""

from __future__ import annotations

from dataclasses import dataclass

from buyer.claim import receipt_id
from buyer.limits import RECEIPTS_MAX
from contracts.address import address_text
from contracts.errors import UsageError
from contracts.storage import Connection, Row

__all__ = ["Receipt", "find_receipt", "read_receipts"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """One paid request. `transaction` is the settlement's hash where the seller or the chain told it.

    `state` is the authorization's: `spent` was served, `unknown` waits for the chain. `status` is the HTTP status of
    the answer, None when none came. `price_atomic` is what was signed; `charged_atomic` what was charged of it where
    the seller charges by usage: its word, or the chain's where `charge_proven`, None while unknown. Times are unix
    seconds.
    """

    receipt_id: str
    purchase: str
    model: str
    endpoint: str
    state: str
    price_atomic: int
    charged_atomic: int | None
    charge_proven: bool
    network: str
    asset: str
    payer: str
    payee: str
    nonce: str
    request_key: str
    fingerprint: str | None
    route: str | None
    at_s: int
    valid_before_s: int
    status: int | None
    latency_ms: int | None
    transaction: str | None
    reason: str | None


_LEFT = """
    SELECT authorizations.*, purchases.name, purchases.model, purchases.endpoint
    FROM authorizations JOIN purchases ON purchases.id = authorizations.purchase_id
    WHERE authorizations.state NOT IN ('ready', 'claimed')
"""
_NEWEST_FIRST = "ORDER BY claimed_s DESC, authorizations.id DESC LIMIT :limit"


def read_receipts(connection: Connection, *, name: str | None, limit: int) -> list[Receipt]:
    """Return the newest receipts first, of one purchase name or of all. Raises `UsageError` for a silly limit."""
    if not 0 < limit <= RECEIPTS_MAX:
        raise UsageError(f"--limit: expected 1 to {RECEIPTS_MAX}, got {limit}")
    of_name = "(CAST(:name AS TEXT) IS NULL OR purchases.name = :name)"
    query = f"{_LEFT} AND request_key IS NOT NULL AND {of_name} {_NEWEST_FIRST}"
    return [_receipt(row) for row in connection.execute(query, {"name": name, "limit": limit})]


def find_receipt(connection: Connection, request_key: str) -> Receipt | None:
    """Return the newest receipt of one logical request, or None when nothing ever left for it."""
    query = f"{_LEFT} AND request_key = :key {_NEWEST_FIRST}"
    row = connection.execute(query, {"key": request_key, "limit": 1}).fetchone()
    return None if row is None else _receipt(row)


def _receipt(row: Row) -> Receipt:
    return Receipt(
        receipt_id=receipt_id(row["chain_id"], row["payer"], row["nonce"]),
        purchase=row["name"],
        model=row["model"],
        endpoint=row["endpoint"],
        state=row["state"],
        price_atomic=int(row["value_atomic"]),
        charged_atomic=None if row["charged_atomic"] is None else int(row["charged_atomic"]),
        charge_proven=bool(row["charge_proven"]),
        network=f"eip155:{row['chain_id']}",
        asset=address_text(row["token"]),
        payer=address_text(row["payer"]),
        payee=address_text(row["payee"]),
        nonce="0x" + row["nonce"].hex(),
        request_key=row["request_key"],
        fingerprint=row["fingerprint"],
        route=row["route"],
        at_s=row["claimed_s"],
        valid_before_s=row["valid_before_s"],
        status=row["status"],
        latency_ms=row["latency_ms"],
        transaction=row["transaction_hash"],
        reason=row["reason"],
    )

"""Rows of the pool's tables as values, and back."""

from __future__ import annotations

from typing import Any

import msgspec

from buyer.endpoint import origin_of
from buyer.purchase import Purchase, RefillPolicy, Terms
from contracts.address import Address
from contracts.errors import NameUnknown
from contracts.offers import offer_from_wire
from contracts.schemes.authorization import Authorization
from contracts.storage import Connection, Cursor, Row
from contracts.wire import Requirements, ResourceInfo

__all__ = [
    "COST_SQL",
    "OPEN_IDS_SQL",
    "PURCHASE_QUERY",
    "authorization_from_row",
    "find_purchase",
    "insert_purchase",
    "insert_terms",
    "purchase_from_row",
    "refill_text",
    "terms_from_row",
    "urls_text",
]

# What a spent authorization has cost: of an `upto` ceiling only what the chain has proven, and all of it before.
COST_SQL = "CASE WHEN charge_proven = 1 THEN charged_atomic ELSE value_atomic END"
# Those of a purchase of which only the chain can say what they cost: unknown ones, and spent `upto` payments whose
# charge nothing has proven yet. Two questions, because each has an index that answers it, and both together have none.
OPEN_IDS_SQL = """SELECT id FROM authorizations WHERE purchase_id = :purchase AND state = 'unknown'
    UNION ALL SELECT id FROM authorizations
        WHERE purchase_id = :purchase AND rail = 'upto' AND state = 'spent' AND charge_proven = 0"""
PURCHASE_QUERY = """
    SELECT purchases.*, terms.x402_version, terms.accepted, terms.decimals, terms.resource, terms.extensions
    FROM purchases JOIN terms ON terms.id = purchases.terms_id
"""


def purchase_from_row(row: Row) -> Purchase:
    """Return the purchase in a row of `PURCHASE_QUERY`."""
    return Purchase(
        id=row["id"],
        name=row["name"],
        kind=row["kind"],
        state=row["state"],
        endpoint=row["endpoint"],
        origin=origin_of(row["endpoint"]),
        model=row["model"],
        payer=Address(row["payer"]),
        price_cap_atomic=int(row["price_cap_atomic"]),
        ttl_s=row["ttl_s"],
        refill=None if row["refill"] is None else msgspec.json.decode(row["refill"], type=RefillPolicy),
        rpc_urls=tuple(msgspec.json.decode(row["rpc_urls"], type=list[str])),
        terms_id=row["terms_id"],
        terms=terms_from_row(row),
        is_restored=row["restored_s"] is not None,
        agent=None if row["agent"] is None else Address(row["agent"]),
        calls_per_day=row["calls_per_day"],
    )


def terms_from_row(row: Row) -> Terms:
    """Return the pinned terms in a row that has the columns of `terms`."""
    accepted = msgspec.json.decode(row["accepted"], type=Requirements)
    return Terms(
        offer=offer_from_wire(accepted, decimals=row["decimals"]),
        accepted=accepted,
        x402_version=row["x402_version"],
        resource=None if row["resource"] is None else msgspec.json.decode(row["resource"], type=ResourceInfo),
        extensions=None if row["extensions"] is None else msgspec.json.decode(row["extensions"]),
    )


def find_purchase(connection: Connection, name: str) -> Purchase:
    """Return the purchase of that name that is not removed. Raises `NameUnknown`."""
    row = connection.execute(PURCHASE_QUERY + "WHERE name = ? AND state != 'removed'", (name,)).fetchone()
    if row is None:
        raise NameUnknown(f"no purchase is called {name[:80]!r}")
    return purchase_from_row(row)


def insert_terms(connection: Connection, terms: Terms, now_s: int) -> int:
    """Store pinned terms and return their id."""
    cursor = connection.execute(
        """INSERT INTO terms (x402_version, accepted, decimals, resource, extensions, pinned_s)
           VALUES (?, ?, ?, ?, ?, ?) RETURNING id""",
        (
            terms.x402_version,
            _json(terms.accepted),
            terms.offer.asset.decimals,
            None if terms.resource is None else _json(terms.resource),
            None if terms.extensions is None else _json(terms.extensions),
            now_s,
        ),
    )
    return _returned_id(cursor)


def insert_purchase(
    connection: Connection,
    *,
    name: str,
    kind: str,
    endpoint: str,
    model: str,
    payer: Address,
    price_cap_atomic: int,
    ttl_s: int,
    refill: RefillPolicy | None,
    rpc_urls: tuple[str, ...],
    terms: Terms,
    now_s: int,
    agent: Address | None = None,
    calls_per_day: int | None = None,
) -> int:
    """Store a new purchase with its first terms and return its id. A one-shot purchase begins draining."""
    cursor = connection.execute(
        """INSERT INTO purchases (name, kind, state, endpoint, model, payer, price_cap_atomic, ttl_s, refill, rpc_urls,
                                  terms_id, created_s, agent, calls_per_day)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id""",
        (
            name,
            kind,
            "active" if kind == "pool" else "draining",
            endpoint,
            model,
            payer,
            str(price_cap_atomic),
            ttl_s,
            refill_text(refill),
            urls_text(rpc_urls),
            insert_terms(connection, terms, now_s),
            now_s,
            agent,
            calls_per_day,
        ),
    )
    return _returned_id(cursor)


def refill_text(refill: RefillPolicy | None) -> str | None:
    """Return a refill policy as it is stored."""
    return None if refill is None else _json(refill)


def urls_text(urls: tuple[str, ...]) -> str:
    """Return RPC endpoints as they are stored."""
    return _json(list(urls))


def authorization_from_row(row: Row) -> Authorization:
    """Return what was, or is to be, signed."""
    return Authorization(
        payer=Address(row["payer"]),
        payee=Address(row["payee"]),
        value_atomic=int(row["value_atomic"]),
        valid_after_s=row["valid_after_s"],
        valid_before_s=row["valid_before_s"],
        nonce=row["nonce"],
        facilitator=None if row["facilitator"] is None else Address(row["facilitator"]),
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _returned_id(cursor: Cursor) -> int:
    return int(cursor.fetchone()["id"])

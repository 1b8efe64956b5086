"""What facilitators list, for search: about agents of the registry, and of sellers that are not in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from contracts.address import Address
from contracts.networks import find_asset, parse_network
from contracts.storage import Connection, Row
from registry.card import host_of
from registry.rank import Offered, price_of
from registry.search import Query, Result

__all__ = ["Listing", "listed_about", "search_listings"]

_ABOUT = "SELECT * FROM bazaar_items WHERE pay_to = ? OR host = ? ORDER BY source, resource, tool LIMIT ?"
_FOUND = """
    SELECT bazaar_items.* FROM bazaar_text JOIN bazaar_items ON bazaar_items.rowid = bazaar_text.rowid
    WHERE bazaar_text MATCH ? AND (? IS NULL OR bazaar_items.network = ?)
    ORDER BY coalesce(bazaar_items.payers_30_days, 0) = 0, bm25(bazaar_text, 8.0, 3.0, 3.0, 1.0) LIMIT ?
"""
_ABOUT_MAX = 8


@dataclass(frozen=True, slots=True)
class Listing:
    """One listed item. `match` is by what it belongs to an agent: payee, resource or host; "" where to none."""

    source: str
    resource: str
    tool: str
    kind: str
    name: str
    description: str
    tags: tuple[str, ...]
    offered: Offered
    pay_to: Address | None
    calls_30_days: int | None
    payers_30_days: int | None
    fetched_at_s: int
    match: str = ""


def listed_about(connection: Connection, result: Result) -> list[Listing]:
    """Return what is listed about an agent that was found, and by what it was recognised."""
    host = None if result.endpoint is None else host_of(result.endpoint)
    rows = connection.execute(_ABOUT, (result.pay_to, host, _ABOUT_MAX)).fetchall()
    return [_listing(row, _match(row, result)) for row in rows]


def search_listings(connection: Connection, query: Query, known: Sequence[Result]) -> list[Listing]:
    """Return listed items that fit `query` and belong to none of the agents found. Nothing about them is proven.

    Those that somebody paid in the last 30 days, as the source says, come first.
    """
    network = None if query.network is None else query.network.caip2
    words = " AND ".join(f'"{word}"*' for word in query.words)
    rows = connection.execute(_FOUND, (words, network, network, query.limit)).fetchall()
    payees = {result.pay_to for result in known}
    hosts = {host_of(result.endpoint) for result in known if result.endpoint is not None}
    found = []
    for row in rows:
        listing = _listing(row)
        price = price_of(listing.offered)
        too_dear = query.max_price is not None and (price is None or price > query.max_price)
        if listing.pay_to not in payees and host_of(listing.resource) not in hosts and not too_dear:
            found.append(listing)
    return found


def _match(row: Row, result: Result) -> str:
    if row["resource"] == result.endpoint:
        return "resource"
    return "payee" if row["pay_to"] is not None and row["pay_to"] == result.pay_to else "host"


def _listing(row: Row, match: str = "") -> Listing:
    pay_to = None if row["pay_to"] is None else Address(row["pay_to"])
    return Listing(
        source=row["source"],
        resource=row["resource"],
        tool=row["tool"],
        kind=row["kind"],
        name=row["name"],
        description=row["description"],
        tags=tuple(msgspec.json.decode(row["tags"], type=list[str])),
        offered=_offered(row),
        pay_to=pay_to,
        calls_30_days=row["calls_30_days"],
        payers_30_days=row["payers_30_days"],
        fetched_at_s=row["fetched_at_s"],
        match=match,
    )


def _offered(row: Row) -> Offered:
    """Return the offer of an item; a listing states no decimals, so only the price of a known token can be told."""
    asset = None
    if row["asset"] is not None:
        asset = find_asset(parse_network(row["network"]), Address(row["asset"]))
    decimals, symbol = (None, None) if asset is None else (asset.decimals, asset.symbol)
    return Offered(row["network"], row["asset"], row["price_atomic"], decimals, symbol)

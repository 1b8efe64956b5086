"""The Bazaar: what facilitators list as for sale, kept beside the registry with the source of every fact.

A listing proves nothing: it says that somebody settled once through that facilitator, and may be dead for days. It is
merged with agents of the registry by payee, resource and host. Source: x402 discovery (`GET /discovery/resources`);
the answers of facilitators, which differ (`items` or `resources`, `resource` or `url`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from contracts.errors import FareboxError, SellerUnreachable
from contracts.offers import Offer, offer_from_wire
from contracts.storage import Connection, Database
from contracts.wire import Requirements, RequirementsV1
from registry.card import host_of
from registry.documents import read_json
from registry.fetch import Fetcher, Unfetched
from registry.limits import (
    BAZAAR_PAGE_BYTES_MAX,
    BAZAAR_PAGE_ITEMS,
    BAZAAR_PAGES_MAX,
    BAZAAR_TIMEOUT_S,
    DESCRIPTION_CHARS_MAX,
    NAME_CHARS_MAX,
    SKILLS_MAX,
    URL_CHARS_MAX,
    WORD_CHARS_MAX,
)
from registry.probe import cheapest
from registry.text import clean

__all__ = ["Listed", "pull", "read_page", "write_listing_texts"]

_PATH = "/discovery/resources"
_STORE = """
    INSERT INTO bazaar_items (source, resource, tool, kind, host, name, description, tags, scheme, network, asset,
        pay_to, price_atomic, offers, calls_30_days, payers_30_days, fetched_at_s)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (source, resource, tool) DO UPDATE SET
        kind = excluded.kind, host = excluded.host, name = excluded.name, description = excluded.description,
        tags = excluded.tags, scheme = excluded.scheme, network = excluded.network, asset = excluded.asset,
        pay_to = excluded.pay_to, price_atomic = excluded.price_atomic, offers = excluded.offers,
        calls_30_days = excluded.calls_30_days, payers_30_days = excluded.payers_30_days,
        fetched_at_s = excluded.fetched_at_s
"""


@dataclass(frozen=True, slots=True)
class Listed:
    """One item of a listing. MCP tools share a resource and are told apart by `tool`, which is "" for HTTP."""

    resource: str
    tool: str = ""
    kind: str = "http"
    name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()
    calls_30_days: int | None = None
    payers_30_days: int | None = None


async def pull(database: Database, fetcher: Fetcher, source: str, now_s: int) -> int:
    """Read the whole listing of the facilitator at `source` into the index, and return how many items it has.

    What it listed before and does not now is forgotten, once all pages were read. Raises `SellerUnreachable` when a
    page cannot be had; the pages before it are kept.
    """
    base = source.rstrip("/").removesuffix(_PATH)
    seen, offset = 0, 0
    for _ in range(BAZAAR_PAGES_MAX):
        url = f"{base}{_PATH}?limit={BAZAAR_PAGE_ITEMS}&offset={offset}"
        try:
            answer = await fetcher.get(url, body_max=BAZAAR_PAGE_BYTES_MAX, timeout_s=BAZAAR_TIMEOUT_S)
        except Unfetched as problem:
            raise SellerUnreachable(f"--bazaar: {base}: {problem}", remedy="check the URL, or try later") from None
        document, codes = read_json(answer.body, BAZAAR_PAGE_BYTES_MAX)
        if answer.status != 200 or not isinstance(document, dict):
            reason = f"status {answer.status}" if answer.status != 200 else ", ".join(codes) or "not a listing"
            raise SellerUnreachable(f"--bazaar: {base}: {reason}", remedy="name a facilitator that lists resources")
        entries = _entries(document)
        items = read_page(document)
        database.transact(partial(_store, source=base, items=items, now_s=now_s), durable=False)
        seen, offset = seen + len(items), offset + len(entries)
        if not entries or offset >= _total(document, offset):
            break
    database.transact(partial(_finish, source=base, now_s=now_s))
    return seen


def read_page(document: Any) -> list[Listed]:
    """Return the items of one decoded page that can be read; never raises."""
    return [item for entry in _entries(document) if (item := _item(entry)) is not None]


def _entries(document: Any) -> list[Any]:
    for name in ("items", "resources"):
        listed = document.get(name) if isinstance(document, dict) else None
        if isinstance(listed, list):
            return listed
    return []


def _total(document: dict[str, Any], offset: int) -> int:
    pagination = document.get("pagination")
    total = pagination.get("total") if isinstance(pagination, dict) else None
    # Without a total the next page tells: it is empty after the last.
    return total if isinstance(total, int) and not isinstance(total, bool) else offset + 1


def _item(entry: Any) -> Listed | None:
    if not isinstance(entry, dict):
        return None
    given = entry.get("resource", entry.get("url"))
    resource = given.get("url") if isinstance(given, dict) else given
    if not isinstance(resource, str) or clean(resource, URL_CHARS_MAX) != resource or host_of(resource) is None:
        return None
    quality = entry.get("quality")
    counts = quality if isinstance(quality, dict) else {}
    accepts = entry.get("accepts")
    tags = entry.get("tags")
    return Listed(
        resource=resource,
        tool=clean(entry.get("toolName", entry.get("tool")), WORD_CHARS_MAX),
        kind=clean(entry.get("type"), WORD_CHARS_MAX) or "http",
        name=clean(entry.get("serviceName"), NAME_CHARS_MAX),
        description=clean(entry.get("description") or _described(accepts), DESCRIPTION_CHARS_MAX),
        tags=tuple(clean(tag, WORD_CHARS_MAX) for tag in tags[:SKILLS_MAX]) if isinstance(tags, list) else (),
        offers=tuple(_offers(accepts)),
        calls_30_days=_count(counts.get("l30DaysTotalCalls")),
        payers_30_days=_count(counts.get("l30DaysUniquePayers")),
    )


def _offers(accepts: Any) -> Iterable[Offer]:
    """Yield the offers that can be read, of either version."""
    for terms in accepts[:32] if isinstance(accepts, list) else ():
        is_v1 = isinstance(terms, dict) and "maxAmountRequired" in terms
        kind: type[Requirements | RequirementsV1] = RequirementsV1 if is_v1 else Requirements
        try:
            yield offer_from_wire(msgspec.convert(terms, kind))
        except (FareboxError, msgspec.ValidationError):
            continue


def _described(accepts: Any) -> Any:
    """Return the description that version 1 puts into the terms."""
    first = accepts[0] if isinstance(accepts, list) and accepts else None
    return first.get("description") if isinstance(first, dict) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else None


def _store(connection: Connection, source: str, items: Sequence[Listed], now_s: int) -> None:
    for item in items:
        offer = cheapest(item.offers)
        network, asset, pay_to, price = (
            (offer.network.caip2, offer.asset.address, offer.pay_to, str(offer.amount_atomic))
            if offer is not None
            else (None,) * 4
        )
        spelled = [each.spelled for each in item.offers]
        connection.execute(
            _STORE,
            (
                *(source, item.resource, item.tool, item.kind, host_of(item.resource), item.name, item.description),
                msgspec.json.encode(item.tags).decode(),
                *(None if offer is None else offer.scheme, network, asset, pay_to, price),
                msgspec.json.encode(spelled).decode(),
                *(item.calls_30_days, item.payers_30_days, now_s),
            ),
        )


def _finish(connection: Connection, source: str, now_s: int) -> None:
    """Forget what was not listed this time, and make the text of all items anew."""
    connection.execute("DELETE FROM bazaar_items WHERE source = ? AND fetched_at_s < ?", (source, now_s))
    write_listing_texts(connection)


def write_listing_texts(connection: Connection) -> None:
    """Make the text of all listed items anew."""
    connection.execute("DELETE FROM bazaar_text")
    connection.execute(
        "INSERT INTO bazaar_text (rowid, name, description, tags, resource)"
        " SELECT rowid, name, description, tags, resource FROM bazaar_items"
    )

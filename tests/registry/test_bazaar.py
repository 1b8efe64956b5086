"""Goal: listings are found beside the registry, each fact with its source, and nothing in them is believed.

Method: pages as facilitators answer them, and nonsense, on a web of strangers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.address import Address, address_text
from contracts.errors import SellerUnreachable
from contracts.networks import ASSETS, Network
from contracts.offers import Offer, requirements
from registry.bazaar import pull, read_page
from registry.gather import gather
from registry.index import Index
from registry.limits import BAZAAR_PAGE_ITEMS
from registry.listings import Listing, listed_about, search_listings
from registry.search import Query, search
from registry.survey import survey
from tests.registry.shelf import NOW_S, WALLET, register, shelf
from tests.registry.strangers import Request, Web, strangers

BASE = Network(8453)
USDC = ASSETS[8453][0]
PAYEE = Address(bytes([7]) * 20)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with shelf(tmp_path) as opened:
        yield opened


def item(resource: str, *, pay_to: Address = PAYEE, price_atomic: int = 1000, **more: Any) -> dict[str, Any]:
    terms = msgspec.to_builtins(requirements(Offer("exact", BASE, USDC, price_atomic, pay_to, 60)))
    return {"resource": resource, "type": "http", "x402Version": 2, "accepts": [terms], **more}


def listing(web: Web, items: list[dict[str, Any]], *, key: str = "items", has_total: bool = True) -> str:
    """Serve `items` in pages as a facilitator does, and return its URL."""

    async def serve(request: Request) -> None:
        asked = dict(pair.split("=") for pair in request.path.partition("?")[2].split("&"))
        start, limit = int(asked["offset"]), int(asked["limit"])
        page: dict[str, Any] = {"x402Version": 2, key: items[start : start + limit]}
        if has_total:
            page["pagination"] = {"limit": limit, "offset": start, "total": len(items)}
        await request.answer(200, json.dumps(page).encode())

    web.pages["bazaar/discovery/resources"] = serve
    return web.url("bazaar", "")


def listings(index: Index, text: str, **options: Any) -> list[Listing]:
    query = Query(text=text, **options)
    return index.database.read(lambda connection: search_listings(connection, query, []))


@pytest.mark.parametrize(("key", "has_total"), [("items", True), ("items", False), ("resources", False)])
async def test_every_page_of_a_listing_is_read(index: Index, key: str, has_total: bool) -> None:
    count = 2 * BAZAAR_PAGE_ITEMS + 1
    async with strangers() as web, web.fetcher() as fetcher:
        items = [item(f"https://seller{n}.example/buy", serviceName="Coder") for n in range(count)]
        assert await pull(index.database, fetcher, listing(web, items, key=key, has_total=has_total), NOW_S) == count
    assert len(listings(index, "coder", limit=200)) == 200


async def test_what_is_no_longer_listed_is_forgotten_and_another_source_is_left_alone(index: Index) -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        first = [item("https://a.example/", serviceName="Coder"), item("https://b.example/", serviceName="Coder")]
        source = listing(web, first)
        await pull(index.database, fetcher, source, NOW_S)
        index.database.transact(
            lambda connection: connection.execute(
                "INSERT INTO bazaar_items (source, resource, kind, name, fetched_at_s) VALUES ('other', 'x', 'http',"
                " 'Coder', 1)"
            )
        )
        listing(web, first[:1])
        await pull(index.database, fetcher, source, NOW_S + 1)
    assert {(found.source, found.resource) for found in listings(index, "coder")} == {
        (source, "https://a.example/"),
        ("other", "x"),
    }


async def test_sellers_that_somebody_paid_come_first_and_dear_ones_are_left_out(index: Index) -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        quality = {"l30DaysUniquePayers": 12, "l30DaysTotalCalls": 300}
        items = [
            item("https://unpaid.example/", serviceName="Coder Coder"),
            item("https://paid.example/", description="a coder", quality=quality),
            item("https://trap.example/", serviceName="Coder", price_atomic=10**9),
        ]
        await pull(index.database, fetcher, listing(web, items), NOW_S)
    found = listings(index, "coder", max_price=Fraction("0.01"))
    assert [each.resource for each in found] == ["https://paid.example/", "https://unpaid.example/"]
    assert (found[0].payers_30_days, found[0].calls_30_days) == (12, 300)


async def test_a_listing_is_merged_with_the_agent_it_belongs_to_by_payee_host_or_resource(index: Index) -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        endpoint = register(web, index, 1, "seller")
        items = [
            item("https://elsewhere.example/", pay_to=WALLET, serviceName="code"),
            item(web.url("seller", "/other"), serviceName="code"),
            item(endpoint, serviceName="code"),
            item("https://stranger.example/", serviceName="code"),
        ]
        await pull(index.database, fetcher, listing(web, items), NOW_S)
        await gather(index.database, fetcher, NOW_S)
        await survey(index.database, fetcher, NOW_S)
    query = Query(text="code")

    def read(connection: Any) -> tuple[dict[str, str], list[str]]:
        (result,) = search(connection, query, NOW_S)
        about = {each.resource: each.match for each in listed_about(connection, result)}
        return about, [each.resource for each in search_listings(connection, query, [result])]

    about, others = index.database.read(read)
    assert about == {
        "https://elsewhere.example/": "payee",
        web.url("seller", "/other"): "host",
        endpoint: "resource",
    }
    assert others == ["https://stranger.example/"]


@pytest.mark.parametrize(("body", "status"), [(b"<html>", 200), (b"[]", 200), (b"{}", 500)])
async def test_what_is_no_listing_is_an_error_that_names_the_facilitator(
    index: Index, body: bytes, status: int
) -> None:
    async with strangers() as web, web.fetcher() as fetcher:
        web.page("bazaar", "/discovery/resources", body, status)
        with pytest.raises(SellerUnreachable, match="--bazaar: http://bazaar"):
            await pull(index.database, fetcher, web.url("bazaar", ""), NOW_S)


def test_terms_of_version_one_are_read_too() -> None:
    terms = {
        "scheme": "exact",
        "network": "base",
        "maxAmountRequired": "500",
        "resource": "https://a.example/",
        "description": "weather",
        "payTo": address_text(PAYEE),
        "maxTimeoutSeconds": 60,
        "asset": USDC.address_text,
    }
    (found,) = read_page({"items": [{"resource": "https://a.example/", "accepts": [terms]}]})
    assert (found.description, found.offers[0].amount_atomic, found.offers[0].pay_to) == ("weather", 500, PAYEE)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["items", "resource", "url", "accepts", "tags", "quality", "type", "network"]), inner
            )
        ),
        max_leaves=15,
    )
)
def test_anything_at_all_is_a_page_of_some_items_or_none(document: Any) -> None:
    read_page(document)
    read_page({"items": [document, {"resource": "https://a.example/", "accepts": document, "quality": document}]})

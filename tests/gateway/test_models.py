"""Goal: a model name means the purchase its reader expects. Method: every spelling against a shelf of odd names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buyer.purchase import Purchase, terms_from_wire
from contracts.offers import requirements
from gateway.models import PAID_PREFIX, by_model, cheapest_first, document, find, parse_model
from tests.gateway.parts import KEY, offer_at

BASE = Purchase(
    id=1,
    name="one",
    kind="pool",
    state="active",
    endpoint="http://127.0.0.1:1",
    origin="http://127.0.0.1:1",
    model="m",
    payer=KEY.address,
    price_cap_atomic=1000,
    ttl_s=600,
    refill=None,
    rpc_urls=(),
    terms_id=1,
    terms=terms_from_wire(requirements(offer_at())),
)


def purchase(name: str, model: str, price_atomic: int = 1000, decimals: int = 6) -> Purchase:
    terms = terms_from_wire(requirements(offer_at(price_atomic)), decimals=decimals)
    return replace(BASE, name=name, model=model, terms=terms)


SHELF = [
    purchase("one", "qwen3.5:9b"),
    purchase("two", "qwen3.5:9b"),
    purchase("three", "openai/gpt-oss-120b"),
    purchase("four", "meta/Llama-3.1:free"),
    purchase("five", "@cf/meta/m"),
    purchase("six", "m@one"),
    purchase("seven", "paid/odd"),
]


@pytest.mark.parametrize(
    ("asked", "sellers"),
    [
        ("paid/qwen3.5:9b", ["one", "two"]),
        ("qwen3.5:9b", ["one", "two"]),
        ("paid/qwen3.5:9b@two", ["two"]),
        ("paid/qwen3.5:9b@three", []),
        ("paid/openai/gpt-oss-120b", ["three"]),
        ("paid/gpt-oss-120b", []),
        ("paid/meta/Llama-3.1:free@four", ["four"]),
        ("paid/@cf/meta/m", ["five"]),
        ("paid/@cf/meta/m@five", ["five"]),
        ("paid/m@one", ["six"]),
        ("paid/m@one@six", ["six"]),
        ("paid/paid/odd", ["seven"]),
        ("paid/odd", []),
        ("paid/", []),
        ("@one", []),
        ("paid/QWEN3.5:9b", []),
    ],
)
def test_names_find_their_purchases(asked: str, sellers: list[str]) -> None:
    assert [found.name for found in find(parse_model(asked).name, by_model(SHELF))] == sellers


def test_a_pinned_seller_narrows_the_choice() -> None:
    assert [found.name for found in find("qwen3.5:9b", by_model(SHELF), "two")] == ["two"]
    assert find("qwen3.5:9b", by_model(SHELF), "three") == []


@given(st.text(min_size=1))
def test_exactly_one_prefix_is_taken_off(name: str) -> None:
    assert parse_model(PAID_PREFIX + name).name == name
    assert parse_model(PAID_PREFIX + name).paid


@given(st.text(min_size=1).filter(lambda name: not name.startswith(PAID_PREFIX)))
def test_a_bare_name_stays_as_it_is(name: str) -> None:
    assert parse_model(name).name == name
    assert not parse_model(name).paid


def test_prices_are_compared_in_tokens_not_in_atomic_units() -> None:
    dear = purchase("dear", "m", 2_000, decimals=6)
    cheap = purchase("cheap", "m", 10**15, decimals=18)
    assert [one.name for one in cheapest_first([dear, cheap])] == ["cheap", "dear"]


def test_equal_prices_are_ordered_by_name() -> None:
    assert [one.name for one in cheapest_first([purchase("b", "m"), purchase("a", "m")])] == ["a", "b"]


def test_a_listed_model_shows_its_cheapest_price_exactly() -> None:
    entry = document("m", [purchase("dear", "m", 123_456_789), purchase("cheap", "m", 1)])
    assert entry["id"] == "m"
    assert entry["farebox"]["price_atomic"] == "1"
    assert entry["farebox"]["price"] == "0.000001 USDC"
    assert entry["farebox"]["sellers"] == ["cheap", "dear"]

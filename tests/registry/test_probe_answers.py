"""Goal: whatever a stranger's endpoint answers, a probe is a result. Method: arbitrary 402s."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.headers import PAYMENT_REQUIRED
from contracts.offers import requirements
from registry.card import Card, Service
from registry.fetch import Answer
from registry.limits import MODELS_MAX, PROBE_ENDPOINTS_MAX
from registry.probe import cheapest, endpoints_of, read_models, read_probe
from tests.registry.shelf import offer

URL = "https://seller.example/buy"
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_TERMS: dict[str, Any] = msgspec.to_builtins(requirements(offer()))


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(URL, status, httpx.Headers(headers), body, 5)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*_TERMS, "payTo", "asset", "network"]), _ANY), _ANY)
def test_terms_with_anything_anywhere_are_an_offer_or_none(change: dict[str, Any], extension: Any) -> None:
    document = {"x402Version": 2, "accepts": [_TERMS, {**_TERMS, **change}], "extensions": extension}
    probe = read_probe(URL, answer(402, json.dumps(document).encode()))
    assert probe.state in ("payable", "unreadable")
    assert bool(probe.offers) == (probe.state == "payable")


@settings(max_examples=150, deadline=None)
@given(st.integers(100, 599), st.binary(max_size=200), st.text(st.characters(max_codepoint=255), max_size=80))
def test_arbitrary_bytes_and_headers_are_a_result(status: int, body: bytes, header: str) -> None:
    headers = httpx.Headers([(PAYMENT_REQUIRED.encode(), header.encode("latin-1"))])
    probe = read_probe(URL, Answer(URL, status, headers, body, 5))
    assert probe.state != "payable"
    assert read_models(answer(status, body)) == ()


@given(_ANY)
def test_a_list_of_models_is_printable_names_or_nothing(listed: Any) -> None:
    models = read_models(answer(200, json.dumps({"data": [listed, {"id": listed}, {"id": "m"}]}).encode()))
    assert "m" in models
    assert all(name.isprintable() for name in models)


def test_long_lists_of_models_and_endpoints_are_cut() -> None:
    many = {"data": [{"id": f"m{number}"} for number in range(1000)]}
    assert len(read_models(answer(200, json.dumps(many).encode()))) == MODELS_MAX
    services = tuple(Service("web", f"https://seller{number}.example/") for number in range(30))
    assert len(endpoints_of(Card(services=services))) == PROBE_ENDPOINTS_MAX


def test_endpoints_that_promise_a_price_are_asked_first_and_other_protocols_not_at_all() -> None:
    names = {
        "web": "https://a.example",
        "MCP": "https://b.example",
        "X402": "https://c.example",
        "email": "a@b.example",
    }
    services = tuple(Service(name, endpoint) for name, endpoint in names.items())
    assert endpoints_of(Card(services=services)) == ("https://c.example", "https://a.example")


@pytest.mark.parametrize("prices", [[3000, 1000, 2000], [1000]])
def test_the_cheapest_offer_is_the_one_a_buyer_would_take(prices: list[int]) -> None:
    best = cheapest([offer(price_atomic=price) for price in prices])
    assert best is not None
    assert best.amount_atomic == 1000
    assert cheapest([]) is None

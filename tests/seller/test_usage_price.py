"""Goal: what tokens cost is exact, rounded up once, never above what was signed and never below the minimum.

And one request can be bounded: what it may come to is known, or written into it, before any work.
"""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import AboveCeiling, MalformedMessage
from seller.bounds import BoundedRequest, bound_request
from seller.pricing import UsagePrice
from seller.usage import DIALECTS

TOKENS = st.integers(0, 10_000_000)
ATOMIC = st.integers(0, 10**24)
PRICES = st.builds(UsagePrice, ATOMIC, ATOMIC, ATOMIC, ATOMIC, TOKENS, TOKENS)

CHAT = DIALECTS["/v1/chat/completions"]
# 1,000 atomic units a million bytes of prompt, a million a million tokens of output: a token is an atomic unit.
PRICE = UsagePrice(0, 1_000, 1_000_000, 0, 10_000, 100)


def test_a_price_is_the_exact_sum_rounded_up_once() -> None:
    price = UsagePrice(7, 150_000, 600_000, 0, 10_000, 10_000)
    assert price.charge_atomic(3, 1) == 7 + 2  # 0.45 + 0.60
    assert price.charge_atomic(1, 1) == 7 + 1  # 0.15 + 0.60: rounded each for itself it would be one more
    assert price.charge_atomic(0, 0) == 7


@given(PRICES, TOKENS, TOKENS)
def test_a_charge_lies_between_minimum_and_ceiling(price: UsagePrice, given: int, made: int) -> None:
    assert price.minimum_atomic <= price.charge_atomic(given, made) <= price.ceiling_atomic


@given(PRICES, TOKENS, TOKENS, TOKENS, TOKENS)
def test_more_tokens_never_cost_less(price: UsagePrice, given: int, made: int, more: int, most: int) -> None:
    assert price.charge_atomic(given, made) <= price.charge_atomic(given + more, made + most)


@given(PRICES, TOKENS, TOKENS)
def test_a_cost_is_the_rational_sum_rounded_up(price: UsagePrice, given: int, made: int) -> None:
    per_token = Fraction(price.per_million_input_atomic, 10**6), Fraction(price.per_million_output_atomic, 10**6)
    assert price.cost_atomic(given, made) == ceil(price.per_call_atomic + given * per_token[0] + made * per_token[1])


@given(PRICES, TOKENS)
def test_the_output_that_fits_does_and_one_token_more_does_not(price: UsagePrice, given: int) -> None:
    fits = price.output_that_fits(given)
    if fits is None:
        assert price.cost_atomic(given, 0) > price.ceiling_atomic
    elif price.per_million_output_atomic:
        assert price.cost_atomic(given, fits) <= price.ceiling_atomic < price.cost_atomic(given, fits + 1)


def _bounded(price: UsagePrice = PRICE, path: str = "/v1/chat/completions", **fields: Any) -> BoundedRequest:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return bound_request(json.dumps(body).encode(), DIALECTS[path], price)


def _written(request: BoundedRequest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(request.body)
    return document


def test_a_request_without_a_bound_gets_the_models() -> None:
    assert _written(_bounded())["max_tokens"] == 100
    assert _written(_bounded(path="/v1/responses"))["max_output_tokens"] == 100
    assert _written(_bounded(max_tokens=None))["max_tokens"] == 100


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_request_with_a_bound_keeps_it(field: str) -> None:
    written = _written(_bounded(PRICE, "/v1/chat/completions", **{field: 17}))
    assert written[field] == 17
    assert [name for name in ("max_tokens", "max_completion_tokens", "n_predict") if name in written] == [field]


def test_the_larger_of_two_bounds_counts() -> None:
    with pytest.raises(AboveCeiling):
        _bounded(max_tokens=5, n_predict=5_000)


def test_a_bound_above_the_ceiling_is_refused_with_what_fits() -> None:
    with pytest.raises(AboveCeiling, match="max_completion_tokens: 5000 tokens") as refused:
        _bounded(max_completion_tokens=5_000)
    fits = int(refused.value.advice.split("at most ")[1].split(",")[0])
    assert _written(_bounded(max_completion_tokens=fits))["max_completion_tokens"] == fits
    with pytest.raises(AboveCeiling):
        _bounded(max_completion_tokens=fits + 1)


def test_several_answers_share_what_is_authorized() -> None:
    assert _written(_bounded(n=4))["max_tokens"] <= 110 // 4
    with pytest.raises(AboveCeiling, match="for each of 4 answers"):
        _bounded(n=4, max_tokens=30)
    prompts = bound_request(json.dumps({"prompt": ["a"] * 10}).encode(), DIALECTS["/v1/completions"], PRICE)
    assert _written(prompts)["max_tokens"] <= 11
    embeds = bound_request(json.dumps({"prompt_embeds": ["a"] * 10}).encode(), DIALECTS["/v1/completions"], PRICE)
    assert _written(embeds)["max_tokens"] <= 11
    tokens = bound_request(json.dumps({"prompt": [1] * 10}).encode(), DIALECTS["/v1/completions"], PRICE)
    assert _written(tokens)["max_tokens"] == 100


def test_a_prompt_that_may_cost_more_than_is_authorized_is_refused() -> None:
    dear = UsagePrice(0, 1_000_000, 1_000_000, 0, 1_000, 100)
    with pytest.raises(AboveCeiling, match="may be as many tokens"):
        _bounded(dear, messages=[{"role": "user", "content": "x" * 2_000}])
    with pytest.raises(AboveCeiling, match="leave no output"):
        _bounded(dear, messages=[{"role": "user", "content": "x" * 950}], n=100)


@pytest.mark.parametrize(
    ("path", "one", "many"),
    [
        ("/v1/rerank", "query", "documents"),
        ("/v1/score", "text_1", "text_2"),
        ("/v1/score", "text_2", "text_1"),
        ("/v1/score", "queries", "documents"),
    ],
)
def test_a_query_that_is_read_before_every_document_counts_as_often(path: str, one: str, many: str) -> None:
    reading = UsagePrice(0, 1_000_000, 0, 0, 10_000, 0)
    query, documents = "x" * 1_000, ["y"] * 10
    request = bound_request(json.dumps({one: query, many: documents[1:]}).encode(), DIALECTS[path], reading)
    assert _written(request)[one] == query
    for texts in (documents, {"content": documents}):
        with pytest.raises(AboveCeiling, match="may be as many tokens"):
            bound_request(json.dumps({one: query, many: texts}).encode(), DIALECTS[path], reading)
    with pytest.raises(AboveCeiling):
        bound_request(json.dumps({one: [query], many: documents}).encode(), DIALECTS[path], reading)
    each = bound_request(json.dumps({one: documents, many: documents}).encode(), DIALECTS[path], reading)
    assert _written(each)[many] == documents


def test_a_longer_prompt_leaves_less_output() -> None:
    dear = UsagePrice(0, 1_000_000, 1_000_000, 0, 1_000, 100)
    request = _bounded(dear, messages=[{"role": "user", "content": "x" * 1_000}])
    bound = _written(request)["max_tokens"]
    assert 0 < bound < 100


def test_a_stream_is_asked_for_its_usage() -> None:
    assert _bounded(stream=True).adds_usage
    written = _written(_bounded(stream=True, stream_options={"include_usage": False, "other": 1}))
    assert written["stream_options"] == {"include_usage": True, "other": 1}
    assert not _bounded(stream=True, stream_options={"include_usage": True}).adds_usage
    assert "stream_options" not in _written(_bounded())
    assert "stream_options" not in _written(_bounded(path="/v1/messages", stream=True))


def test_output_that_costs_nothing_is_not_bounded() -> None:
    reading = UsagePrice(0, 1_000_000, 0, 0, 1_000, 0)
    assert "max_tokens" not in _written(_bounded(reading))
    assert _written(_bounded(reading, max_tokens=10**6))["max_tokens"] == 10**6


def test_an_endpoint_that_generates_nothing_gets_no_bound() -> None:
    assert "max_tokens" not in _written(_bounded(path="/v1/embeddings", input="x"))


@pytest.mark.parametrize(
    "body",
    [
        b'{"max_tokens": 1, "max_tokens": 9000}',
        b'{"max_tokens": 9000, "max_tokens": 1}',
        b'{"stream": true, "stream_options": {"include_usage": true, "include_usage": false}}',
        b'{"stream": true, "stream_options": {"include_usage": false, "include_usage": true}}',
    ],
)
def test_what_goes_on_can_be_read_in_one_way_only(body: bytes) -> None:
    cheap = UsagePrice(0, 0, 1_000_000, 0, 0, 10_000)
    seen: list[str] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen.extend(name for name, _ in pairs)
        return dict(pairs)

    json.loads(bound_request(body, CHAT, cheap).body, object_pairs_hook=remember)
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"Max_Tokens": 5}, "Max_Tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"stream": "true"}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"Include_Usage": False}}, "Include_Usage"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"Previous_Response_Id": "resp_1"}, "Previous_Response_Id"),
    ],
)
def test_a_field_that_could_mean_something_else_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(MalformedMessage, match=f"^{named}: "):
        _bounded(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"no", b'{"a": '])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^body"):
        bound_request(body, CHAT, PRICE)


def test_only_text_counts_as_the_least_of_a_prompt() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000}}
    text = {"type": "text", "text": "x" * 80}
    request = _bounded(messages=[{"role": "system", "content": "y" * 80}, {"role": "user", "content": [image, text]}])
    assert request.input_tokens_least == 20

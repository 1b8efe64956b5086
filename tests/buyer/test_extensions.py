"""What a payment says back of the seller's extensions: all of it unchanged, and an id where payments may have one."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from buyer.fresh import fresh_authorization
from buyer.payment import payment_headers
from buyer.purchase import terms_from_wire
from contracts.headers import PAYMENT_SIGNATURE, decode_payment
from contracts.limits import HEADER_BYTES_MAX
from contracts.offers import requirements
from contracts.schemes.authorization import Authorization
from contracts.wire import PaymentPayload, ResourceInfo
from tests.buyer.parts import KEY, NOW_S, offer_of

OFFER = offer_of()


def authorization(number: int = 1) -> Authorization:
    return fresh_authorization(OFFER, KEY.address, number.to_bytes(32, "big"), NOW_S)


def echo(
    advertised: dict[str, Any], paid: Authorization | None = None, *, probed: str | None = None, url: str | None = None
) -> dict[str, Any] | None:
    resource = None if probed is None else ResourceInfo(url=probed)
    terms = terms_from_wire(requirements(OFFER), extensions=advertised, resource=resource)
    header = payment_headers(terms, paid or authorization(), bytes(65), url)[PAYMENT_SIGNATURE]
    payment = decode_payment(PAYMENT_SIGNATURE, header)
    assert isinstance(payment, PaymentPayload)
    return msgspec.to_builtins(payment.extensions)  # type: ignore[no-any-return]


def test_extensions_of_strangers_come_back_as_they_were() -> None:
    advertised = {
        "bazaar": {"info": {"input": {"type": "http", "method": "POST"}, "deep": [1, {"a": None}]}, "schema": {"x": 1}},
        "no info here": {"anything": True},
        "not even an object": "text",
    }
    expected = {**advertised, "bazaar": {"info": advertised["bazaar"]["info"]}}  # type: ignore[index]
    assert echo(advertised) == expected


def test_a_payment_has_an_id_of_its_own_where_the_seller_knows_payments_by_one() -> None:
    advertised = {"payment-identifier": {"info": {"required": False}, "schema": {}}}
    first, again, second = (echo(advertised, authorization(number)) for number in (1, 1, 2))
    assert first == again, "the same payment has the same id whenever it is presented"
    assert first is not None
    assert second is not None
    info = first["payment-identifier"]["info"]
    assert info["required"] is False
    assert re.fullmatch("[A-Za-z0-9_-]{16,128}", info["id"])
    assert info["id"] != second["payment-identifier"]["info"]["id"]
    assert echo({"bazaar": {"info": {}}}) == {"bazaar": {"info": {}}}, "nobody asked for an id"


def test_an_echo_that_would_fill_the_header_is_left_out_unless_an_id_is_required() -> None:
    bulky = {"bazaar": {"info": {"text": "x" * (HEADER_BYTES_MAX // 2)}}}
    assert echo(bulky) is None
    for required in (False, True):
        advertised = {**bulky, "payment-identifier": {"info": {"required": required}}}
        assert (echo(advertised) is not None) is required


def test_an_identifier_that_is_not_shaped_like_one_is_echoed_and_nothing_more() -> None:
    odd: Any
    for odd in ("text", {"info": "text"}, {"info": None}, []):
        assert echo({"payment-identifier": odd}) == {"payment-identifier": odd}


def test_what_one_route_advertised_is_no_echo_on_another() -> None:
    """A pool is probed at one route and spent on several; sellers compare an echo with what they say there."""
    advertised = {"bazaar": {"info": {"input": {}}}, "payment-identifier": {"info": {"required": False}}}
    probed = "http://seller.example/v1/chat/completions"
    same = echo(advertised, probed=probed, url="http://127.0.0.1:8402/v1/chat/completions?x=1")
    other = echo(advertised, probed=probed, url="http://seller.example/v1/embeddings")
    assert set(same or {}) == set(advertised)
    assert set(other or {}) == {"payment-identifier"}
    assert echo({"bazaar": {"info": {}}}, probed=probed, url="http://seller.example/v1/embeddings") is None
    assert echo({"bazaar": {"info": {}}}, probed="http://[broken", url="http://seller.example/x") is None

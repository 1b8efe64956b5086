"""Offers: two wire spellings of the same terms, and which echo means which offer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from contracts.address import address_text, parse_address
from contracts.errors import MalformedMessage, NoMatchingOffer, UsageError
from contracts.money import Asset
from contracts.networks import default_asset, parse_network
from contracts.offers import Offer, match_offer, offer_from_wire, requirements, requirements_v1
from contracts.wire import Requirements

DEVNET = parse_network("eip155:31337")
BASE_SEPOLIA = parse_network("base-sepolia")
TOKEN = Asset(parse_address("0x" + "ab" * 20), "Test Dollar", "1", 6, "TestDollar")
PAYEE = parse_address("0x209693Bc6afc0C5328bA36FaF03C514EF312287C")
OFFER = Offer("exact", DEVNET, TOKEN, 1000, PAYEE, 60)


def known_offer() -> Offer:
    usdc = default_asset(BASE_SEPOLIA)
    assert usdc is not None
    return Offer("exact", BASE_SEPOLIA, usdc, 1000, PAYEE, 60)


def changed(offer: Offer, **members: Any) -> Requirements:
    return msgspec.structs.replace(requirements(offer), **members)


def test_an_offer_reads_back_from_its_v2_spelling() -> None:
    assert offer_from_wire(requirements(OFFER)) == OFFER
    with_extra = replace(OFFER, extra={"minDeposit": "5"})
    assert offer_from_wire(requirements(with_extra)) == with_extra


def test_an_offer_reads_back_from_its_v1_spelling() -> None:
    spelling = requirements_v1(known_offer(), "https://a.example/x", "an answer", "application/json")
    assert spelling is not None
    assert spelling.network == "base-sepolia"
    assert offer_from_wire(spelling) == known_offer()


def test_v1_has_no_spelling_for_a_network_without_a_name_nor_for_another_method() -> None:
    assert requirements_v1(OFFER, "https://a.example/x", "", "") is None
    assert requirements_v1(replace(known_offer(), method="permit2"), "https://a.example/x", "", "") is None


def test_a_known_tokens_domain_comes_from_our_table_whatever_the_seller_says() -> None:
    lying = changed(known_offer(), extra={"name": "Wrapped Nothing", "version": "9"})
    assert offer_from_wire(lying) == known_offer()
    assert offer_from_wire(changed(known_offer(), extra=None)) == known_offer()


def test_an_unknown_token_takes_its_domain_from_the_402_and_its_decimals_from_the_caller() -> None:
    offer = offer_from_wire(requirements(OFFER), decimals=18)
    assert (offer.asset.name, offer.asset.version, offer.asset.decimals) == ("Test Dollar", "1", 18)
    assert offer.domain.verifying_contract == TOKEN.address


def test_an_unknown_tokens_label_is_short_and_printable() -> None:
    hostile = changed(OFFER, extra={"name": "\x1b[2J USD\u202e coin of a very long name", "version": "1"})
    assert offer_from_wire(hostile).asset.symbol == "2JUSDcoinofa"
    assert offer_from_wire(changed(OFFER, extra={"name": "₮", "version": "1"})).asset.symbol == "TOKEN"


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"extra": None}, "offer.extra: the token is not a known one"),
        ({"extra": {"name": "USDC"}}, "offer.extra: the token is not a known one"),
        ({"extra": {"name": "USDC", "version": 2}}, "offer.extra: the token is not a known one"),
        ({"extra": {"name": "a", "version": "1", "assetTransferMethod": 1}}, "offer.extra.assetTransferMethod"),
        ({"amount": "-1"}, "offer.amount"),
        ({"amount": "1.0"}, "offer.amount"),
        ({"asset": "USD"}, "offer.asset"),
        ({"pay_to": "merchant"}, "offer.payTo"),
        ({"max_timeout_seconds": 0}, "offer.maxTimeoutSeconds"),
        ({"max_timeout_seconds": -1}, "offer.maxTimeoutSeconds"),
        ({"max_timeout_seconds": 10**12}, "offer.maxTimeoutSeconds"),
    ],
)
def test_an_offer_that_does_not_parse_names_the_field(members: dict[str, Any], named: str) -> None:
    with pytest.raises(MalformedMessage) as refused:
        offer_from_wire(changed(OFFER, **members), field="offer")
    assert refused.value.message.startswith(named)


def test_another_chain_family_is_named() -> None:
    with pytest.raises(UsageError, match=r"^offer\.network: "):
        offer_from_wire(changed(OFFER, network="solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"), field="offer")


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"asset": address_text(TOKEN.address).lower()},
        {"asset": "0x" + TOKEN.address.hex().upper()},
        {"pay_to": address_text(PAYEE).lower()},
        {"max_timeout_seconds": 61},
        {"extra": {"name": "Test Dollar", "version": "1", "more": {"from": "the client"}}},
    ],
)
def test_an_echo_with_equal_values_matches_and_our_own_terms_are_used(members: dict[str, Any]) -> None:
    dear = replace(OFFER, amount_atomic=2000)
    assert match_offer(changed(OFFER, **members), [dear, OFFER]) is OFFER


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"amount": "999"}, "amount"),
        ({"amount": "1001"}, "amount"),
        ({"amount": "01000"}, "accepted.amount"),
        ({"pay_to": "0x" + "11" * 20}, "payTo"),
        ({"asset": "0x" + "11" * 20}, "scheme, network and asset"),
        ({"network": "eip155:1"}, "scheme, network and asset"),
        ({"network": "base"}, "scheme, network and asset"),
        ({"scheme": "upto"}, "scheme, network and asset"),
        ({"scheme": "Exact"}, "scheme, network and asset"),
        ({"extra": {"name": "Test Dollar", "version": "2"}}, "extra.name or extra.version"),
        ({"extra": {"name": "test dollar", "version": "1"}}, "extra.name or extra.version"),
        ({"extra": None}, "accepted.extra"),
        (
            {"extra": {"name": "Test Dollar", "version": "1", "assetTransferMethod": "permit2"}},
            "extra.assetTransferMethod",
        ),
        ({"network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"}, "accepted.network"),
    ],
)
def test_an_echo_that_differs_matches_nothing_and_the_field_is_named(members: dict[str, Any], named: str) -> None:
    with pytest.raises(NoMatchingOffer) as refused:
        match_offer(changed(OFFER, **members), [OFFER])
    assert refused.value.message.startswith("accepted")
    assert named in refused.value.message


def test_the_field_named_is_that_of_the_nearest_offer() -> None:
    elsewhere = replace(OFFER, network=BASE_SEPOLIA)
    with pytest.raises(NoMatchingOffer, match="payTo does not equal ours"):
        match_offer(changed(OFFER, pay_to="0x" + "11" * 20), [OFFER, elsewhere])


def test_nothing_matches_when_nothing_is_offered() -> None:
    with pytest.raises(NoMatchingOffer):
        match_offer(requirements(OFFER), [])


def test_an_offer_made_from_another_is_matched_by_its_own_price_and_token_only() -> None:
    dearer = replace(OFFER, amount_atomic=2000)
    renamed = replace(OFFER, asset=replace(TOKEN, name="Other Dollar"))
    for offer in (dearer, renamed):
        assert match_offer(requirements(offer), [OFFER, offer]) is offer
        with pytest.raises(NoMatchingOffer):
            match_offer(requirements(OFFER), [offer])
    assert renamed.domain.name == "Other Dollar"


def test_what_a_caller_does_to_a_spelling_changes_no_offer() -> None:
    spelling = requirements(OFFER)
    spelling.amount = "1"
    assert spelling.extra is not None
    spelling.extra["name"] = "Wrapped Nothing"
    with pytest.raises(NoMatchingOffer):
        match_offer(spelling, [OFFER])

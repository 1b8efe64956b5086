"""Which offer is paid: the policy against honest and hostile 402s."""

from __future__ import annotations

import base64
import gzip
import tracemalloc
from dataclasses import replace

import msgspec
import pytest

from buyer.asked import Option, PaymentAsked, read_payment_asked
from buyer.http import read_capped
from buyer.limits import SELLER_TIMEOUT_S_MAX
from buyer.policy import Holdings, SpendPolicy, choose
from contracts.address import parse_address
from contracts.errors import (
    FareboxError,
    InsufficientBalance,
    MalformedMessage,
    NotForSale,
    PriceAboveCap,
    TermsNotAllowed,
    UsageError,
)
from contracts.headers import PAYMENT_REQUIRED, encode_header
from contracts.limits import BODY_402_BYTES_MAX, HEADER_BYTES_MAX, OFFERS_MAX
from contracts.money import Asset
from contracts.networks import ASSETS
from contracts.offers import PERMIT2, Offer, requirements, requirements_v1
from contracts.wire import PaymentRequired, PaymentRequiredV1, encode_json
from tests.buyer.parts import asks, offer_of, terms_of

URL = "https://seller.example/v1/chat/completions"
BASE_USDC = ASSETS[8453][0]
CHEAP_CAP = SpendPolicy(max_price="0.01", max_validity_s=SELLER_TIMEOUT_S_MAX)


def on_base(price_atomic: int = 1000, *, max_timeout_s: int = 60) -> Offer:
    return offer_of(price_atomic, asset=BASE_USDC, chain_id=8453, max_timeout_s=max_timeout_s)


def read(*offers: Offer) -> PaymentAsked:
    incoming = asks(*offers)
    return read_payment_asked(incoming.headers, incoming.body)


def holdings(*offers: Offer, atomic: int = 10**9) -> Holdings:
    return {(offer.network.chain_id, offer.asset.address): atomic for offer in offers}


def test_the_cheapest_acceptable_option_is_chosen_wherever_it_stands() -> None:
    choice = choose(read(on_base(3000), on_base(1000), on_base(2000)), CHEAP_CAP, URL)
    assert choice.option.index == 1
    assert [rejection.option.index for rejection in choice.rejected] == [0, 2]
    assert all("0.001 USDC was chosen" in rejection.error.message for rejection in choice.rejected)


def of_tier(tier: str, price_atomic: int) -> Offer:
    return replace(on_base(price_atomic), extra={"tier": tier})


SERVICE_CLASSES = (of_tier("normal", 1000), of_tier("urgent", 2000), of_tier("background", 500))


def test_who_names_no_tier_pays_the_normal_one_though_background_work_is_cheaper() -> None:
    choice = choose(read(*SERVICE_CLASSES), CHEAP_CAP, URL)
    assert choice.terms.offer.amount_atomic == 1000
    assert "--tier background" in str(choice.rejected[-1].error.advice)


@pytest.mark.parametrize(("tier", "price_atomic"), [("urgent", 2000), ("normal", 1000), ("background", 500)])
def test_the_tier_that_is_named_is_the_one_that_is_paid(tier: str, price_atomic: int) -> None:
    policy = replace(CHEAP_CAP, tier=tier)
    assert choose(read(*SERVICE_CLASSES), policy, URL).terms.offer.amount_atomic == price_atomic


def test_no_other_tier_stands_in_for_one_that_is_not_offered() -> None:
    with pytest.raises(TermsNotAllowed, match="urgent is wanted"):
        choose(read(SERVICE_CLASSES[0], on_base(100)), replace(CHEAP_CAP, tier="urgent"), URL)
    with pytest.raises(UsageError, match="tier"):
        SpendPolicy(max_price="1", tier="gold")


def test_prices_are_compared_in_tokens_not_in_atomic_units() -> None:
    fine = Asset(parse_address("0x" + "55" * 20), "Fine USD", "1", 18, "FineUSD")
    cheap, dear = offer_of(2 * 10**15, asset=fine), offer_of(5000)
    options = [Option(index, terms_of(offer)) for index, offer in enumerate((dear, cheap))]
    # 2 * 10**15 of 18 decimals is 0.002: less than 0.005, though the number is larger.
    assert choose(PaymentAsked(options, 2, None, ""), CHEAP_CAP, URL).option.index == 1


def test_an_option_whose_asset_the_wallet_does_not_hold_is_passed_over() -> None:
    cheap, dear = on_base(1000), offer_of(2000)
    choice = choose(read(cheap, dear), CHEAP_CAP, URL, {**holdings(cheap, atomic=999), **holdings(dear)})
    assert choice.option.index == 1
    assert isinstance(choice.rejected[0].error, InsufficientBalance)


def test_an_option_on_a_chain_that_cannot_be_asked_is_passed_over() -> None:
    cheap, dear = on_base(1000), offer_of(2000)
    choice = choose(read(cheap, dear), CHEAP_CAP, URL, holdings(dear))
    assert choice.option.index == 1
    assert "--rpc" in choice.rejected[0].error.advice


UNKNOWN_TOKEN = Asset(parse_address("0x" + "66" * 20), "USDC", "2", 6, "USDC")


@pytest.mark.parametrize(
    ("offer", "policy", "error", "word"),
    [
        (on_base(10_001), {}, PriceAboveCap, "0.010001 USDC"),
        (offer_of(1, asset=UNKNOWN_TOKEN, chain_id=8453), {}, TermsNotAllowed, "not an allowed token"),
        (on_base(), {"allowed_networks": ["base-sepolia"]}, TermsNotAllowed, "not an allowed network"),
        (on_base(), {"allowed_hosts": ["seller.example.evil.example"]}, TermsNotAllowed, "not an allowed host"),
        (on_base(), {"allowed_assets": ["0x" + "66" * 20]}, TermsNotAllowed, "not an allowed token"),
        (on_base(max_timeout_s=365 * 86_400), {}, TermsNotAllowed, "validity"),
        (on_base(0), {}, TermsNotAllowed, "zero"),
    ],
)
def test_a_hostile_offer_is_refused_by_name(
    offer: Offer, policy: dict[str, object], error: type[FareboxError], word: str
) -> None:
    limits = {"max_price": "0.01", "max_validity_s": SELLER_TIMEOUT_S_MAX, **policy}
    with pytest.raises(error, match=word):
        choose(read(offer), SpendPolicy(**limits), URL)  # type: ignore[arg-type]


def test_an_unknown_token_is_paid_only_when_it_is_named() -> None:
    offer = offer_of(1000, asset=UNKNOWN_TOKEN, chain_id=8453)
    policy = SpendPolicy(max_price="0.01", allowed_assets=[UNKNOWN_TOKEN.address_text])
    assert choose(read(offer), policy, URL).terms.offer.asset.address == UNKNOWN_TOKEN.address


@pytest.mark.parametrize(
    "member",
    [
        {"scheme": "upto"},
        {"scheme": "batch-settlement"},
        {"extra": {"name": "USD Coin", "version": "2", "assetTransferMethod": "erc7710"}},
    ],
)
def test_a_scheme_we_cannot_bound_is_refused(member: dict[str, object]) -> None:
    stated = msgspec.structs.replace(requirements(on_base()), **member)
    required = encode_header(PaymentRequired(x402_version=2, accepts=[stated]))
    with pytest.raises(TermsNotAllowed, match="not supported"):
        choose(read_payment_asked({PAYMENT_REQUIRED: required}, b""), CHEAP_CAP, URL)


def metered(price_atomic: int = 1000) -> Offer:
    facilitator = {"assetTransferMethod": PERMIT2, "facilitatorAddress": "0x" + "99" * 20}
    return replace(on_base(price_atomic), scheme="upto", method=PERMIT2, extra=facilitator)


def test_nobody_is_charged_by_usage_who_did_not_say_so() -> None:
    with pytest.raises(TermsNotAllowed, match="charges by usage") as refused:
        choose(read(metered()), CHEAP_CAP, URL)
    assert "--scheme upto" in refused.value.advice
    by_usage = replace(CHEAP_CAP, schemes=("upto",))
    assert choose(read(metered()), by_usage, URL).terms.offer.scheme == "upto"
    assert choose(read(metered(), on_base()), CHEAP_CAP, URL).terms.offer.scheme == "exact"


def test_the_price_cap_bounds_the_ceiling_of_what_is_charged_by_usage() -> None:
    with pytest.raises(PriceAboveCap):
        choose(read(metered(10**6)), replace(CHEAP_CAP, schemes=("upto",)), URL)


def test_an_option_that_needs_an_approval_first_comes_after_those_that_can_be_paid_now() -> None:
    over_permit2 = replace(on_base(900), method=PERMIT2, extra={"assetTransferMethod": PERMIT2})
    asked, token = read(over_permit2, on_base(1000)), (8453, on_base().asset.address)
    policy, held = SpendPolicy(max_price="1"), {token: 10**6}
    assert choose(asked, policy, URL, held, {token: 0}).option.index == 1
    assert choose(asked, policy, URL, held, {token: 900}).option.index == 0


def test_the_nearest_refusal_is_raised_and_tells_of_every_option() -> None:
    foreign = offer_of(1, asset=UNKNOWN_TOKEN, chain_id=8453)
    with pytest.raises(PriceAboveCap, match=r"option 0: asset .*option 1: the price is 0\.02 USDC"):
        choose(read(foreign, on_base(20_000)), CHEAP_CAP, URL)


def test_one_broken_offer_does_not_hide_the_others() -> None:
    good = msgspec.to_builtins(requirements(on_base()))
    document = {"x402Version": 2, "accepts": [{"scheme": "exact"}, {**good, "network": "solana:x"}, good]}
    header = _base64(document)
    asked = read_payment_asked({PAYMENT_REQUIRED: header}, b"")
    choice = choose(asked, CHEAP_CAP, URL)
    assert choice.option.index == 2
    assert [type(rejection.error) for rejection in choice.rejected] == [MalformedMessage, UsageError]


def test_the_header_wins_over_a_body_that_asks_for_something_else() -> None:
    v1 = requirements_v1(on_base(10**9), "https://seller.example/", "d", "text/plain")
    assert v1 is not None
    body = encode_json(PaymentRequiredV1(x402_version=1, accepts=[v1]))
    incoming = asks(on_base(1000))
    asked = read_payment_asked(incoming.headers, body)
    assert (asked.x402_version, choose(asked, CHEAP_CAP, URL).terms.offer.amount_atomic) == (2, 1000)


def test_a_version_1_body_is_paid_only_where_the_policy_says_so_and_held_to_the_same_cap() -> None:
    def body(price_atomic: int) -> bytes:
        offer = requirements_v1(on_base(price_atomic), "https://seller.example/", "d", "text/plain")
        assert offer is not None
        return encode_json(PaymentRequiredV1(x402_version=1, accepts=[offer]))

    with pytest.raises(TermsNotAllowed, match="version 1"):
        choose(read_payment_asked({}, body(1000)), CHEAP_CAP, URL)
    with_v1 = replace(CHEAP_CAP, allow_v1=True)
    choice = choose(read_payment_asked({}, body(1000)), with_v1, URL)
    assert choice.terms.x402_version == 1
    assert choice.terms.accepted.network == "base"
    with pytest.raises(PriceAboveCap):
        choose(read_payment_asked({}, body(10**6)), with_v1, URL)


@pytest.mark.parametrize(
    ("headers", "body", "error"),
    [
        ({PAYMENT_REQUIRED: "A" * (HEADER_BYTES_MAX + 4)}, b"", MalformedMessage),
        ({PAYMENT_REQUIRED: "not base64!"}, b"", MalformedMessage),
        ({}, b'{"accepts": [' + b"[" * 10_000, MalformedMessage),
        ({}, b'{"x402Version": 1, "accepts": []}', MalformedMessage),
        ({}, b'{"x402Version": 7, "accepts": [{}]}', MalformedMessage),
        ({}, b'{"x402Version": 1, "accepts": [' + b"{}," * OFFERS_MAX + b"{}]}", MalformedMessage),
        ({}, b" " * (BODY_402_BYTES_MAX + 1), MalformedMessage),
        ({}, b"<html>please pay</html>", NotForSale),
        ({}, b"", NotForSale),
    ],
)
def test_a_bomb_or_nonsense_is_a_named_error(headers: dict[str, str], body: bytes, error: type[FareboxError]) -> None:
    with pytest.raises(error):
        read_payment_asked(headers, body)


def test_a_body_is_never_unpacked_beyond_its_cap() -> None:
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    assert len(bomb) < BODY_402_BYTES_MAX
    tracemalloc.start()
    assert read_capped([bomb], "gzip", BODY_402_BYTES_MAX) is None
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1024 * 1024
    assert read_capped([gzip.compress(b"small")], "gzip", BODY_402_BYTES_MAX) == b"small"
    assert read_capped([b"x"], "br", BODY_402_BYTES_MAX) is None


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"max_price": "0.01", "max_price_atomic": 10},
        {"max_price_atomic": 0},
        {"max_price_atomic": 0.5},
        {"max_price_atomic": True},
        {"max_price": "0.01", "allowed_hosts": "seller.example"},
        {"max_price": "0.01", "allowed_networks": ["nowhere"]},
        {"max_price": "0.01", "allowed_assets": ["0x12"]},
        {"max_price": "0.01", "max_validity_s": 0},
        {"max_price": "0.01", "schemes": ["exact", "deferred"]},
        {"max_price": "0.01", "tier": "first"},
    ],
)
def test_a_policy_without_a_price_cap_or_with_nonsense_is_refused(policy: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SpendPolicy(**policy)  # type: ignore[arg-type]


def test_a_dollar_price_is_no_cap_for_a_token_that_is_no_dollar() -> None:
    coin = Asset(parse_address("0x" + "77" * 20), "Wrapped Coin", "1", 6, "WrappedCoin")
    asked = read(offer_of(1, asset=coin))
    with pytest.raises(UsageError, match="not a dollar"):
        choose(asked, SpendPolicy(max_price="$0.01"), URL)


def _base64(document: object) -> str:
    return base64.b64encode(msgspec.json.encode(document)).decode()

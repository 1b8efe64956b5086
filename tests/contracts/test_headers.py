"""Header codecs: one alphabet, one size, one version each."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import MalformedMessage
from contracts.headers import (
    PAYMENT_REQUIRED,
    PAYMENT_SIGNATURE,
    X_PAYMENT,
    decode_header,
    decode_payment,
    decode_payment_required,
    decode_settlement_response,
    encode_header,
)
from contracts.limits import HEADER_BYTES_MAX
from contracts.wire import (
    PaymentPayload,
    PaymentPayloadV1,
    PaymentRequired,
    Requirements,
    SettlementResponse,
    encode_json,
)

REQUIREMENTS: dict[str, Any] = {
    "scheme": "exact",
    "network": "eip155:84532",
    "amount": "10000",
    "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
    "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
    "maxTimeoutSeconds": 60,
}
PAYMENT = {"x402Version": 2, "accepted": REQUIREMENTS, "payload": {"signature": "0x"}}
PAYMENT_V1 = {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": {"signature": "0x"}}


def header(document: object, **spacing: Any) -> str:
    return base64.b64encode(json.dumps(document, **spacing).encode()).decode()


@pytest.mark.parametrize("spacing", [{}, {"separators": (",", ":")}, {"indent": 4}, {"sort_keys": True}])
def test_spacing_and_order_of_the_json_decide_nothing(spacing: dict[str, Any]) -> None:
    assert json.loads(encode_json(decode_payment(PAYMENT_SIGNATURE, header(PAYMENT, **spacing)))) == PAYMENT


def test_text_and_bytes_of_a_header_read_alike_and_its_name_has_no_letter_case() -> None:
    value = header(PAYMENT)
    assert decode_payment("payment-signature", value.encode()) == decode_payment(PAYMENT_SIGNATURE, value)
    assert isinstance(decode_payment("x-payment", header(PAYMENT_V1)), PaymentPayloadV1)


@pytest.mark.parametrize(
    ("name", "document", "wanted"),
    [
        (PAYMENT_SIGNATURE, {**PAYMENT, "x402Version": 1}, "x402Version must be 2, got 1"),
        (PAYMENT_SIGNATURE, {**PAYMENT, "x402Version": 3}, "x402Version must be 2, got 3"),
        (X_PAYMENT, {**PAYMENT_V1, "x402Version": 2}, "x402Version must be 1, got 2"),
        (PAYMENT_SIGNATURE, PAYMENT_V1, "missing required field `accepted`"),
        (X_PAYMENT, PAYMENT, "missing required field `scheme`"),
    ],
)
def test_a_payment_of_another_version_than_its_header_is_refused(
    name: str, document: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(MalformedMessage, match=wanted):
        decode_payment(name, header(document))


def test_another_header_is_no_payment() -> None:
    with pytest.raises(MalformedMessage, match=r"^Authorization: not a payment header"):
        decode_payment("Authorization", header(PAYMENT))


def test_offers_of_another_version_are_refused() -> None:
    value = header({"x402Version": 2, "accepts": [REQUIREMENTS]})
    assert decode_payment_required(value).accepts[0].amount == "10000"
    with pytest.raises(MalformedMessage, match="x402Version must be 2, got 1"):
        decode_payment_required(header({"x402Version": 1, "accepts": [REQUIREMENTS]}))


def test_a_receipt_reads_with_the_spaces_the_official_sdk_writes() -> None:
    receipt = {"success": True, "transaction": "0x12", "network": "eip155:84532", "payer": "0xab", "later": 1}
    assert decode_settlement_response(header(receipt)).transaction == "0x12"


PADDED = header(PAYMENT)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "not base64!",
        PADDED + "\n",
        " " + PADDED,
        PADDED[:40] + "\r\n" + PADDED[40:],
        PADDED + "=",
        PADDED.rstrip("=")[:-1],
        "e30",
        "e30=e30=",
        base64.urlsafe_b64encode(b'{"a":"\xc3\xbf\xc3\xbf\xc3\xbe"}').decode().replace("+", "-").replace("/", "_"),
        "é" * 8,
        "\uff41\uff42\uff43\uff44",
        "%7B%7D",
        json.dumps(PAYMENT),
    ],
)
def test_what_is_not_standard_base64_of_a_message_is_refused(value: str) -> None:
    with pytest.raises(MalformedMessage, match=r"^PAYMENT-SIGNATURE: "):
        decode_payment(PAYMENT_SIGNATURE, value)


def test_the_url_safe_alphabet_is_refused_and_the_standard_one_is_not() -> None:
    document = {**PAYMENT, "extensions": {"text": "ÿþ~~??>>"}}
    data = json.dumps(document, ensure_ascii=False).encode()
    standard, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    assert standard != url_safe
    assert decode_payment(PAYMENT_SIGNATURE, standard).x402_version == 2
    with pytest.raises(MalformedMessage, match="not standard base64"):
        decode_payment(PAYMENT_SIGNATURE, url_safe)


def test_a_header_over_the_cap_is_refused_before_it_is_decoded() -> None:
    def sized(size: int) -> str:
        padding = "x" * ((size - len(header({**PAYMENT, "x": ""}))) * 3 // 4)
        return header({**PAYMENT, "x": padding})

    assert len(sized(HEADER_BYTES_MAX)) <= HEADER_BYTES_MAX
    assert decode_payment(PAYMENT_SIGNATURE, sized(HEADER_BYTES_MAX - 8)).x402_version == 2
    with pytest.raises(MalformedMessage, match=f"at most {HEADER_BYTES_MAX} are read"):
        decode_payment(PAYMENT_SIGNATURE, sized(HEADER_BYTES_MAX + 8))


def test_a_written_header_is_one_line_of_ascii_without_spaces() -> None:
    required = PaymentRequired(
        x402_version=2,
        error="ключ\r\nSet-Cookie: a=b",
        accepts=[
            Requirements(scheme="exact", network="eip155:1", amount="1", asset="0x", pay_to="0x", max_timeout_seconds=1)
        ],
    )
    value = encode_header(required)
    assert value.isascii()
    assert not set(value) & set(" \r\n:")
    assert decode_header(value, PaymentRequired, PAYMENT_REQUIRED) == required


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    success=st.booleans(),
    transaction=st.text(max_size=70),
    network=st.none() | st.text(max_size=20),
    extra=st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
def test_any_receipt_reads_back_as_it_was_written(
    success: bool, transaction: str, network: str | None, extra: dict[str, Any] | None
) -> None:
    receipt = SettlementResponse(success=success, transaction=transaction, network=network, extra=extra)
    assert decode_settlement_response(encode_header(receipt)) == receipt


@given(value=st.text(alphabet=st.characters(max_codepoint=0x2FF), max_size=100))
def test_no_header_value_does_anything_but_decode_or_be_refused(value: str) -> None:
    with pytest.raises(MalformedMessage):
        decode_header(value, PaymentPayload, PAYMENT_SIGNATURE)

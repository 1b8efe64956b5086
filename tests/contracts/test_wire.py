"""x402 messages and their fields: what decodes, what is refused and how the refusal reads."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.address import address_text, parse_address
from contracts.errors import MalformedMessage
from contracts.fields import wire_address, wire_bytes32, wire_uint256
from contracts.wire import (
    FacilitatorRequest,
    PaymentPayload,
    PaymentPayloadV1,
    PaymentRequired,
    PaymentRequiredV1,
    Requirements,
    SettlementResponse,
    SupportedResponse,
    VerifyResponse,
    decode_json,
    encode_json,
)

# The examples of the x402 specification v2, section "Types", and v1, section 5.
REQUIREMENTS = {
    "scheme": "exact",
    "network": "eip155:84532",
    "amount": "10000",
    "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
    "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
    "maxTimeoutSeconds": 60,
    "extra": {"name": "USDC", "version": "2"},
}
AUTHORIZATION = {
    "from": "0x857b06519E91e3A54538791bDbb0E22373e36b66",
    "to": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
    "value": "10000",
    "validAfter": "1740672089",
    "validBefore": "1740672154",
    "nonce": "0xf3746613c2d920b5fdabc0856f2aeb2d4f88ee6037b8cc5d04a71a4462f13480",
}
PAYLOAD = {"signature": "0x" + "2d" * 65, "authorization": AUTHORIZATION}
EXAMPLES: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
    (Requirements, REQUIREMENTS),
    (
        PaymentRequired,
        {
            "x402Version": 2,
            "error": "PAYMENT-SIGNATURE header is required",
            "resource": {"url": "https://api.example.com/data", "description": "Data", "mimeType": "application/json"},
            "accepts": [REQUIREMENTS],
            "extensions": {},
        },
    ),
    (
        PaymentPayload,
        {
            "x402Version": 2,
            "accepted": REQUIREMENTS,
            "payload": PAYLOAD,
            "resource": {"url": "https://api.example.com/data"},
            "extensions": {"bazaar": {"info": {"input": [1, None, True]}}},
        },
    ),
    (
        PaymentRequiredV1,
        {
            "x402Version": 1,
            "error": "X-PAYMENT header is required",
            "accepts": [
                {
                    "scheme": "exact",
                    "network": "base-sepolia",
                    "maxAmountRequired": "10000",
                    "resource": "https://api.example.com/data",
                    "description": "Data",
                    "payTo": REQUIREMENTS["payTo"],
                    "maxTimeoutSeconds": 60,
                    "asset": REQUIREMENTS["asset"],
                    "mimeType": "application/json",
                    "outputSchema": {"type": "object"},
                    "extra": {"name": "USDC", "version": "2"},
                }
            ],
        },
    ),
    (PaymentPayloadV1, {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": PAYLOAD}),
    (
        SettlementResponse,
        {
            "success": True,
            "transaction": "0x" + "12" * 32,
            "network": "eip155:84532",
            "payer": AUTHORIZATION["from"],
            "amount": "10000",
        },
    ),
    (
        SettlementResponse,
        {"success": False, "transaction": "", "network": "eip155:84532", "errorReason": "insufficient_funds"},
    ),
    (VerifyResponse, {"isValid": False, "invalidReason": "insufficient_funds", "payer": AUTHORIZATION["from"]}),
    (
        SupportedResponse,
        {
            "kinds": [{"x402Version": 2, "scheme": "exact", "network": "eip155:*", "extra": {"a": 1}}],
            "extensions": [],
            "signers": {"eip155:*": [AUTHORIZATION["from"]]},
        },
    ),
    (SupportedResponse, {"kinds": [{"x402Version": 1, "scheme": "exact", "network": "base"}]}),
    (
        FacilitatorRequest,
        {
            "x402Version": 2,
            "paymentPayload": {"x402Version": 2, "accepted": REQUIREMENTS, "payload": PAYLOAD},
            "paymentRequirements": REQUIREMENTS,
        },
    ),
]


def _refused(kind: type[msgspec.Struct], document: dict[str, Any]) -> str:
    with pytest.raises(MalformedMessage) as refused:
        decode_json(json.dumps(document).encode(), kind, "PAYMENT-SIGNATURE")
    return refused.value.message


@pytest.mark.parametrize(("kind", "document"), EXAMPLES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_message_of_the_specification_survives_a_round_trip(
    kind: type[msgspec.Struct], document: dict[str, Any]
) -> None:
    message = decode_json(json.dumps(document).encode(), kind, "message")
    assert json.loads(encode_json(message)) == document


@pytest.mark.parametrize(("kind", "document"), EXAMPLES, ids=lambda value: getattr(value, "__name__", ""))
def test_unknown_members_are_ignored(kind: type[msgspec.Struct], document: dict[str, Any]) -> None:
    text = json.dumps({**document, "later": {"deep": [1, 2.5, None]}, "": 1})
    assert decode_json(text.encode(), kind, "message") == decode_json(json.dumps(document).encode(), kind, "message")


def test_null_means_the_same_as_absence() -> None:
    nulls = {**REQUIREMENTS, "extra": None}
    absent = {name: value for name, value in REQUIREMENTS.items() if name != "extra"}
    with_null = decode_json(json.dumps(nulls).encode(), Requirements, "message")
    assert with_null == decode_json(json.dumps(absent).encode(), Requirements, "message")
    assert "extra" not in json.loads(encode_json(with_null))


def test_a_failed_settlement_says_its_empty_transaction() -> None:
    assert json.loads(encode_json(SettlementResponse(success=False)))["transaction"] == ""


@pytest.mark.parametrize("missing", ["scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds"])
def test_a_missing_member_is_named(missing: str) -> None:
    document = {name: value for name, value in REQUIREMENTS.items() if name != missing}
    assert _refused(Requirements, document).startswith(f"PAYMENT-SIGNATURE: Object missing required field `{missing}`")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("amount", 10000),
        ("amount", 1e4),
        ("amount", None),
        ("maxTimeoutSeconds", "60"),
        ("maxTimeoutSeconds", 60.5),
        ("maxTimeoutSeconds", True),
        ("payTo", ["0x"]),
        ("scheme", {}),
        ("extra", "USDC"),
        ("extra", []),
    ],
)
def test_a_member_of_another_type_is_named_and_never_converted(member: str, value: object) -> None:
    assert f"`$.accepted.{member}`" in _refused(
        PaymentPayload, {"x402Version": 2, "accepted": {**REQUIREMENTS, member: value}, "payload": PAYLOAD}
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"scheme":',
        b"\xff\xfe",
        b'{"scheme": "\xff"}',
        b'{"scheme": "\\ud800"}',
        b'{"scheme": NaN}',
        b"{'scheme': 'exact'}",
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b'{"a":' * 200_000,
        b"[" * 200_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_json_object_is_refused_without_a_traceback(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^X-PAYMENT: ") as refused:
        decode_json(data, Requirements, "X-PAYMENT")
    assert len(refused.value.message) < 300


@given(data=st.binary(max_size=200))
def test_no_bytes_do_anything_but_decode_or_be_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_json(data, PaymentPayload, "PAYMENT-SIGNATURE")


@given(value=st.integers(0, 2**256 - 1))
def test_a_uint256_reads_back_from_its_decimal_text(value: int) -> None:
    assert wire_uint256(str(value), "value") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1\n",
        "+1",
        "-1",
        "-0",
        "00",
        "01",
        "1_000",
        "1,000",
        "1.0",
        "1e3",
        "0x1",
        "NaN",
        "\u0661\u0662",
        "\uff11",
        "²",
        str(2**256),
        "9" * 78,
        "1" * 79,
        "1" * 100_000,
        1000,
        1000.0,
        True,
        None,
    ],
)
def test_other_spellings_of_a_number_are_refused(text: object) -> None:
    with pytest.raises(MalformedMessage, match=r"^payload\.authorization\.value: expected a decimal string") as refused:
        wire_uint256(text, "payload.authorization.value")
    assert len(refused.value.message) < 200


@given(address=st.binary(min_size=20, max_size=20))
def test_an_address_reads_in_any_letter_case(address: bytes) -> None:
    text = address_text(address)
    for spelling in (text, text.lower(), "0x" + text[2:].upper()):
        assert wire_address(spelling, "to") == parse_address(spelling) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "0x" + "1" * 39,
        "0x" + "1" * 41,
        "0X" + "1" * 40,
        "1" * 40,
        "0x" + "g" * 40,
        "0x" + "\uff11" * 40,
        "0x" + "11" * 19 + "  ",
        "0x " + "11" * 19 + " ",
        "0x" + "11" * 20 + " ",
        "0x" + "11" * 20 + "\n",
        1,
        None,
    ],
)
def test_other_spellings_of_an_address_are_refused(text: object) -> None:
    with pytest.raises(MalformedMessage, match=r"^to: expected 0x and 40 hex digits"):
        wire_address(text, "to")
    with pytest.raises(MalformedMessage, match=r"^pay_to: expected 0x and 40 hex digits"):
        parse_address(text, "pay_to")


def test_a_mistyped_character_in_a_checksummed_address_is_caught() -> None:
    right = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"
    assert address_text(parse_address(right)) == right
    with pytest.raises(MalformedMessage, match=r"pay_to: the checksum of .* is wrong"):
        parse_address(right.replace("12287C", "12287c"), "pay_to")
    with pytest.raises(MalformedMessage, match="checksum"):
        parse_address(right.replace("0x20", "0x21"), "pay_to")


@pytest.mark.parametrize(
    "text",
    ["", "0x", "0x" + "1" * 63, "0x" + "1" * 65, "1" * 64, "0x" + "z" * 64, "0x" + "11 " * 21 + "1", b"1", None],
)
def test_other_spellings_of_a_nonce_are_refused(text: object) -> None:
    with pytest.raises(MalformedMessage, match=r"^nonce: expected 0x and 64 hex digits"):
        wire_bytes32(text, "nonce")
    assert wire_bytes32("0x" + "aB" * 32, "nonce") == b"\xab" * 32

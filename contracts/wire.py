"""x402 messages, version 2 and version 1, as they travel.

Structs mirror the JSON: camelCase on the wire, unknown members ignored, null and absence alike. Values stay text here;
`contracts.offers` and `contracts.schemes` turn them into integers and bytes. Sources: x402 specification v2 sections
"Types", v1 section 5; behaviour of the official SDKs where the specification is silent.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from contracts.errors import MalformedMessage
from contracts.nesting import check_nesting

__all__ = [
    "FacilitatorRequest",
    "PaymentPayload",
    "PaymentPayloadV1",
    "PaymentRequired",
    "PaymentRequiredV1",
    "Requirements",
    "RequirementsV1",
    "ResourceInfo",
    "SettlementResponse",
    "SupportedKind",
    "SupportedResponse",
    "VerifyResponse",
    "decode_json",
    "encode_json",
]


T = TypeVar("T")


class _Message(msgspec.Struct, rename="camel", omit_defaults=True):
    """Shared by all messages: camelCase, absent instead of null."""


class ResourceInfo(_Message, kw_only=True):
    """What is sold. `service_name` ≤ 32 printable ASCII, ≤ 5 `tags` of ≤ 32, `icon_url` ≤ 2048 (SDK limits)."""

    url: str
    description: str | None = None
    mime_type: str | None = None
    service_name: str | None = None
    tags: list[str] | None = None
    icon_url: str | None = None


class Requirements(_Message, kw_only=True):
    """One v2 offer in `accepts`, and its echo in a payment's `accepted`."""

    scheme: str
    network: str
    amount: str
    asset: str
    pay_to: str
    max_timeout_seconds: int
    extra: dict[str, Any] | None = None


class PaymentRequired(_Message, kw_only=True):
    """The v2 `PAYMENT-REQUIRED` header."""

    x402_version: int = msgspec.field(name="x402Version")
    error: str | None = None
    resource: ResourceInfo | None = None
    accepts: list[Requirements]
    extensions: dict[str, Any] | None = None


class PaymentPayload(_Message, kw_only=True):
    """The v2 `PAYMENT-SIGNATURE` header. `payload` stays raw until the scheme is known."""

    x402_version: int = msgspec.field(name="x402Version")
    accepted: Requirements
    payload: msgspec.Raw
    resource: ResourceInfo | None = None
    extensions: dict[str, Any] | None = None


class RequirementsV1(_Message, kw_only=True):
    """One v1 offer. `network` is a legacy name; `resource` is the URL."""

    scheme: str
    network: str
    max_amount_required: str
    resource: str
    pay_to: str
    max_timeout_seconds: int
    asset: str
    # The specification wants one; the official Python SDK leaves it out when a seller gave none.
    description: str | None = None
    mime_type: str | None = None
    output_schema: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None


class PaymentRequiredV1(_Message, kw_only=True):
    """The v1 402 body."""

    x402_version: int = msgspec.field(name="x402Version")
    error: str | None = None
    accepts: list[RequirementsV1]


class PaymentPayloadV1(_Message, kw_only=True):
    """The v1 `X-PAYMENT` header; it echoes only scheme and network."""

    x402_version: int = msgspec.field(name="x402Version")
    scheme: str
    network: str
    payload: msgspec.Raw


class SettlementResponse(_Message, kw_only=True):
    """The `PAYMENT-RESPONSE` (v2) or `X-PAYMENT-RESPONSE` (v1) header, and a facilitator's `/settle` answer.

    `transaction` is "" on failure and for a payment that is accepted but not yet on chain; then
    `extra.settlement` is "queued".
    """

    success: bool
    transaction: str = msgspec.field(default_factory=str)
    network: str | None = None
    payer: str | None = None
    amount: str | None = None
    error_reason: str | None = None
    error_message: str | None = None
    extensions: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None


class VerifyResponse(_Message, kw_only=True):
    """A facilitator's `/verify` answer."""

    is_valid: bool
    payer: str | None = None
    invalid_reason: str | None = None
    invalid_message: str | None = None


class SupportedKind(_Message, kw_only=True):
    """One (version, scheme, network) a facilitator serves; `network` may be a wildcard such as `eip155:*`."""

    x402_version: int = msgspec.field(name="x402Version")
    scheme: str
    network: str
    extra: dict[str, Any] | None = None


class SupportedResponse(_Message, kw_only=True):
    """A facilitator's `/supported` answer; v1 facilitators send only `kinds`."""

    kinds: list[SupportedKind]
    extensions: list[str] | None = None
    signers: dict[str, list[str]] | None = None


class FacilitatorRequest(_Message, kw_only=True):
    """What `/verify` and `/settle` take."""

    x402_version: int = msgspec.field(name="x402Version")
    payment_payload: PaymentPayload
    payment_requirements: Requirements


def encode_json(message: msgspec.Struct) -> bytes:
    """Return compact UTF-8 JSON with absent members left out."""
    return msgspec.json.encode(message)


def decode_json(data: bytes | msgspec.Raw, kind: type[T], field: str) -> T:
    """Return `data` as a message of `kind`. Raises `MalformedMessage` naming `field` and the first wrong member."""
    try:
        check_nesting(data)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"{field}: {error}") from None
    except RecursionError:
        raise MalformedMessage(f"{field}: nested too deeply") from None

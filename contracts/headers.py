"""Header codecs: base64(JSON), in one alphabet, below one size.

Sources: x402 specification v2, HTTP transport; v1, section 6.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
import pybase64

from contracts.errors import MalformedMessage
from contracts.limits import HEADER_BYTES_MAX
from contracts.wire import (
    PaymentPayload,
    PaymentPayloadV1,
    PaymentRequired,
    SettlementResponse,
    decode_json,
    encode_json,
)

__all__ = [
    "PAYMENT_REQUIRED",
    "PAYMENT_RESPONSE",
    "PAYMENT_SIGNATURE",
    "X_PAYMENT",
    "X_PAYMENT_RESPONSE",
    "decode_header",
    "decode_payment",
    "decode_payment_required",
    "decode_settlement_response",
    "encode_header",
]

PAYMENT_REQUIRED: Final = "PAYMENT-REQUIRED"
PAYMENT_SIGNATURE: Final = "PAYMENT-SIGNATURE"
PAYMENT_RESPONSE: Final = "PAYMENT-RESPONSE"
X_PAYMENT: Final = "X-PAYMENT"
X_PAYMENT_RESPONSE: Final = "X-PAYMENT-RESPONSE"

M = TypeVar("M", bound=msgspec.Struct)


def encode_header(message: msgspec.Struct) -> str:
    """Return `message` as base64 of compact JSON, standard alphabet with padding."""
    return pybase64.b64encode(encode_json(message)).decode("ascii")


def decode_header(value: str | bytes, kind: type[M], name: str) -> M:
    """Return the message of `kind` in header `name`.

    Raises `MalformedMessage` over the size cap, outside the standard base64 alphabet, for wrong padding, and for JSON
    that is not a `kind`.
    """
    if len(value) > HEADER_BYTES_MAX:
        raise MalformedMessage(f"{name}: {len(value)} bytes, at most {HEADER_BYTES_MAX} are read")
    try:
        data = pybase64.b64decode(value, validate=True)
    except ValueError:
        raise MalformedMessage(f"{name}: not standard base64 with padding") from None
    return decode_json(data, kind, name)


def decode_payment(name: str, value: str | bytes) -> PaymentPayload | PaymentPayloadV1:
    """Return the payment in a `PAYMENT-SIGNATURE` (v2) or `X-PAYMENT` (v1) header, whichever `name` says.

    Raises `MalformedMessage`; also when the version inside is not the header's.
    """
    payment: PaymentPayload | PaymentPayloadV1
    if name.upper() == PAYMENT_SIGNATURE:
        payment, version = decode_header(value, PaymentPayload, PAYMENT_SIGNATURE), 2
    elif name.upper() == X_PAYMENT:
        payment, version = decode_header(value, PaymentPayloadV1, X_PAYMENT), 1
    else:
        raise MalformedMessage(f"{name[:40]}: not a payment header")
    if payment.x402_version != version:
        raise MalformedMessage(f"{name}: x402Version must be {version}, got {payment.x402_version}")
    return payment


def decode_payment_required(value: str | bytes) -> PaymentRequired:
    """Return the offers in a v2 `PAYMENT-REQUIRED` header. Raises `MalformedMessage`."""
    required = decode_header(value, PaymentRequired, PAYMENT_REQUIRED)
    if required.x402_version != 2:
        raise MalformedMessage(f"{PAYMENT_REQUIRED}: x402Version must be 2, got {required.x402_version}")
    return required


def decode_settlement_response(value: str | bytes) -> SettlementResponse:
    """Return the receipt in `PAYMENT-RESPONSE` or `X-PAYMENT-RESPONSE`. Raises `MalformedMessage`."""
    return decode_header(value, SettlementResponse, PAYMENT_RESPONSE)

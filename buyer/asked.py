"""What a 402 asks for: every offer read on its own, so that one broken offer does not hide the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from buyer.purchase import Terms, terms_from_wire
from contracts.errors import FareboxError, MalformedMessage, NotForSale
from contracts.headers import PAYMENT_REQUIRED, decode_header
from contracts.limits import BODY_402_BYTES_MAX, OFFERS_MAX
from contracts.wire import Requirements, RequirementsV1, ResourceInfo, decode_json

__all__ = ["Option", "PaymentAsked", "read_payment_asked"]


@dataclass(frozen=True, slots=True)
class Option:
    """One offer of a 402: `terms`, or the `problem` for which it cannot be paid by us."""

    index: int
    terms: Terms | None
    problem: FareboxError | None = None


@dataclass(frozen=True, slots=True)
class PaymentAsked:
    """The offers of a 402. `error` is the seller's own text: shown, never obeyed."""

    options: list[Option]
    x402_version: int
    resource: ResourceInfo | None
    error: str


class _Asked(msgspec.Struct, rename="camel"):
    x402_version: int = msgspec.field(name="x402Version")
    accepts: list[msgspec.Raw]
    error: Any = None
    # Not `Raw | None`: msgspec takes that for null alone.
    resource: msgspec.Raw = msgspec.Raw(b"null")
    extensions: dict[str, Any] | None = None


def read_payment_asked(headers: Mapping[str, str], body: bytes) -> PaymentAsked:
    """Return what a 402 asks for. The `PAYMENT-REQUIRED` header wins over the body, which older sellers use.

    Raises `NotForSale` when neither holds x402 terms, `MalformedMessage` when they do not parse or are over the caps.
    """
    value = headers.get(PAYMENT_REQUIRED)
    if value:
        asked, where = decode_header(value, _Asked, PAYMENT_REQUIRED), PAYMENT_REQUIRED
        if asked.x402_version != 2:
            raise MalformedMessage(f"{PAYMENT_REQUIRED}: x402Version must be 2, got {asked.x402_version}")
    else:
        asked, where = _from_body(body), "body"
    if len(asked.accepts) > OFFERS_MAX:
        raise MalformedMessage(f"{where}.accepts: {len(asked.accepts)} offers, at most {OFFERS_MAX} are read")
    if not asked.accepts:
        raise MalformedMessage(f"{where}.accepts: the seller asks for payment and offers no way to pay")
    resource = _resource(asked.resource)
    options = [
        _option(index, raw, asked, resource, f"{where}.accepts[{index}]") for index, raw in enumerate(asked.accepts)
    ]
    return PaymentAsked(options, asked.x402_version, resource, _error_text(asked.error))


def _from_body(body: bytes) -> _Asked:
    if len(body) > BODY_402_BYTES_MAX:
        raise MalformedMessage(f"body: more than {BODY_402_BYTES_MAX} bytes for a 402")
    if b'"accepts"' not in body:
        raise NotForSale("answers 402 without x402 terms, so there is no way to pay it here")
    asked = decode_json(body, _Asked, "body")
    if asked.x402_version not in (1, 2):
        raise MalformedMessage(f"body: x402Version must be 1 or 2, got {asked.x402_version}")
    return asked


def _option(index: int, raw: msgspec.Raw, asked: _Asked, resource: ResourceInfo | None, field: str) -> Option:
    try:
        if asked.x402_version == 1:
            return Option(index, terms_from_wire(decode_json(bytes(raw), RequirementsV1, field), field=field))
        stated = decode_json(bytes(raw), Requirements, field)
        terms = terms_from_wire(stated, resource=resource, extensions=asked.extensions, field=field)
        return Option(index, terms)
    except FareboxError as problem:
        return Option(index, None, problem)


def _resource(raw: msgspec.Raw) -> ResourceInfo | None:
    try:
        return msgspec.json.decode(raw, type=ResourceInfo | None)
    except msgspec.DecodeError:
        return None  # only echoed; the seller does not compare it


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("code") or error.get("message")
    return error if isinstance(error, str) else ""

"""What a 402 asks for: every offer read on its own, so that one broken offer does not hide the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from buyer.purchase import Terms, terms_from_wire
from contracts.asked import Asked, read_asked
from contracts.errors import FareboxError
from contracts.wire import RequirementsV1, ResourceInfo

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


def read_payment_asked(headers: Mapping[str, str], body: bytes) -> PaymentAsked:
    """Return what a 402 asks for. The `PAYMENT-REQUIRED` header wins over the body, which older sellers use.

    Raises `NotForSale` when neither holds x402 terms, `MalformedMessage` when they do not parse or are over the caps.
    """
    asked = read_asked(headers, body)
    resource = _resource(asked.resource)
    options = [_option(index, asked, resource) for index in range(len(asked.accepts))]
    return PaymentAsked(options, asked.x402_version, resource, asked.error)


def _option(index: int, asked: Asked, resource: ResourceInfo | None) -> Option:
    field = asked.field(index)
    try:
        stated = asked.requirements(index)
        if isinstance(stated, RequirementsV1):
            return Option(index, terms_from_wire(stated, field=field))
        terms = terms_from_wire(stated, resource=resource, extensions=asked.extensions, field=field)
        return Option(index, terms)
    except FareboxError as problem:
        return Option(index, None, problem)


def _resource(raw: msgspec.Raw) -> ResourceInfo | None:
    try:
        return msgspec.json.decode(raw, type=ResourceInfo | None)
    except msgspec.DecodeError:
        return None  # only echoed; the seller does not compare it

"""What a 402 says, up to its single offers: read tolerantly, so that one broken offer does not hide the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.errors import MalformedMessage, NotForSale
from contracts.headers import PAYMENT_REQUIRED, decode_header
from contracts.limits import BODY_402_BYTES_MAX, OFFERS_MAX
from contracts.wire import Requirements, RequirementsV1, decode_json

__all__ = ["Asked", "read_asked"]


class _Wire(msgspec.Struct, rename="camel"):
    x402_version: int = msgspec.field(name="x402Version")
    accepts: list[msgspec.Raw]
    error: Any = None
    # Not `Raw | None`: msgspec takes that for null alone.
    resource: msgspec.Raw = msgspec.Raw(b"null")
    extensions: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A 402 in x402 version 1 or 2. `where` is what errors call it; the offers are still unread JSON."""

    where: str
    x402_version: int
    accepts: list[msgspec.Raw]
    resource: msgspec.Raw
    extensions: dict[str, Any] | None
    error: str

    def field(self, index: int) -> str:
        """What an error calls offer `index`."""
        return f"{self.where}.accepts[{index}]"

    def requirements(self, index: int) -> Requirements | RequirementsV1:
        """Return offer `index` in its spelling. Raises `MalformedMessage`."""
        kind: type[Requirements | RequirementsV1] = RequirementsV1 if self.x402_version == 1 else Requirements
        return decode_json(self.accepts[index], kind, self.field(index))


def read_asked(headers: Mapping[str, str], body: bytes) -> Asked:
    """Return what a 402 asks for. The `PAYMENT-REQUIRED` header wins over the body, which older sellers use.

    Raises `NotForSale` when neither holds x402 terms, `MalformedMessage` when they do not parse or are over the caps.
    """
    value = headers.get(PAYMENT_REQUIRED)
    if value:
        asked, where = decode_header(value, _Wire, PAYMENT_REQUIRED), PAYMENT_REQUIRED
        if asked.x402_version != 2:
            raise MalformedMessage(f"{PAYMENT_REQUIRED}: x402Version must be 2, got {asked.x402_version}")
    else:
        asked, where = _from_body(body), "body"
    if len(asked.accepts) > OFFERS_MAX:
        raise MalformedMessage(f"{where}.accepts: {len(asked.accepts)} offers, at most {OFFERS_MAX} are read")
    if not asked.accepts:
        raise MalformedMessage(f"{where}.accepts: the seller asks for payment and offers no way to pay")
    return Asked(where, asked.x402_version, asked.accepts, asked.resource, asked.extensions, _error_text(asked.error))


def _from_body(body: bytes) -> _Wire:
    if len(body) > BODY_402_BYTES_MAX:
        raise MalformedMessage(f"body: more than {BODY_402_BYTES_MAX} bytes for a 402")
    if b'"accepts"' not in body:
        raise NotForSale("answers 402 without x402 terms, so there is no way to pay it here")
    asked = decode_json(body, _Wire, "body")
    if asked.x402_version not in (1, 2):
        raise MalformedMessage(f"body: x402Version must be 1 or 2, got {asked.x402_version}")
    return asked


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("code") or error.get("message")
    return error if isinstance(error, str) else ""

"""A payment as it travels: one signed authorization under one seller's terms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

from buyer.purchase import Terms
from contracts.headers import PAYMENT_SIGNATURE, X_PAYMENT, encode_header
from contracts.limits import HEADER_BYTES_MAX
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.gas_sponsoring import GAS_SPONSORING
from contracts.schemes.rails import rail_of
from contracts.wire import PaymentPayload, PaymentPayloadV1

__all__ = ["SignedPayment", "payment_headers"]

# The extension by which a seller knows a payment that is sent again: 16 to 128 of A-Z, a-z, 0-9, "_" and "-".
_IDENTIFIER = "payment-identifier"
_URLS_CACHED = 256
_FILLED_IN = (_IDENTIFIER, GAS_SPONSORING)


@dataclass(frozen=True, slots=True)
class SignedPayment:
    """One authorization signed for one request.

    `request` is what tells that request from others, `content` the digest of what it asks for.
    """

    request: str
    content: bytes
    terms: Terms
    authorization: Authorization
    signature: bytes

    @property
    def offer(self) -> Offer:
        """The terms it pays."""
        return self.terms.offer

    def headers(self, url: str | None = None) -> dict[str, str]:
        """Return the payment header for a request to `url`, or to what was probed."""
        return payment_headers(self.terms, self.authorization, self.signature, url)


def payment_headers(
    terms: Terms, authorization: Authorization, signature: bytes, url: str | None = None
) -> dict[str, str]:
    """Return the header that carries the payment of a request to `url`, in the version the seller speaks.

    The echo of extensions is optional in the protocol, and left out where it would make the header too long, unless the
    seller wants its payments identified. What a 402 advertised for one route is no echo on another, so of a purchase
    that is used for several routes only those extensions go along everywhere that the buyer itself fills in.
    """
    offer = terms.offer
    payload = msgspec.Raw(msgspec.json.encode(rail_of(offer).encode_payload(authorization, signature, offer)))
    accepted = terms.accepted
    if terms.x402_version == 1:
        message = PaymentPayloadV1(x402_version=1, scheme=accepted.scheme, network=accepted.network, payload=payload)
        return {X_PAYMENT: encode_header(message)}
    extensions, must_identify = _identified(_advertised_for(url, terms), authorization)
    payment = PaymentPayload(
        x402_version=2, accepted=accepted, payload=payload, resource=terms.resource, extensions=extensions
    )
    header = encode_header(payment)
    if len(header) > HEADER_BYTES_MAX // 2 and extensions is not None and not must_identify:
        payment.extensions = None
        header = encode_header(payment)
    return {PAYMENT_SIGNATURE: header}


def _advertised_for(url: str | None, terms: Terms) -> dict[str, Any] | None:
    if url is None or terms.resource is None or _is_same_path(terms.resource.url, url):
        return terms.extensions
    return {name: body for name, body in (terms.extensions or {}).items() if name in _FILLED_IN} or None


def _is_same_path(stated: str, url: str) -> bool:
    # Clients make up queries without end, and a cache must not keep them.
    return _path(stated.partition("?")[0]) == _path(url.partition("?")[0])


@lru_cache(_URLS_CACHED)
def _path(url: str) -> str:
    """Return the path of a URL without a query; sellers state theirs, and not all of them are one."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _identified(extensions: dict[str, Any] | None, authorization: Authorization) -> tuple[dict[str, Any] | None, bool]:
    """Return the echo with our payment's own id where the seller offers to know payments by one, and if it must.

    One logical request has one authorization for ever, so the id is drawn from its nonce: whoever presents the payment
    again gives the same id.
    """
    offered = (extensions or {}).get(_IDENTIFIER)
    if extensions is None or not isinstance(offered, dict) or not isinstance(offered.get("info"), dict):
        return extensions, False
    info: dict[str, Any] = offered["info"]
    identified = {**info, "id": f"pay_{authorization.nonce.hex()}"}
    return {**extensions, _IDENTIFIER: {**offered, "info": identified}}, info.get("required") is True

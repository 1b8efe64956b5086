"""Signs payments for tests, as a buyer with a key at hand would."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import msgspec
import pybase64

from contracts.address import Address
from contracts.offers import Offer, offer_from_wire, requirements
from contracts.schemes import upto_permit2
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of
from contracts.signature import SigningKey
from contracts.wire import PaymentRequired

__all__ = ["authorize", "offer_in", "payment_document", "sign_payment", "sign_payment_v1"]

DEFAULT_LIFE_S = 600


def authorize(
    key: bytes,
    offer: Offer,
    *,
    nonce: bytes | None = None,
    valid_after_s: int = 0,
    valid_before_s: int | None = None,
    value_atomic: int | None = None,
    payee: Address | None = None,
) -> tuple[Authorization, bytes]:
    """Return an authorization that pays `offer`, unless told otherwise, and its 65-byte signature."""
    signer, rail = SigningKey(key), rail_of(offer)
    authorization = Authorization(
        payer=signer.address,
        payee=offer.pay_to if payee is None else payee,
        value_atomic=offer.amount_atomic if value_atomic is None else value_atomic,
        valid_after_s=valid_after_s,
        valid_before_s=int(time.time()) + DEFAULT_LIFE_S if valid_before_s is None else valid_before_s,
        nonce=os.urandom(32) if nonce is None else nonce,
        facilitator=upto_permit2.facilitator_of(offer) if rail.NAME == upto_permit2.NAME else None,
    )
    return authorization, signer.sign(rail.digest(authorization, offer))


def payment_document(authorization: Authorization, signature: bytes, offer: Offer) -> dict[str, Any]:
    """Return the JSON document of a v2 payment, for tests that change members of it."""
    return {
        "x402Version": 2,
        "accepted": msgspec.to_builtins(requirements(offer)),
        "payload": rail_of(offer).encode_payload(authorization, signature, offer),
    }


def sign_payment(
    key: bytes,
    offer: Offer,
    *,
    nonce: bytes | None = None,
    valid_after_s: int = 0,
    valid_before_s: int | None = None,
    value_atomic: int | None = None,
    payee: Address | None = None,
) -> str:
    """Return the value of a `PAYMENT-SIGNATURE` header (v2) that pays `offer` with the 32-byte `key`."""
    authorization, signature = authorize(
        key,
        offer,
        nonce=nonce,
        valid_after_s=valid_after_s,
        valid_before_s=valid_before_s,
        value_atomic=value_atomic,
        payee=payee,
    )
    return encode(payment_document(authorization, signature, offer))


def sign_payment_v1(key: bytes, offer: Offer, *, nonce: bytes | None = None, valid_before_s: int | None = None) -> str:
    """Return the value of an `X-PAYMENT` header (v1). The offer's network must have a legacy name."""
    authorization, signature = authorize(key, offer, nonce=nonce, valid_before_s=valid_before_s)
    return encode(
        {
            "x402Version": 1,
            "scheme": offer.scheme,
            "network": offer.network.legacy_name,
            "payload": rail_of(offer).encode_payload(authorization, signature, offer),
        }
    )


def encode(document: dict[str, Any]) -> str:
    """Return any document as a payment header spells it: base64 of JSON."""
    return pybase64.b64encode(json.dumps(document).encode()).decode()


def offer_in(required_header: str) -> Offer:
    """Return the first offer of a `PAYMENT-REQUIRED` header."""
    required = msgspec.json.decode(pybase64.b64decode(required_header), type=PaymentRequired)
    return offer_from_wire(required.accepts[0])

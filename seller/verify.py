"""From headers to a verified payment: parse strictly, match our own offer, check terms, time and signature.

Everything here is local and pure. What only the chain knows (balance, code, a used nonce) is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from contracts.errors import MalformedMessage, NoMatchingOffer
from contracts.headers import PAYMENT_SIGNATURE, X_PAYMENT, decode_payment
from contracts.offers import Offer, match_offer
from contracts.schemes import exact_eip3009, rails
from contracts.schemes.authorization import Authorization
from contracts.wire import PaymentPayload, PaymentPayloadV1

__all__ = ["PAYMENT_HEADERS", "VerifiedPayment", "payment_in", "unverified", "verify"]

_V2, _V1 = PAYMENT_SIGNATURE.lower().encode(), X_PAYMENT.lower().encode()
PAYMENT_HEADERS = frozenset((_V2, _V1))

Payment = PaymentPayload | PaymentPayloadV1


class VerifiedPayment(msgspec.Struct, frozen=True):
    """A payment whose terms are ours and whose signature is its payer's, whatever version carried it.

    Its identity is (chain id, token, payer, nonce), as values: no spelling of the same authorization makes another.
    """

    authorization: Authorization
    signature: bytes
    offer: Offer
    x402_version: int


def payment_in(headers: Iterable[tuple[bytes, bytes]]) -> Payment | None:
    """Return the payment a request carries, or None.

    Raises `MalformedMessage` (400) for one that does not parse, for a header sent twice, and for a v1 and a v2 header
    that mean two payments.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in PAYMENT_HEADERS:
            if name in found:
                raise MalformedMessage(f"{name.decode()}: is sent twice")
            found[name] = value
    if not found:
        return None
    payments = {name: decode_payment(name.decode(), value) for name, value in found.items()}
    if len(payments) == 2 and _decoded(payments[_V2]) != _decoded(payments[_V1]):
        raise MalformedMessage(f"{PAYMENT_SIGNATURE} and {X_PAYMENT} carry two different payments; send one")
    return payments.get(_V2) or payments[_V1]


def verify(payment: Payment, offer: Offer, now_s: int, life_s: int) -> VerifiedPayment:
    """Return the payment if it pays `offer` and stays valid for `life_s` after `now_s`.

    Raises a `PaymentRefused` leaf, or `MalformedMessage` for a payload that does not parse.
    """
    if isinstance(payment, PaymentPayload):
        match_offer(payment.accepted, [offer])
    elif payment.scheme != offer.scheme or payment.network != offer.network.legacy_name:
        raise NoMatchingOffer(f"{X_PAYMENT}: {payment.scheme[:40]} on {payment.network[:40]} is not offered")
    authorization, signature = _decoded(payment)
    rails.check(authorization, signature, offer, now_s, life_s)
    return VerifiedPayment(authorization, signature, offer, payment.x402_version)


def unverified(payment: Payment, offer: Offer) -> VerifiedPayment:
    """Return a payment's parts before anything about them is known, for comparison with one that was verified.

    Raises `MalformedMessage` for a payload that does not parse.
    """
    authorization, signature = _decoded(payment)
    return VerifiedPayment(authorization, signature, offer, payment.x402_version)


def _decoded(payment: Payment) -> tuple[Authorization, bytes]:
    return exact_eip3009.decode_payload(payment.payload)

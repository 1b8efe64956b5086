"""From headers to a verified payment: parse strictly, match our own offer, check terms, time and signature.

Everything here is local and pure. What only the chain knows (balance, code, a used nonce) is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from contracts.errors import MalformedMessage, NoMatchingOffer
from contracts.headers import PAYMENT_SIGNATURE, X_PAYMENT, decode_payment
from contracts.offers import EIP3009, Offer, match_offer
from contracts.schemes import exact_eip3009, rails
from contracts.schemes.authorization import Authorization
from contracts.schemes.permit2 import TokenPermit
from contracts.schemes.rails import rail_of
from contracts.wire import PaymentPayload, PaymentPayloadV1

__all__ = ["PAYMENT_HEADERS", "VerifiedPayment", "payment_in", "unverified", "verify"]

_V2, _V1 = PAYMENT_SIGNATURE.lower().encode(), X_PAYMENT.lower().encode()
PAYMENT_HEADERS = frozenset((_V2, _V1))

Payment = PaymentPayload | PaymentPayloadV1


class VerifiedPayment(msgspec.Struct, frozen=True):
    """A payment whose terms are ours and whose signature is its payer's, whatever version carried it.

    Its identity is (chain id, registry of its nonce, payer, nonce), as values: no spelling of the same authorization
    makes another. `contract_payer` means that a contract vouched for the signature; `token_permit` comes with it for
    the proxy to submit; `payment_id` is the client's own name for it.
    """

    authorization: Authorization
    signature: bytes
    offer: Offer
    x402_version: int
    contract_payer: bool = False
    token_permit: TokenPermit | None = None
    payment_id: str | None = None

    @property
    def is_metered(self) -> bool:
        """Whether what is signed is a cap, and what is charged is known after the work."""
        return self.offer.scheme == "upto"


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
    if len(payments) == 2 and len({exact_eip3009.decode_payload(each.payload) for each in payments.values()}) == 2:
        raise MalformedMessage(f"{PAYMENT_SIGNATURE} and {X_PAYMENT} carry two different payments; send one")
    return payments.get(_V2) or payments[_V1]


def verify(payment: Payment, offers: Sequence[Offer], now_s: int, life_s: int) -> VerifiedPayment:
    """Return the payment if it pays one of `offers` and stays valid for `life_s` after `now_s`.

    Raises a `PaymentRefused` leaf, or `MalformedMessage` for a payload that does not parse. `InvalidSignature` means
    that all the rest is in order: it is not the payer's key that signed, and a payer that is a contract may vouch.
    """
    offer = _meant(payment, offers)
    rail = rail_of(offer)
    authorization, signature = rail.decode_payload(payment.payload, offer)
    rails.check(authorization, signature, offer, now_s, life_s, rail=rail)
    return VerifiedPayment(authorization, signature, offer, payment.x402_version)


def unverified(payment: Payment, offers: Sequence[Offer]) -> VerifiedPayment:
    """Return a payment's parts before anything about them is known, for comparison with one that was verified.

    Raises `MalformedMessage` for a payload that does not parse, or a refusal for one that cannot be of any offer.
    """
    try:
        offer = _meant(payment, offers)
    except NoMatchingOffer:
        # The price may be another since: the way of payment still says how to read it.
        alike = [each for each in offers if _is_its_rail(payment, each)]
        if not alike:
            raise
        offer = alike[0]
    authorization, signature = rail_of(offer).decode_payload(payment.payload, offer)
    return VerifiedPayment(authorization, signature, offer, payment.x402_version)


def _meant(payment: Payment, offers: Sequence[Offer]) -> Offer:
    if isinstance(payment, PaymentPayload):
        return match_offer(payment.accepted, offers)
    for offer in offers:
        if (payment.scheme, payment.network) == (offer.scheme, offer.network.legacy_name) and offer.method == EIP3009:
            return offer
    raise NoMatchingOffer(f"{X_PAYMENT}: {payment.scheme[:40]} on {payment.network[:40]} is not offered")


def _is_its_rail(payment: Payment, offer: Offer) -> bool:
    if not isinstance(payment, PaymentPayload):
        return offer.method == EIP3009
    stated = (payment.accepted.extra or {}).get("assetTransferMethod", EIP3009)
    return payment.accepted.scheme == offer.scheme and (offer.scheme == "upto" or stated == offer.method)

"""What a fresh authorization of an offer says, before it is signed."""

from __future__ import annotations

from contracts.address import Address
from contracts.offers import Offer
from contracts.schemes import upto_permit2
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of

__all__ = ["facilitator_of", "fresh_authorization"]


def facilitator_of(offer: Offer) -> Address | None:
    """Return the only account that may settle payments of `offer`; None where anybody may.

    Raises `MalformedMessage` when the offer should name one and does not.
    """
    return upto_permit2.facilitator_of(offer) if rail_of(offer).NAME == upto_permit2.NAME else None


def fresh_authorization(offer: Offer, payer: Address, nonce: bytes, valid_before_s: int) -> Authorization:
    """Return the right to take the price of `offer` from `payer`, valid at once and until `valid_before_s`."""
    return Authorization(
        payer=payer,
        payee=offer.pay_to,
        value_atomic=offer.amount_atomic,
        valid_after_s=0,
        valid_before_s=valid_before_s,
        nonce=nonce,
        facilitator=facilitator_of(offer),
    )

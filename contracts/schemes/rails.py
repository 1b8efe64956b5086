"""The rails a payment can take, and which of them an offer means. A rail is a module of this package."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from contracts.address import Address
from contracts.errors import InvalidSignature, NoMatchingOffer
from contracts.offers import EIP3009, PERMIT2, Offer
from contracts.schemes import exact_eip3009, exact_permit2, upto_permit2
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.permit2 import Proxy, TokenPermit
from contracts.signature import recover

__all__ = ["Rail", "check", "proxy_of", "rail_named", "rail_of"]


class Rail(Protocol):
    """One way for signed money to move. `NAME` is what stores hold: "eip3009", "permit2" or "upto"."""

    NAME: str

    def registry(self, token: Address, /) -> Address:
        """Return the contract that burns the nonces; a payment is (chain id, registry, payer, nonce)."""

    def decode_payload(self, payload: bytes | msgspec.Raw, offer: Offer, /) -> tuple[Authorization, bytes]:
        """Return authorization and signature. Raises `MalformedMessage`, or a refusal of what neither can say."""

    def encode_payload(self, authorization: Authorization, signature: bytes, offer: Offer, /) -> dict[str, Any]:
        """Return the `payload` member of a payment."""

    def digest(self, authorization: Authorization, offer: Offer, /) -> bytes:
        """Return the 32 bytes that are signed."""

    def check_terms(self, authorization: Authorization, offer: Offer, now_s: int, margin_s: int, /) -> None:
        """Raise the first `PaymentRefused` leaf that applies to what is signed."""

    def settle_call(
        self,
        authorization: Authorization,
        signature: bytes,
        token: Address,
        amount_atomic: int,
        /,
        *,
        contract_payer: bool = False,
        permit: TokenPermit | None = None,
    ) -> Call:
        """Return the call that moves the money. `permit` is the payer's approval of Permit2, where it is still due."""


_RAILS: dict[tuple[str, str], Rail] = {
    ("exact", EIP3009): exact_eip3009,
    ("exact", PERMIT2): exact_permit2,
    ("upto", PERMIT2): upto_permit2,
}
_BY_NAME = {rail.NAME: rail for rail in _RAILS.values()}
_PROXIES = {exact_permit2.NAME: exact_permit2.PROXY, upto_permit2.NAME: upto_permit2.PROXY}


def rail_of(offer: Offer) -> Rail:
    """Return the rail by which `offer` is paid. Raises `NoMatchingOffer` for one that Farebox does not know."""
    rail = _RAILS.get((offer.scheme, offer.method))
    if rail is None:
        raise NoMatchingOffer(f"{offer.scheme[:40]} by {offer.method[:40]}: no such way of payment is known here")
    return rail


def proxy_of(offer: Offer) -> Proxy | None:
    """Return the x402 proxy that payments of `offer` go through; None where the token itself moves the money."""
    return _PROXIES.get(rail_of(offer).NAME)


def rail_named(name: str) -> Rail:
    """Return the rail that a store calls `name`."""
    return _BY_NAME[name]


def check(
    authorization: Authorization,
    signature: bytes,
    offer: Offer,
    now_s: int,
    margin_s: int,
    *,
    rail: Rail | None = None,
) -> None:
    """Raise the first `PaymentRefused` leaf that applies; cheap checks first, no I/O, no clock.

    The payer is taken to be an account without code; a payer with code is for the chain to judge. `rail` is the
    offer's, for whoever has looked it up already.
    """
    rail = rail or rail_of(offer)
    rail.check_terms(authorization, offer, now_s, margin_s)
    _check_signature(rail, authorization, signature, offer)


def _check_signature(rail: Rail, authorization: Authorization, signature: bytes, offer: Offer) -> None:
    try:
        if recover(rail.digest(authorization, offer), signature) == authorization.payer:
            return
        message = "payload.signature: not made by `from` over these terms in the offer's domain"
    except InvalidSignature as error:
        message = error.message
    reason = None if rail.NAME == exact_eip3009.NAME else "invalid_permit2_signature"
    raise InvalidSignature(message, x402_reason=reason)

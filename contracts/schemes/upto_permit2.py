"""`upto` over Permit2: the payer signs a cap; the one facilitator it names settles once, for no more than that.

Nothing to charge is nothing to settle: the proxy refuses zero. Source: x402 scheme `upto` (EVM).
"""

from __future__ import annotations

from typing import Any

import msgspec

from contracts.address import Address, address_text
from contracts.errors import FacilitatorMismatch, MalformedMessage
from contracts.fields import wire_address
from contracts.networks import PERMIT2, X402_UPTO_PROXY
from contracts.offers import Offer
from contracts.schemes import permit2
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.permit2 import Proxy, TokenPermit

__all__ = [
    "NAME",
    "PROXY",
    "check_terms",
    "decode_payload",
    "digest",
    "encode_payload",
    "facilitator_of",
    "registry",
    "settle_call",
]

NAME = "upto"
PROXY = Proxy(X402_UPTO_PROXY, b"Witness(address to,address facilitator,uint256 validAfter)", is_metered=True)


def registry(_token: Address) -> Address:
    """Return the contract that burns the nonces."""
    return PERMIT2


def facilitator_of(offer: Offer) -> Address:
    """Return the account that settles what is paid for `offer`. Raises `MalformedMessage` where it names none."""
    stated = offer.extra.get("facilitatorAddress")
    if stated is None:
        raise MalformedMessage("extra.facilitatorAddress: is missing, and `upto` cannot be paid without it")
    return wire_address(stated, "extra.facilitatorAddress")


def decode_payload(payload: bytes | msgspec.Raw, offer: Offer) -> tuple[Authorization, bytes]:
    """Return authorization and signature. Raises `MalformedMessage`, `SpenderMismatch` or `TokenMismatch`."""
    return permit2.decode_payload(payload, offer, PROXY)


def encode_payload(authorization: Authorization, signature: bytes, offer: Offer) -> dict[str, Any]:
    """Return the `payload` member of a payment."""
    return permit2.encode_payload(authorization, signature, offer, PROXY)


def digest(authorization: Authorization, offer: Offer) -> bytes:
    """Return the 32-byte EIP-712 digest the payer signs to pay at most `offer`."""
    return permit2.digest(authorization, offer, PROXY)


def check_terms(authorization: Authorization, offer: Offer, now_s: int, margin_s: int) -> None:
    """Raise the first `PaymentRefused` leaf that applies to what is signed; no I/O, no clock, no signature."""
    permit2.check_terms(authorization, offer, now_s, margin_s)
    wanted = facilitator_of(offer)
    if authorization.facilitator != wanted:
        raise FacilitatorMismatch(
            f"payload.permit2Authorization.witness.facilitator: must be {address_text(wanted)}, as the offer says"
        )


def settle_call(
    authorization: Authorization,
    signature: bytes,
    token: Address,
    amount_atomic: int,
    *,
    contract_payer: bool = False,  # noqa: ARG001 - Permit2 itself tells accounts and contracts apart
    permit: TokenPermit | None = None,
) -> Call:
    """Return the upto proxy's `settle` of `amount_atomic`, more than zero; only the named facilitator may send it."""
    return permit2.settle_call(authorization, signature, token, amount_atomic, proxy=PROXY, permit=permit)

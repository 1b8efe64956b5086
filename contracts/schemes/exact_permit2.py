"""`exact` over Permit2: the payer signs one transfer, to one payee, for one amount; anybody may submit it."""

from __future__ import annotations

from typing import Any

import msgspec

from contracts.address import Address
from contracts.networks import PERMIT2, X402_EXACT_PROXY
from contracts.offers import Offer
from contracts.schemes import permit2
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.permit2 import Proxy, TokenPermit, check_terms

__all__ = ["NAME", "PROXY", "check_terms", "decode_payload", "digest", "encode_payload", "registry", "settle_call"]

NAME = "permit2"
PROXY = Proxy(X402_EXACT_PROXY, b"Witness(address to,uint256 validAfter)", is_metered=False)


def registry(_token: Address) -> Address:
    """Return the contract that burns the nonces."""
    return PERMIT2


def decode_payload(payload: bytes | msgspec.Raw, offer: Offer) -> tuple[Authorization, bytes]:
    """Return authorization and signature. Raises `MalformedMessage`, `SpenderMismatch` or `TokenMismatch`."""
    return permit2.decode_payload(payload, offer, PROXY)


def encode_payload(authorization: Authorization, signature: bytes, offer: Offer) -> dict[str, Any]:
    """Return the `payload` member of a payment."""
    return permit2.encode_payload(authorization, signature, offer, PROXY)


def digest(authorization: Authorization, offer: Offer) -> bytes:
    """Return the 32-byte EIP-712 digest the payer signs to pay `offer`."""
    return permit2.digest(authorization, offer, PROXY)


def settle_call(
    authorization: Authorization,
    signature: bytes,
    token: Address,
    amount_atomic: int,
    *,
    contract_payer: bool = False,  # noqa: ARG001 - Permit2 itself tells accounts and contracts apart
    permit: TokenPermit | None = None,
) -> Call:
    """Return the exact proxy's `settle`, or with `permit` its `settleWithPermit`; the whole value moves."""
    return permit2.settle_call(authorization, signature, token, amount_atomic, proxy=PROXY, permit=permit)

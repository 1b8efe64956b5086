"""The x402 extension `eip2612GasSponsoring`: a payer approves Permit2 by a signature that whoever settles submits."""

from __future__ import annotations

from typing import Any

import msgspec

from contracts.address import Address
from contracts.errors import AmountMismatch, MalformedMessage, PaymentExpired, PaymentRefused
from contracts.fields import wire_address, wire_uint256
from contracts.keccak import keccak
from contracts.networks import PERMIT2
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.permit2 import TokenPermit
from contracts.signature import parse_signature
from contracts.typed_data import Domain, signing_digest, word_of_address, word_of_uint

__all__ = ["GAS_SPONSORING", "SPONSORING_DECLARED", "Permit", "permit_digest", "token_permit"]

GAS_SPONSORING = "eip2612GasSponsoring"
SPONSORING_DECLARED: dict[str, Any] = {
    "info": {"description": "Permit2 may be approved by an EIP-2612 permit.", "version": "1"},
    "schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            name: {"type": "string"}
            for name in ("from", "asset", "spender", "amount", "nonce", "deadline", "signature", "version")
        },
        "required": ["from", "asset", "spender", "amount", "nonce", "deadline", "signature", "version"],
    },
}

_PERMIT_TYPE_HASH = keccak(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")

_FIELD = f"extensions.{GAS_SPONSORING}.info"


class Permit(msgspec.Struct, frozen=True):
    """An EIP-2612 permit as its owner signs it: `spender` may move `value_atomic`; the token counts `nonce`."""

    owner: Address
    spender: Address
    value_atomic: int
    nonce: int
    deadline_s: int


def permit_digest(permit: Permit, domain: Domain) -> bytes:
    """Return the 32-byte EIP-712 digest that the owner signs, in the token's domain."""
    words = (
        word_of_address(permit.owner),
        word_of_address(permit.spender),
        word_of_uint(permit.value_atomic),
        word_of_uint(permit.nonce),
        word_of_uint(permit.deadline_s),
    )
    return signing_digest(domain.separator, keccak(_PERMIT_TYPE_HASH + b"".join(words)))


class _Info(msgspec.Struct):
    from_: str = msgspec.field(name="from")
    asset: str
    spender: str
    amount: str
    deadline: str
    signature: str


def token_permit(
    extensions: dict[str, Any] | None, authorization: Authorization, offer: Offer, now_s: int, margin_s: int
) -> TokenPermit | None:
    """Return the permit that comes with a payment; None where the client only echoes our own words, or nothing.

    It must let Permit2 move exactly what is signed, for `margin_s` more. Raises `MalformedMessage` or a refusal.
    """
    extension = (extensions or {}).get(GAS_SPONSORING)
    stated = extension.get("info") if isinstance(extension, dict) else None
    if not isinstance(stated, dict) or "signature" not in stated:
        return None
    try:
        info = msgspec.convert(stated, _Info)
    except msgspec.ValidationError as error:
        raise MalformedMessage(f"{_FIELD}: {error}") from None
    parties = (wire_address(info.from_, f"{_FIELD}.from"), wire_address(info.asset, f"{_FIELD}.asset"))
    if parties != (authorization.payer, offer.asset.address):
        raise PaymentRefused(f"{_FIELD}: is another payer's, or for another token", remedy="sign it for this payment")
    if wire_address(info.spender, f"{_FIELD}.spender") != PERMIT2:
        raise PaymentRefused(f"{_FIELD}.spender: must be Permit2", remedy="sign it for this payment")
    amount_atomic = wire_uint256(info.amount, f"{_FIELD}.amount")
    if amount_atomic != authorization.value_atomic:
        raise AmountMismatch(
            f"{_FIELD}.amount: must be {authorization.value_atomic}, as in the payment",
            x402_reason="permit2_2612_amount_mismatch",
        )
    deadline_s = wire_uint256(info.deadline, f"{_FIELD}.deadline")
    if deadline_s < now_s + margin_s:
        raise PaymentExpired(
            f"{_FIELD}.deadline: must be at least {margin_s} s ahead", x402_reason="permit2_deadline_expired"
        )
    signature = parse_signature(info.signature, f"{_FIELD}.signature")
    if len(signature) != 65:
        raise MalformedMessage(f"{_FIELD}.signature: expected 65 bytes, got {len(signature)}")
    return TokenPermit(amount_atomic, deadline_s, signature)

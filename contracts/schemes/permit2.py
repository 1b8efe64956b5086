"""Permit2 with a witness: what `exact` and `upto` have in common where the token has no EIP-3009.

The payer once approves Permit2 for the token. Each payment is then a signed `PermitWitnessTransferFrom`: the token and
how much of it, the spender (an x402 proxy), an unordered nonce, a deadline, and a witness that fixes the payee. The
signature is in Permit2's own domain and does not name its owner. Permit2 keeps used nonces as bits, 256 to a word, and
emits no event for them. Sources: Permit2 `SignatureTransfer`, x402 schemes `exact` and `upto` (EVM).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from contracts.address import ZERO, Address, address_text
from contracts.errors import (
    AmountMismatch,
    InvalidSignature,
    MalformedMessage,
    PaymentExpired,
    PaymentNotYetValid,
    RecipientMismatch,
    SpenderMismatch,
    TokenMismatch,
)
from contracts.fields import wire_address, wire_uint256
from contracts.keccak import keccak
from contracts.networks import PERMIT2
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization, Call
from contracts.signature import parse_signature
from contracts.typed_data import padded_bytes, signing_digest, word_of_address, word_of_uint
from contracts.wire import decode_json

__all__ = [
    "Proxy",
    "TokenPermit",
    "check_terms",
    "decode_payload",
    "digest",
    "domain_separator",
    "encode_payload",
    "invalidate_call",
    "settle_call",
    "settlements_in",
    "word_and_bit",
]

_DOMAIN_TYPE_HASH = keccak(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")
_TOKEN_PERMISSIONS = b"TokenPermissions(address token,uint256 amount)"
_TOKEN_PERMISSIONS_HASH = keccak(_TOKEN_PERMISSIONS)
_INVALIDATE_SELECTOR = keccak(b"invalidateUnorderedNonces(uint256,uint256)")[:4]

_STATED = "payload.permit2Authorization"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An x402 proxy, the only spender its payments name. With `is_metered`, a named facilitator says how much moves."""

    address: Address
    witness_type: bytes
    is_metered: bool

    @property
    def permit_type(self) -> bytes:
        """The EIP-712 type that the payer signs; the types it refers to follow in alphabetical order."""
        return (
            b"PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,"
            b"Witness witness)" + _TOKEN_PERMISSIONS + self.witness_type
        )


@dataclass(frozen=True, slots=True)
class TokenPermit:
    """An EIP-2612 permit by which the payer lets Permit2 move `value_atomic`, for a proxy to submit on the way."""

    value_atomic: int
    deadline_s: int
    signature: bytes


class _WirePermitted(msgspec.Struct):
    token: str
    amount: str


class _WireWitness(msgspec.Struct, rename="camel"):
    to: str
    valid_after: str
    facilitator: str | None = None


class _WireAuthorization(msgspec.Struct):
    permitted: _WirePermitted
    from_: str = msgspec.field(name="from")
    spender: str
    nonce: str
    deadline: str
    witness: _WireWitness


class _WirePayload(msgspec.Struct, rename="camel"):
    signature: str
    permit2_authorization: _WireAuthorization = msgspec.field(name="permit2Authorization")


def decode_payload(payload: bytes | msgspec.Raw, offer: Offer, proxy: Proxy) -> tuple[Authorization, bytes]:
    """Return the authorization and signature bytes in a payment's `payload` JSON.

    Raises `MalformedMessage`, and `SpenderMismatch` or `TokenMismatch` for what an authorization cannot say: it is one
    for `proxy` and the offer's token.
    """
    wire = decode_json(payload, _WirePayload, "payload")
    stated = wire.permit2_authorization
    if wire_address(stated.spender, f"{_STATED}.spender") != proxy.address:
        raise SpenderMismatch(f"{_STATED}.spender: must be the x402 proxy {address_text(proxy.address)}")
    if wire_address(stated.permitted.token, f"{_STATED}.permitted.token") != offer.asset.address:
        raise TokenMismatch(f"{_STATED}.permitted.token: must be {offer.asset.address_text}")
    authorization = Authorization(
        payer=wire_address(stated.from_, f"{_STATED}.from"),
        payee=wire_address(stated.witness.to, f"{_STATED}.witness.to"),
        value_atomic=wire_uint256(stated.permitted.amount, f"{_STATED}.permitted.amount"),
        valid_after_s=wire_uint256(stated.witness.valid_after, f"{_STATED}.witness.validAfter"),
        valid_before_s=wire_uint256(stated.deadline, f"{_STATED}.deadline"),
        nonce=word_of_uint(wire_uint256(stated.nonce, f"{_STATED}.nonce")),
        facilitator=_facilitator(stated.witness, proxy),
    )
    return authorization, parse_signature(wire.signature)


def _facilitator(witness: _WireWitness, proxy: Proxy) -> Address | None:
    field = f"{_STATED}.witness.facilitator"
    if not proxy.is_metered:
        if witness.facilitator is not None:
            raise MalformedMessage(f"{field}: is not part of the witness of `exact`")
        return None
    return wire_address(witness.facilitator, field)


def encode_payload(authorization: Authorization, signature: bytes, offer: Offer, proxy: Proxy) -> dict[str, Any]:
    """Return the `payload` member of a payment: numbers as decimal strings, bytes as 0x hex."""
    witness = {"to": address_text(authorization.payee), "validAfter": str(authorization.valid_after_s)}
    if authorization.facilitator is not None:
        witness["facilitator"] = address_text(authorization.facilitator)
    return {
        "signature": "0x" + signature.hex(),
        "permit2Authorization": {
            "permitted": {"token": offer.asset.address_text, "amount": str(authorization.value_atomic)},
            "from": address_text(authorization.payer),
            "spender": address_text(proxy.address),
            "nonce": str(int.from_bytes(authorization.nonce, "big")),
            "deadline": str(authorization.valid_before_s),
            "witness": witness,
        },
    }


@lru_cache(maxsize=1024)
def domain_separator(chain_id: int) -> bytes:
    """Return the hash of Permit2's EIP-712 domain, which has no version, on one chain."""
    return keccak(_DOMAIN_TYPE_HASH + keccak(b"Permit2") + word_of_uint(chain_id) + word_of_address(PERMIT2))


def digest(authorization: Authorization, offer: Offer, proxy: Proxy) -> bytes:
    """Return the 32-byte EIP-712 digest the payer signs to pay `offer`."""
    permit_type_hash, witness_type_hash = _type_hashes(proxy)
    token_permissions = keccak(
        _TOKEN_PERMISSIONS_HASH + word_of_address(offer.asset.address) + word_of_uint(authorization.value_atomic)
    )
    witness = keccak(witness_type_hash + _witness_words(authorization))
    struct_hash = keccak(
        b"".join(
            (
                permit_type_hash,
                token_permissions,
                word_of_address(proxy.address),
                authorization.nonce,
                word_of_uint(authorization.valid_before_s),
                witness,
            )
        )
    )
    return signing_digest(domain_separator(offer.network.chain_id), struct_hash)


@lru_cache(maxsize=8)
def _type_hashes(proxy: Proxy) -> tuple[bytes, bytes]:
    return keccak(proxy.permit_type), keccak(proxy.witness_type)


def _witness_words(authorization: Authorization) -> bytes:
    facilitator = b"" if authorization.facilitator is None else word_of_address(authorization.facilitator)
    return word_of_address(authorization.payee) + facilitator + word_of_uint(authorization.valid_after_s)


def check_terms(authorization: Authorization, offer: Offer, now_s: int, margin_s: int) -> None:
    """Raise the first `PaymentRefused` leaf that applies to what is signed; no I/O, no clock, no signature.

    `margin_s` is how long the authorization must stay valid after `now_s`.
    """
    if authorization.payee != offer.pay_to:
        raise RecipientMismatch(
            f"{_STATED}.witness.to: pays {address_text(authorization.payee)}, not our payTo",
            x402_reason="invalid_permit2_recipient_mismatch",
        )
    if authorization.value_atomic != offer.amount_atomic:
        raise AmountMismatch(
            f"{_STATED}.permitted.amount: must be {offer.amount_atomic}, got {authorization.value_atomic}",
            x402_reason="permit2_amount_mismatch",
        )
    if authorization.valid_before_s < now_s + margin_s:
        raise PaymentExpired(
            f"{_STATED}.deadline: must be at least {margin_s} s ahead",
            remedy="sign with a later deadline",
            x402_reason="permit2_deadline_expired",
        )
    if authorization.valid_after_s > now_s:
        raise PaymentNotYetValid(
            f"{_STATED}.witness.validAfter: lies in the future", x402_reason="permit2_not_yet_valid"
        )
    if authorization.payer == ZERO:
        raise InvalidSignature(
            f"{_STATED}.from: the zero address signs nothing", x402_reason="invalid_permit2_signature"
        )


def settle_call(
    authorization: Authorization,
    signature: bytes,
    token: Address,
    amount_atomic: int,
    *,
    proxy: Proxy,
    permit: TokenPermit | None = None,
) -> Call:
    """Return the proxy's `settle`, or with `permit` its `settleWithPermit`; a metered proxy moves `amount_atomic`."""
    head = [] if permit is None else _permit_words(permit)
    head += [
        word_of_address(token),
        word_of_uint(authorization.value_atomic),
        authorization.nonce,
        word_of_uint(authorization.valid_before_s),
        *([word_of_uint(amount_atomic)] if proxy.is_metered else []),
        word_of_address(authorization.payer),
        _witness_words(authorization),
    ]
    words = b"".join(head)
    signature_offset = word_of_uint(len(words) + 32)
    return Call(
        proxy.address,
        _settle_selector(proxy, with_permit=permit is not None) + words + signature_offset + padded_bytes(signature),
    )


def _permit_words(permit: TokenPermit) -> list[bytes]:
    r, s, v = permit.signature[:32], permit.signature[32:64], permit.signature[64]
    return [word_of_uint(permit.value_atomic), word_of_uint(permit.deadline_s), r, s, word_of_uint(v)]


@lru_cache(maxsize=8)
def _settle_selector(proxy: Proxy, *, with_permit: bool) -> bytes:
    arguments = [b"((address,uint256),uint256,uint256)"]
    arguments += [b"uint256", b"address", b"(address,address,uint256)"] if proxy.is_metered else []
    arguments += [] if proxy.is_metered else [b"address", b"(address,uint256)"]
    permit = [b"(uint256,uint256,bytes32,bytes32,uint8)"] if with_permit else []
    name = b"settleWithPermit" if with_permit else b"settle"
    return keccak(name + b"(" + b",".join((*permit, *arguments, b"bytes")) + b")")[:4]


def settlements_in(calldata: bytes, token: Address, payer: Address, payee: Address) -> dict[bytes, int]:
    """Return the amounts by nonce that `calldata` asks the x402 proxies to move of `token` from `payer` to `payee`.

    It may be a call of a proxy, or carry such calls as a Multicall3 batch does. Permit2 emits no event that names a
    nonce: what a transaction was asked to do is the only public link from a transfer to its payment.
    """
    word = b"(.{32})"
    parties = re.escape(word_of_address(payer) + word_of_address(payee))
    token_word = re.escape(word_of_address(token))
    found: dict[bytes, int] = {}
    # permitted (token, amount), nonce, deadline, then the owner and the witness
    for match in re.finditer(token_word + word + word + b".{32}" + parties, calldata, re.DOTALL):
        found[match[2]] = int.from_bytes(match[1], "big")
    # ... or first the amount that a facilitator charges
    for match in re.finditer(token_word + b".{32}" + word + b".{32}" + word + parties, calldata, re.DOTALL):
        found[match[1]] = int.from_bytes(match[2], "big")
    return found


def word_and_bit(nonce: bytes) -> tuple[int, int]:
    """Return where Permit2 keeps a 32-byte nonce: the number of its word, and of its bit in that word."""
    number = int.from_bytes(nonce, "big")
    return number >> 8, number & 0xFF


def invalidate_call(word: int, mask: int) -> Call:
    """Return the call by which a payer itself burns the nonces of `word` whose bits are set in `mask`."""
    return Call(PERMIT2, _INVALIDATE_SELECTOR + word_of_uint(word) + word_of_uint(mask))

"""EIP-3009 `exact`: the payer signs one transfer, to one payee, for one amount.

Nothing in the signed message names a request or a URL; the (token, payer, nonce) of an authorization is burnt by the
token when anybody submits it, and the money can reach only `payee`. Sources: EIP-3009, EIP-712, x402 scheme `exact`
(EVM).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from contracts.address import ZERO, Address, address_text
from contracts.errors import (
    AmountMismatch,
    InvalidSignature,
    PaymentExpired,
    PaymentNotYetValid,
    RecipientMismatch,
)
from contracts.fields import wire_address, wire_bytes32, wire_uint256
from contracts.keccak import keccak
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.permit2 import TokenPermit
from contracts.signature import parse_signature, vrs
from contracts.typed_data import (
    ADDRESS_PADDING,
    Domain,
    padded_bytes,
    signing_digest,
    word_of_address,
    word_of_uint,
)
from contracts.wire import decode_json

__all__ = [
    "AUTHORIZATION_CANCELED_TOPIC",
    "AUTHORIZATION_USED_TOPIC",
    "NAME",
    "TRANSFER_TOPIC",
    "Log",
    "cancel_call",
    "cancel_digest",
    "check_terms",
    "decode_payload",
    "digest",
    "encode_payload",
    "logs_by_authorization",
    "paid_by",
    "registry",
    "settle_call",
    "transfer_call",
    "transfer_digest",
    "was_paid",
]

NAME = "eip3009"

_TYPE_HASH = keccak(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_CANCEL_TYPE_HASH = keccak(b"CancelAuthorization(address authorizer,bytes32 nonce)")
_SETTLE_SELECTOR = keccak(
    b"transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)[:4]
_SETTLE_BYTES_SELECTOR = keccak(b"transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)")[:4]
_CANCEL_SELECTOR = keccak(b"cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)")[:4]

TRANSFER_TOPIC = "0x" + keccak(b"Transfer(address,address,uint256)").hex()
AUTHORIZATION_USED_TOPIC = "0x" + keccak(b"AuthorizationUsed(address,bytes32)").hex()
AUTHORIZATION_CANCELED_TOPIC = "0x" + keccak(b"AuthorizationCanceled(address,bytes32)").hex()

Log = dict[str, Any]


class _WireAuthorization(msgspec.Struct, rename="camel"):
    from_: str = msgspec.field(name="from")
    to: str
    value: str
    valid_after: str
    valid_before: str
    nonce: str


class _WirePayload(msgspec.Struct):
    signature: str
    authorization: _WireAuthorization


def registry(token: Address) -> Address:
    """Return the contract that burns the nonces: the token."""
    return token


def decode_payload(payload: bytes | msgspec.Raw, _offer: Offer | None = None) -> tuple[Authorization, bytes]:
    """Return the authorization and signature bytes in a payment's `payload` JSON. Raises `MalformedMessage`."""
    wire = decode_json(payload, _WirePayload, "payload")
    stated = wire.authorization
    authorization = Authorization(
        payer=wire_address(stated.from_, "payload.authorization.from"),
        payee=wire_address(stated.to, "payload.authorization.to"),
        value_atomic=wire_uint256(stated.value, "payload.authorization.value"),
        valid_after_s=wire_uint256(stated.valid_after, "payload.authorization.validAfter"),
        valid_before_s=wire_uint256(stated.valid_before, "payload.authorization.validBefore"),
        nonce=wire_bytes32(stated.nonce, "payload.authorization.nonce"),
    )
    return authorization, parse_signature(wire.signature)


def encode_payload(authorization: Authorization, signature: bytes, _offer: Offer | None = None) -> dict[str, Any]:
    """Return the `payload` member of a payment: numbers as decimal strings, bytes as 0x hex."""
    return {
        "signature": "0x" + signature.hex(),
        "authorization": {
            "from": address_text(authorization.payer),
            "to": address_text(authorization.payee),
            "value": str(authorization.value_atomic),
            "validAfter": str(authorization.valid_after_s),
            "validBefore": str(authorization.valid_before_s),
            "nonce": "0x" + authorization.nonce.hex(),
        },
    }


def digest(authorization: Authorization, offer: Offer) -> bytes:
    """Return the 32-byte EIP-712 digest the payer signs to pay `offer`."""
    return transfer_digest(authorization, offer.domain)


def transfer_digest(authorization: Authorization, domain: Domain) -> bytes:
    """Return the digest of the transfer in the token's `domain`."""
    # `word_of_…` written out: every request comes through here.
    struct_hash = keccak(
        b"".join(
            (
                _TYPE_HASH,
                ADDRESS_PADDING,
                authorization.payer,
                ADDRESS_PADDING,
                authorization.payee,
                authorization.value_atomic.to_bytes(32, "big"),
                authorization.valid_after_s.to_bytes(32, "big"),
                authorization.valid_before_s.to_bytes(32, "big"),
                authorization.nonce,
            )
        )
    )
    return signing_digest(domain.separator, struct_hash)


def cancel_digest(payer: Address, nonce: bytes, domain: Domain) -> bytes:
    """Return the digest with which the payer revokes an unused authorization; anybody may submit it."""
    return signing_digest(domain.separator, keccak(_CANCEL_TYPE_HASH + word_of_address(payer) + nonce))


def check_terms(authorization: Authorization, offer: Offer, now_s: int, margin_s: int) -> None:
    """Raise the first `PaymentRefused` leaf that applies to what is signed; no I/O, no clock, no signature.

    `margin_s` is how long the authorization must stay valid after `now_s`.
    """
    if authorization.payee != offer.pay_to:
        raise RecipientMismatch(f"payload.authorization.to: pays {address_text(authorization.payee)}, not our payTo")
    if authorization.value_atomic != offer.amount_atomic:
        raise AmountMismatch(
            f"payload.authorization.value: the price is {offer.amount_atomic}, got {authorization.value_atomic}"
        )
    if authorization.valid_before_s < now_s + margin_s:
        raise PaymentExpired(f"payload.authorization.validBefore: must be at least {margin_s} s ahead")
    if authorization.valid_after_s > now_s:
        raise PaymentNotYetValid("payload.authorization.validAfter: lies in the future")
    if authorization.payer == ZERO:
        raise InvalidSignature("payload.authorization.from: the zero address signs nothing")


def settle_call(
    authorization: Authorization,
    signature: bytes,
    token: Address,
    _amount_atomic: int,
    *,
    contract_payer: bool = False,
    permit: TokenPermit | None = None,  # noqa: ARG001 - nobody is approved on this rail
) -> Call:
    """Return the token's `transferWithAuthorization`: its (v, r, s) form for an account, its bytes form for a contract.

    It moves the whole value, whatever amount is due.
    """
    if not contract_payer:
        return Call(token, transfer_call(authorization, signature))
    return Call(
        token,
        b"".join(
            (_SETTLE_BYTES_SELECTOR, *_transfer_words(authorization), word_of_uint(7 * 32), padded_bytes(signature))
        ),
    )


def transfer_call(authorization: Authorization, signature: bytes) -> bytes:
    """Return calldata of `transferWithAuthorization` in its (v, r, s) form, for a payer without code."""
    v, r, s = vrs(signature)
    return b"".join((_SETTLE_SELECTOR, *_transfer_words(authorization), word_of_uint(v), r, s))


def _transfer_words(authorization: Authorization) -> tuple[bytes, ...]:
    return (
        word_of_address(authorization.payer),
        word_of_address(authorization.payee),
        word_of_uint(authorization.value_atomic),
        word_of_uint(authorization.valid_after_s),
        word_of_uint(authorization.valid_before_s),
        authorization.nonce,
    )


def cancel_call(payer: Address, nonce: bytes, signature: bytes) -> bytes:
    """Return calldata of `cancelAuthorization` with a signature over `cancel_digest`."""
    v, r, s = vrs(signature)
    return b"".join((_CANCEL_SELECTOR, word_of_address(payer), nonce, word_of_uint(v), r, s))


def was_paid(logs: Iterable[dict[str, Any]], authorization: Authorization, token: Address) -> bool:
    """Tell whether one transaction's `logs` (JSON-RPC objects) burnt the nonce *and* moved exactly the value.

    Both events are needed: a token may burn the nonce of a failed transfer, and a plain transfer of the same value
    proves nothing about this authorization.
    """
    payer, payee = ("0x" + word_of_address(party).hex() for party in (authorization.payer, authorization.payee))
    value = "0x" + word_of_uint(authorization.value_atomic).hex()
    used = moved = False
    for log in logs:
        if str(log["address"]).lower() != "0x" + token.hex():
            continue
        topics = [str(topic).lower() for topic in log["topics"]]
        if topics == [AUTHORIZATION_USED_TOPIC, payer, "0x" + authorization.nonce.hex()]:
            used = True
        elif topics == [TRANSFER_TOPIC, payer, payee] and str(log["data"]).lower() == value:
            moved = True
    return used and moved


def logs_by_authorization(logs: Sequence[Log], token: Address) -> dict[tuple[str, str], list[Log]]:
    """Return one transaction's token logs, by the (payer, nonce) topics of the authorization they belong to.

    In a batch, only the logs from its own nonce to the next nonce count: another payment of the same payer and value
    must not pass for this one.
    """
    token_text = "0x" + token.hex()
    ours = [log for log in logs if str(log["address"]).lower() == token_text and log["topics"]]
    starts = [index for index, log in enumerate(ours) if str(log["topics"][0]).lower() == AUTHORIZATION_USED_TOPIC]
    if len(starts) == 1:
        return {_key_topics(ours[starts[0]]): ours}
    return {_key_topics(ours[start]): ours[start:end] for start, end in pairwise([*starts, len(ours)])}


def paid_by(logs: dict[tuple[str, str], list[Log]], authorization: Authorization, token: Address) -> bool:
    """Tell whether a transaction, given by its `logs_by_authorization`, shows this authorization paid."""
    key = "0x" + word_of_address(authorization.payer).hex(), "0x" + authorization.nonce.hex()
    return was_paid(logs.get(key, ()), authorization, token)


def _key_topics(used: Log) -> tuple[str, str]:
    payer, nonce = used["topics"][1:3]
    return str(payer).lower(), str(nonce).lower()

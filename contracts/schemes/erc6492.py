"""ERC-6492: the signature of a wallet that is not deployed yet, wrapped with the call that deploys it.

The wrapper is the ABI's (address factory, bytes call data, bytes signature), then 32 bytes that no other signature ends
with. Whoever settles runs the factory's code: only factories one has chosen may be called. Source: ERC-6492.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.address import Address
from contracts.errors import MalformedMessage
from contracts.schemes.authorization import Call
from contracts.typed_data import padded_bytes, word_of_address, word_of_uint

__all__ = ["MAGIC", "Wrapped", "bare", "unwrap", "wrap"]

MAGIC = bytes.fromhex("6492" * 16)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """The wallet's signature, and the factory call that makes the wallet."""

    deployment: Call
    signature: bytes


def unwrap(signature: bytes) -> Wrapped | None:
    """Return the parts of a wrapped signature; None for one that is not wrapped. Raises `MalformedMessage`."""
    if not signature.endswith(MAGIC):
        return None
    body = signature[: -len(MAGIC)]
    if len(body) < 96 or any(body[:12]):
        raise _malformed()
    factory = Address(body[12:32])
    return Wrapped(Call(factory, _tail(body, 32)), _tail(body, 64))


def bare(signature: bytes) -> bytes:
    """Return what the wallet itself is asked about: the inner signature of a wrapped one, else the same."""
    wrapped = unwrap(signature)
    return signature if wrapped is None else wrapped.signature


def wrap(deployment: Call, signature: bytes) -> bytes:
    """Return `signature` wrapped with the call that deploys its wallet."""
    data = padded_bytes(deployment.data)
    head = word_of_address(deployment.to) + word_of_uint(96) + word_of_uint(96 + len(data))
    return head + data + padded_bytes(signature) + MAGIC


def _tail(body: bytes, place: int) -> bytes:
    """Return the `bytes` whose offset stands at `place`."""
    offset = int.from_bytes(body[place : place + 32], "big")
    length = int.from_bytes(body[offset : offset + 32], "big") if offset <= len(body) - 32 else len(body)
    if offset + 32 + length > len(body):
        raise _malformed()
    return body[offset + 32 : offset + 32 + length]


def _malformed() -> MalformedMessage:
    return MalformedMessage("payload.signature: ends like ERC-6492 and is not its wrapper")

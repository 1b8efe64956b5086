"""secp256k1 signatures: make them from a key, recover the signer, refuse every malleable form.

libsecp256k1 (through coincurve) is a hard requirement, without fallback: a pure-Python curve is 200 times slower.
`recover` is most of what a seller computes for a request, so it calls the library itself; coincurve's own `PublicKey`
makes three more objects on the way.
Sources: EIP-2 (low s), EIP-3009 reference token (v 27/28), SEC 2 (curve order).
"""

from __future__ import annotations

import threading

from coincurve import PrivateKey, PublicKey
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found, unused-ignore]
from coincurve.context import GLOBAL_CONTEXT

from contracts.address import Address
from contracts.errors import InvalidSignature, MalformedMessage, SignerFailed
from contracts.fields import hex_bytes
from contracts.keccak import keccak
from contracts.limits import SIGNATURE_BYTES_MAX

__all__ = ["ACCOUNT_SIGNATURE_BYTES", "SigningKey", "parse_signature", "recover", "vrs"]

# r, s and v of an account without code; what a contract takes for a signature has any length, this one included.
ACCOUNT_SIGNATURE_BYTES = 65

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_LOW_S_MAX = (_ORDER // 2).to_bytes(32, "big")
_ZERO_WORD = bytes(32)
_RECOVERY_ID = {0: 0, 1: 1, 27: 0, 28: 1}


class _Scratch(threading.local):
    """Where one thread's calls of the library write: parsed signature, recovered point, its bytes, their number.

    Other threads run while the library computes, so no two may share it.
    """

    def __init__(self) -> None:
        self.parts = (
            ffi.new("secp256k1_ecdsa_recoverable_signature *"),
            ffi.new("secp256k1_pubkey *"),
            ffi.new("unsigned char[65]"),
            ffi.new("size_t *", 65),
        )


_SCRATCH = _Scratch()


class SigningKey:
    """A private key in memory. Only signers and settlers hold one; the gateway never does."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        """Take the 32 secret bytes. Raises `SignerFailed` for another length, zero, or a value past the curve order."""
        # coincurve would pad a truncated secret to another, valid key.
        try:
            self._key = PrivateKey(secret if len(secret) == 32 else b"")
        except ValueError:
            raise SignerFailed("the key is not a valid secp256k1 secret of 32 bytes") from None
        self.address = _address_of(self._key.public_key)

    def sign(self, digest: bytes) -> bytes:
        """Return r ‖ s ‖ v (65 bytes, low s, v 27 or 28) over a 32-byte digest. Deterministic (RFC 6979)."""
        signed = self._key.sign_recoverable(digest, hasher=None)
        return signed[:64] + bytes((27 + signed[64],))

    def __repr__(self) -> str:
        return f"SigningKey(0x{self.address.hex()})"


def parse_signature(text: object, field: str = "payload.signature") -> bytes:
    """Return the bytes of a hex signature of any length up to the cap. Raises `MalformedMessage`."""
    data = hex_bytes(text)
    if data is None or len(data) > SIGNATURE_BYTES_MAX:
        raise MalformedMessage(f"{field}: expected 0x and an even number of hex digits")
    return data


def recover(digest: bytes, signature: bytes) -> Address:
    """Return the address whose key signed the 32-byte `digest`.

    Accepts 65 bytes with v in {0, 1, 27, 28}. Raises `InvalidSignature` for any other length or v, for r or s zero,
    and for high s, which the token would refuse on chain.
    """
    if len(signature) != ACCOUNT_SIGNATURE_BYTES:
        raise InvalidSignature(f"signature: expected 65 bytes, got {len(signature)}")
    recovery_id = _RECOVERY_ID.get(signature[64])
    if recovery_id is None:
        raise InvalidSignature(f"signature: v must be 27 or 28, got {signature[64]}")
    if signature[32:64] > _LOW_S_MAX:
        raise InvalidSignature("signature: s lies in the upper half of the curve order, which tokens refuse")
    assert len(digest) == 32
    context = GLOBAL_CONTEXT.ctx
    parsed, point, uncompressed, size = _SCRATCH.parts
    if not (
        lib.secp256k1_ecdsa_recoverable_signature_parse_compact(context, parsed, signature, recovery_id)
        and lib.secp256k1_ecdsa_recover(context, point, parsed, digest)
    ):
        zero = _ZERO_WORD in (signature[:32], signature[32:64])
        raise InvalidSignature(f"signature: {'r and s must not be zero' if zero else 'no public key fits it'}")
    lib.secp256k1_ec_pubkey_serialize(context, uncompressed, size, point, lib.SECP256K1_EC_UNCOMPRESSED)
    return Address(keccak(ffi.buffer(uncompressed)[1:])[12:])


def vrs(signature: bytes) -> tuple[int, bytes, bytes]:
    """Split 65 checked bytes into (v 27/28, r, s), the form `transferWithAuthorization` takes."""
    v = signature[64]
    return (v if v >= 27 else v + 27), signature[:32], signature[32:64]


def _address_of(public_key: PublicKey) -> Address:
    return Address(keccak(public_key.format(compressed=False)[1:])[12:])

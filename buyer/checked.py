"""No signature is believed before it was checked, whoever made it."""

from __future__ import annotations

from contracts.address import Address, address_text
from contracts.errors import InvalidSignature, SignerFailed
from contracts.signature import recover

__all__ = ["checked_signature"]


def checked_signature(digest: bytes, signature: bytes, expected: Address) -> bytes:
    """Return the 65 bytes of `expected` over `digest`, with v 27 or 28. Raises `SignerFailed` for anything else."""
    try:
        signer = recover(digest, signature)
    except InvalidSignature as error:
        raise SignerFailed(f"the signer's {error.message}") from None
    if signer != expected:
        raise SignerFailed(f"the signature is {address_text(signer)}'s, not {address_text(expected)}'s")
    return signature if signature[64] >= 27 else signature[:64] + bytes((signature[64] + 27,))

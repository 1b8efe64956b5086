"""Keccak-256, from the fastest library present."""

from __future__ import annotations

__all__ = ["keccak"]

try:
    from sha3 import keccak_256 as _keccak_256  # type: ignore[import-not-found, unused-ignore]

    def keccak(data: bytes) -> bytes:
        """Return the 32-byte Keccak-256 of `data` (the pre-standard padding Ethereum uses)."""
        digest: bytes = _keccak_256(data).digest()
        return digest

except ImportError:  # no wheel of safe-pysha3 for this platform
    from Crypto.Hash import keccak as _keccak_module

    def keccak(data: bytes) -> bytes:
        """Return the 32-byte Keccak-256 of `data` (the pre-standard padding Ethereum uses)."""
        return _keccak_module.new(data=data, digest_bits=256).digest()

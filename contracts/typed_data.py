"""EIP-712 digests by byte concatenation.

The structs x402 signs have only static members, so a struct hash is the Keccak of 32-byte words; no general encoder is
needed on the hot path. Source: EIP-712.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from contracts.address import Address
from contracts.keccak import keccak

__all__ = ["ADDRESS_PADDING", "Domain", "padded_bytes", "signing_digest", "word_of_address", "word_of_uint"]

_DOMAIN_TYPE_HASH = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
ADDRESS_PADDING = bytes(12)


@dataclass(frozen=True, slots=True)
class Domain:
    """The EIP-712 domain of a token: a signature made for one domain is worthless in any other.

    `separator` is its hash, 32 bytes, which the token also tells as `DOMAIN_SEPARATOR()`.
    """

    name: str
    version: str
    chain_id: int
    verifying_contract: Address
    separator: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        separator = _separator(self.name, self.version, self.chain_id, self.verifying_contract)
        object.__setattr__(self, "separator", separator)


def signing_digest(separator: bytes, struct_hash: bytes) -> bytes:
    """Return keccak(0x1901 ‖ separator ‖ struct hash), the 32 bytes that are signed."""
    return keccak(b"\x19\x01" + separator + struct_hash)


@lru_cache(maxsize=1024)
def _separator(name: str, version: str, chain_id: int, contract: Address) -> bytes:
    return keccak(
        _DOMAIN_TYPE_HASH
        + keccak(name.encode())
        + keccak(version.encode())
        + word_of_uint(chain_id)
        + word_of_address(contract)
    )


def word_of_uint(value: int) -> bytes:
    """Return a uint256 as 32 big-endian bytes. Raises OverflowError outside [0, 2**256)."""
    return value.to_bytes(32, "big")


def word_of_address(address: bytes) -> bytes:
    """Return a 20-byte address left-padded to 32 bytes."""
    return ADDRESS_PADDING + address


def padded_bytes(data: bytes) -> bytes:
    """Return a `bytes` argument as the ABI lays it out behind the head: its length, then whole words."""
    return word_of_uint(len(data)) + data + bytes(-len(data) % 32)

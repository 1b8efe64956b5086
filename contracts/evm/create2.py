"""Contracts at addresses that follow from their code, by the deployer that stands on every chain (EIP-1014)."""

from __future__ import annotations

from contracts.address import Address
from contracts.keccak import keccak
from contracts.schemes.authorization import Call

__all__ = ["create2_address", "deployed_address", "deployment"]

# Arachnid's deterministic deployer: calldata is salt ‖ creation code.
_DEPLOYER = Address(bytes.fromhex("4e59b44847b379578588920cA78FbF26c0B4956C"))
_SALT = bytes(32)


def create2_address(creator: Address, salt: bytes, creation_code: bytes) -> Address:
    """Return where `creator` puts a contract with this 32-byte salt."""
    return Address(keccak(b"\xff" + creator + salt + keccak(creation_code))[12:])


def deployed_address(creation_code: bytes) -> Address:
    """Return where `deployment` puts a contract."""
    return create2_address(_DEPLOYER, _SALT, creation_code)


def deployment(creation_code: bytes) -> Call:
    """Return the call that puts a contract at its address; anybody may send it, once."""
    return Call(_DEPLOYER, _SALT + creation_code)

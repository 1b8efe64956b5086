"""Strict readers for the numbers and bytes of wire messages: one spelling, ASCII only, bounded."""

from __future__ import annotations

from binascii import unhexlify

from contracts.address import Address
from contracts.errors import MalformedMessage
from contracts.limits import UINT_DIGITS_MAX

__all__ = ["hex_bytes", "wire_address", "wire_bytes32", "wire_uint256"]

_UINT256_MAX = 2**256 - 1


def hex_bytes(text: object) -> bytes | None:
    """Return the bytes that `0x` and an even number of hex digits spell, or None for anything else."""
    if not isinstance(text, str) or not text.startswith("0x"):
        return None
    try:
        # Not `bytes.fromhex`, which passes over spaces.
        return unhexlify(text[2:])
    except ValueError:
        return None


def wire_uint256(text: object, field: str) -> int:
    """Return the integer of a decimal string. Raises `MalformedMessage` for signs, spaces, separators, leading zeros,
    other digits than ASCII, JSON numbers, and values past uint256."""
    if (
        isinstance(text, str)
        and 0 < len(text) <= UINT_DIGITS_MAX
        and text.isascii()
        and text.isdigit()
        and (text[0] != "0" or text == "0")
    ):
        value = int(text)
        if value <= _UINT256_MAX:
            return value
    raise MalformedMessage(f'{field}: expected a decimal string of a uint256, as "1000", got {str(text)[:40]!r}')


def wire_address(text: object, field: str) -> Address:
    """Return the 20 bytes of an address in any letter case. Raises `MalformedMessage`."""
    address = hex_bytes(text)
    if address is not None and len(address) == 20:
        return Address(address)
    raise MalformedMessage(f"{field}: expected 0x and 40 hex digits, got {str(text)[:60]!r}")


def wire_bytes32(text: object, field: str) -> bytes:
    """Return the 32 bytes of `0x` + 64 hex digits. Raises `MalformedMessage`."""
    data = hex_bytes(text)
    if data is not None and len(data) == 32:
        return data
    raise MalformedMessage(f"{field}: expected 0x and 64 hex digits, got {str(text)[:80]!r}")

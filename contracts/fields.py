"""Strict readers for the numbers and bytes of wire messages: one spelling, ASCII only, bounded."""

from __future__ import annotations

import re

from contracts.address import Address
from contracts.errors import MalformedMessage
from contracts.limits import UINT_DIGITS_MAX

__all__ = ["wire_address", "wire_bytes32", "wire_uint256"]

_DIGITS = re.compile(rf"0|[1-9][0-9]{{0,{UINT_DIGITS_MAX - 1}}}", re.ASCII)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_BYTES32 = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_UINT256_MAX = 2**256 - 1


def wire_uint256(text: object, field: str) -> int:
    """Return the integer of a decimal string. Raises `MalformedMessage` for signs, spaces, separators, leading zeros,
    other digits than ASCII, JSON numbers, and values past uint256."""
    if isinstance(text, str) and _DIGITS.fullmatch(text):
        value = int(text)
        if value <= _UINT256_MAX:
            return value
    raise MalformedMessage(f'{field}: expected a decimal string of a uint256, as "1000", got {str(text)[:40]!r}')


def wire_address(text: object, field: str) -> Address:
    """Return the 20 bytes of an address in any letter case. Raises `MalformedMessage`."""
    if isinstance(text, str) and _ADDRESS.fullmatch(text):
        return Address(bytes.fromhex(text[2:]))
    raise MalformedMessage(f"{field}: expected 0x and 40 hex digits, got {str(text)[:60]!r}")


def wire_bytes32(text: object, field: str) -> bytes:
    """Return the 32 bytes of `0x` + 64 hex digits. Raises `MalformedMessage`."""
    if isinstance(text, str) and _BYTES32.fullmatch(text):
        return bytes.fromhex(text[2:])
    raise MalformedMessage(f"{field}: expected 0x and 64 hex digits, got {str(text)[:80]!r}")

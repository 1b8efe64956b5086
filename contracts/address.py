"""EVM addresses: 20 bytes inside, EIP-55 text at the rim."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NewType

from contracts.errors import MalformedMessage, UsageError
from contracts.keccak import keccak

__all__ = ["ZERO", "Address", "address_text", "parse_address"]

Address = NewType("Address", bytes)

ZERO = Address(bytes(20))

_HEX_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)


def parse_address(text: object, field: str = "address") -> Address:
    """Return the 20 bytes of a `0x` + 40 hex digits address, in any letter case.

    A mixed-case address must carry a correct EIP-55 checksum, so that a typing error does not pay a stranger.
    Raises `MalformedMessage` naming `field`, `UsageError` where that is an option of a command, or an ARGUMENT.
    """
    wrong = UsageError if field.startswith("--") or field.isupper() else MalformedMessage
    if not isinstance(text, str) or not _HEX_ADDRESS.fullmatch(text):
        raise wrong(f"{field}: expected 0x and 40 hex digits, got {_shown(text)}")
    address = Address(bytes.fromhex(text[2:]))
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and address_text(address) != text:
        raise wrong(f"{field}: the checksum of {text} is wrong; a character was mistyped")
    return address


@lru_cache(maxsize=4096)
def address_text(address: bytes) -> str:
    """Return the EIP-55 checksummed text of a 20-byte address."""
    digits = address.hex()
    mask = keccak(digits.encode()).hex()
    return "0x" + "".join(
        digit.upper() if int(nibble, 16) > 7 else digit for digit, nibble in zip(digits, mask, strict=False)
    )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."

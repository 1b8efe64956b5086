"""Money: integers in atomic units, and the decimals a person reads.

A price is never a float. Text becomes an integer once, at the rim, by `parse_amount`, and goes back to text by
`format_amount`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from contracts.address import Address, address_text
from contracts.errors import UsageError

__all__ = ["AMOUNT_ATOMIC_MAX", "Asset", "format_amount", "parse_amount"]

# EVM tokens count in uint256.
AMOUNT_ATOMIC_MAX = 2**256 - 1

_ATOMIC = re.compile(r"([0-9]{1,78}) atomic", re.ASCII)
_DECIMAL = re.compile(r"\$?([0-9]{1,60})(?:\.([0-9]{1,60}))?", re.ASCII)
_DOLLAR_SYMBOLS = ("USD", "DAI")


@dataclass(frozen=True, slots=True)
class Asset:
    """A token: where it lives, its EIP-712 domain name and version, and how it is shown.

    `decimals` is the token's own; nothing in Farebox assumes 6. `has_permit` says whether an EIP-2612 permit can stand
    in for the payer's approval of Permit2, `has_eip3009` whether it is moved without Permit2; both in the named domain.
    """

    address: Address
    name: str
    version: str
    decimals: int
    symbol: str
    has_eip3009: bool = field(default=True, compare=False)
    has_permit: bool = field(default=False, compare=False)

    @property
    def address_text(self) -> str:
        """The EIP-55 checksummed address."""
        return address_text(self.address)

    @property
    def is_dollar(self) -> bool:
        """Whether `$0.01` may name an amount of this asset."""
        return any(mark in self.symbol.upper() for mark in _DOLLAR_SYMBOLS)


def parse_amount(
    text: object, asset: Asset, field: str = "amount", *, zero_allowed: bool = False, rounds_down: bool = False
) -> int:
    """Return the atomic units meant by `0.01`, `$0.01`, `0.01 USDC` or `1000 atomic`.

    Refused with `UsageError` naming `field`: floats and other types, `0,01`, signs, exponents, NaN, more decimals
    than the asset has, zero (unless `zero_allowed`), a symbol of another asset, and `$` for a non-dollar asset. With
    `rounds_down`, decimals that the asset does not have are dropped: for a limit that holds for several assets.
    """
    if not isinstance(text, str):
        raise UsageError(f'{field}: write the amount in quotes, as "0.01", got {text!r}')
    stripped = text.strip()
    amount_atomic = _amount_atomic(stripped, asset, field, rounds_down=rounds_down)
    if amount_atomic > AMOUNT_ATOMIC_MAX:
        raise UsageError(f"{field}: {stripped} is more than a token can count")
    if amount_atomic == 0 and not zero_allowed:
        raise UsageError(f"{field}: the amount must be more than zero")
    return amount_atomic


def _amount_atomic(text: str, asset: Asset, field: str, *, rounds_down: bool) -> int:
    if atomic := _ATOMIC.fullmatch(text):
        return int(atomic[1])
    number, _, symbol = text.partition(" ")
    decimal = _DECIMAL.fullmatch(number)
    if decimal is None:
        raise UsageError(
            f'{field}: expected digits with a decimal point, as "0.01", "$0.01" or "1000 atomic", got {text[:60]!r}'
        )
    if symbol and symbol != asset.symbol:
        raise UsageError(f"{field}: the asset is {asset.symbol}, not {symbol[:20]}")
    if number.startswith("$") and not asset.is_dollar:
        raise UsageError(f"{field}: {asset.symbol} is not a dollar token; write the amount without $")
    whole, fraction = decimal[1], decimal[2] or ""
    if rounds_down:
        fraction = fraction[: asset.decimals]
    if len(fraction) > asset.decimals:
        raise UsageError(f"{field}: {asset.symbol} has {asset.decimals} decimals, {text[:60]!r} has {len(fraction)}")
    units_per_token: int = 10**asset.decimals
    return int(whole) * units_per_token + int(fraction.ljust(asset.decimals, "0") or "0")


def format_amount(amount_atomic: int, asset: Asset, *, symbol: bool = True) -> str:
    """Return the exact decimal text, with at least two decimals: 1000 → `0.001 USDC`."""
    sign = "-" if amount_atomic < 0 else ""
    whole, fraction = divmod(abs(amount_atomic), 10**asset.decimals)
    digits = str(fraction).rjust(asset.decimals, "0").rstrip("0").ljust(min(2, asset.decimals), "0")
    number = f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
    return f"{number} {asset.symbol}" if symbol else number

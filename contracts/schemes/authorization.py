"""What a payer signs, the same six values on every rail, and the call that takes it to the chain."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from contracts.address import Address

__all__ = ["Authorization", "Call"]


class Authorization(msgspec.Struct, frozen=True, omit_defaults=True):
    """The right to move `value_atomic` of one token from `payer` to `payee`, once, between two times in unix seconds.

    `value_atomic` is the price, or for `upto` the most that may be charged. `nonce` is 32 bytes: EIP-3009's, or
    Permit2's uint256, big-endian. `valid_before_s` is EIP-3009's validBefore, or Permit2's deadline, at which the chain
    would still settle: here the time is over on both. `facilitator` is the only account that may settle (`upto`); None
    where anybody may.
    """

    payer: Address
    payee: Address
    value_atomic: int
    valid_after_s: int
    valid_before_s: int
    nonce: bytes
    facilitator: Address | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A contract call without ether."""

    to: Address
    data: bytes

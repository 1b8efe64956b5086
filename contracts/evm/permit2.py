"""Reads of Permit2 and of what a token lets it move, batched into one round trip where they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contracts.address import Address, address_text
from contracts.evm.rpc import Rpc
from contracts.evm.token import bytes_of, call_object, integer_of
from contracts.keccak import keccak
from contracts.networks import PERMIT2
from contracts.typed_data import word_of_address, word_of_uint

__all__ = ["Permit2", "Permit2Facts", "approve_data"]

_ALLOWANCE = keccak(b"allowance(address,address)")[:4]
_APPROVE = keccak(b"approve(address,uint256)")[:4]
_DOMAIN_SEPARATOR = keccak(b"DOMAIN_SEPARATOR()")[:4]
_NONCE_BITMAP = keccak(b"nonceBitmap(address,uint256)")[:4]


@dataclass(frozen=True, slots=True)
class Permit2Facts:
    """What must be true before anything is signed. `domain_separator` is None where there is no Permit2."""

    domain_separator: bytes | None
    proxy_has_code: bool
    allowance_atomic: int


class Permit2:
    """Permit2 on the chain behind `rpc`. Every method raises `ChainUnavailable` when no endpoint answers."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    async def facts(self, proxy: Address, token: Address, owner: Address) -> Permit2Facts:
        """Return Permit2's domain, whether `proxy` is there, and how much of `token` Permit2 may move for `owner`."""
        code, separator, proxy_code, allowance = await self._rpc.batch(
            [
                ("eth_getCode", [address_text(PERMIT2), "latest"]),
                ("eth_call", [call_object(PERMIT2, _DOMAIN_SEPARATOR), "latest"]),
                ("eth_getCode", [address_text(proxy), "latest"]),
                ("eth_call", [call_object(token, _allowance_data(owner)), "latest"]),
            ]
        )
        is_there = bytes_of(code, "eth_getCode") != b""
        return Permit2Facts(
            domain_separator=bytes_of(separator, "DOMAIN_SEPARATOR") if is_there else None,
            proxy_has_code=bytes_of(proxy_code, "eth_getCode") != b"",
            allowance_atomic=integer_of(allowance, "allowance"),
        )

    async def allowance(self, token: Address, owner: Address) -> int:
        """Return how much of `token` Permit2 may move for `owner`, in atomic units."""
        answer = await self._rpc.call("eth_call", call_object(token, _allowance_data(owner)), "latest")
        return integer_of(answer, "allowance")

    async def bitmaps(self, owner: Address, words: Sequence[int]) -> list[int]:
        """Return, for each word of `owner`'s nonces, its 256 bits: set are those used or revoked."""
        head = _NONCE_BITMAP + word_of_address(owner)
        answers = await self._rpc.batch(
            [("eth_call", [call_object(PERMIT2, head + word_of_uint(word)), "latest"]) for word in words]
        )
        return [integer_of(answer, "nonceBitmap") for answer in answers]


def approve_data(amount_atomic: int) -> bytes:
    """Return calldata of the token's `approve` by which its holder lets Permit2 move up to `amount_atomic`."""
    return _APPROVE + word_of_address(PERMIT2) + word_of_uint(amount_atomic)


def _allowance_data(owner: Address) -> bytes:
    return _ALLOWANCE + word_of_address(owner) + word_of_address(PERMIT2)

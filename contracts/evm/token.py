"""Reads of an EIP-3009 token and of its payers, batched into one round trip where they belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Reader, RpcRefused
from contracts.keccak import keccak
from contracts.networks import PERMIT2
from contracts.schemes.exact_eip3009 import AUTHORIZATION_CANCELED_TOPIC, AUTHORIZATION_USED_TOPIC
from contracts.typed_data import word_of_address

__all__ = [
    "Head",
    "PayerFacts",
    "Token",
    "TokenFacts",
    "allowance_data",
    "bytes_of",
    "call_object",
    "chain_id_of",
    "count_of",
    "integer_of",
    "read_head",
]

_BALANCE_OF = keccak(b"balanceOf(address)")[:4]
_AUTHORIZATION_STATE = keccak(b"authorizationState(address,bytes32)")[:4]
_DOMAIN_SEPARATOR = keccak(b"DOMAIN_SEPARATOR()")[:4]
_DECIMALS = keccak(b"decimals()")[:4]
_ALLOWANCE = keccak(b"allowance(address,address)")[:4]
_PAUSED = keccak(b"paused()")[:4]
_WORD_END = 2**256
_COUNT_END = 2**63


@dataclass(frozen=True, slots=True)
class Head:
    """The latest block: its number, and its timestamp, which is the time the chain judges validity by."""

    number: int
    timestamp_s: int


@dataclass(frozen=True, slots=True)
class PayerFacts:
    """What the chain says of a payer: its balance, and whether it is a contract (EIP-7702 included).

    `allowance_atomic` is how much Permit2 may move for it; None when that was not asked.
    """

    balance_atomic: int
    has_code: bool
    allowance_atomic: int | None = None


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What the chain says of a token. `domain_separator` and `decimals` are None when the token does not tell them.

    `has_eip3009` tells whether it answers for nonces (`authorizationState`), as every token with EIP-3009 does.
    """

    chain_id: int
    has_code: bool
    domain_separator: bytes | None
    decimals: int | None
    has_eip3009: bool


def call_object(to: Address, data: bytes) -> dict[str, str]:
    """Return the first parameter of `eth_call`."""
    return {"to": address_text(to), "data": "0x" + data.hex()}


async def read_head(rpc: Reader) -> Head:
    """Return number and timestamp of the latest block. Raises `ChainUnavailable`."""
    block = await rpc.call("eth_getBlockByNumber", "latest", False)
    if not isinstance(block, dict):
        raise ChainUnavailable("eth_getBlockByNumber: the answer is not a block")
    return Head(count_of(block.get("number"), "a block's number"), count_of(block.get("timestamp"), "a block's time"))


async def chain_id_of(rpc: Reader) -> int:
    """Return the id of the chain behind `rpc`. Raises `ChainUnavailable`."""
    return count_of(await rpc.call("eth_chainId"), "eth_chainId")


class Token:
    """An EIP-3009 token on the chain behind `rpc`. Every method raises `ChainUnavailable` when no endpoint answers."""

    def __init__(self, rpc: Reader, address: Address) -> None:
        self._rpc = rpc
        self.address = address

    async def facts(self) -> TokenFacts:
        """Return what must be true before anything is signed for this token."""
        chain_id, code, separator, decimals, nonce = await self._rpc.batch(
            [
                ("eth_chainId", []),
                ("eth_getCode", [address_text(self.address), "latest"]),
                ("eth_call", [call_object(self.address, _DOMAIN_SEPARATOR), "latest"]),
                ("eth_call", [call_object(self.address, _DECIMALS), "latest"]),
                ("eth_call", [call_object(self.address, _AUTHORIZATION_STATE + bytes(64)), "latest"]),
            ]
        )
        return TokenFacts(
            chain_id=integer_of(chain_id, "eth_chainId"),
            has_code=bytes_of(code, "eth_getCode") != b"",
            domain_separator=_word(separator),
            decimals=None if (word := _word(decimals)) is None else int.from_bytes(word, "big"),
            has_eip3009=_word(nonce) is not None,
        )

    async def payer_facts(self, payer: Address, *, permit2: bool = False) -> PayerFacts:
        """Return balance and code presence of `payer`, and with `permit2` its allowance, in one round trip."""
        calls: list[tuple[str, list[Any]]] = [
            ("eth_call", [call_object(self.address, _BALANCE_OF + word_of_address(payer)), "latest"]),
            ("eth_getCode", [address_text(payer), "latest"]),
        ]
        if permit2:
            calls.append(("eth_call", [call_object(self.address, allowance_data(payer)), "latest"]))
        balance, code, *allowance = await self._rpc.batch(calls)
        return PayerFacts(
            integer_of(balance, "balanceOf"),
            bytes_of(code, "eth_getCode") != b"",
            integer_of(allowance[0], "allowance") if allowance else None,
        )

    async def balance_of(self, owner: Address) -> int:
        """Return the atomic balance of `owner`."""
        data = _BALANCE_OF + word_of_address(owner)
        return integer_of(await self._rpc.call("eth_call", call_object(self.address, data), "latest"), "balanceOf")

    async def has_eip3009(self) -> bool:
        """Return whether the token answers `authorizationState`, as every token with EIP-3009 does."""
        data = _AUTHORIZATION_STATE + bytes(64)
        (state,) = await self._rpc.batch([("eth_call", [call_object(self.address, data), "latest"])])
        return _word(state) is not None

    async def is_paused(self) -> bool:
        """Tell whether the token says that it moves nothing for anybody now (`paused`, as USDC does)."""
        return await self.says(_PAUSED)

    async def says(self, question: bytes) -> bool:
        """Ask a question of yes or no, as call data; a token that does not know it says no."""
        try:
            answer = await self._rpc.call("eth_call", call_object(self.address, question), "latest")
            return int(answer, 16) == 1
        except (RpcRefused, TypeError, ValueError):
            return False

    async def used_nonces(self, payer: Address, nonces: list[bytes]) -> list[bool]:
        """Return, for each 32-byte nonce, whether the token holds it used or revoked (`authorizationState`)."""
        head = _AUTHORIZATION_STATE + word_of_address(payer)
        states = await self._rpc.batch(
            [("eth_call", [call_object(self.address, head + nonce), "latest"]) for nonce in nonces]
        )
        return [integer_of(state, "authorizationState") != 0 for state in states]

    async def nonce_events(self, payer: Address, nonce: bytes, from_block: int = 0) -> list[dict[str, Any]]:
        """Return the AuthorizationUsed and AuthorizationCanceled logs of one nonce, oldest first."""
        logs = await self._rpc.call(
            "eth_getLogs",
            {
                "address": address_text(self.address),
                "fromBlock": hex(from_block),
                "toBlock": "latest",
                "topics": [
                    [AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC],
                    "0x" + word_of_address(payer).hex(),
                    "0x" + nonce.hex(),
                ],
            },
        )
        if not isinstance(logs, list):
            raise ChainUnavailable("eth_getLogs: the answer is not a list")
        return logs


def allowance_data(owner: Address) -> bytes:
    """Return calldata that asks a token how much Permit2 may move for `owner`."""
    return _ALLOWANCE + word_of_address(owner) + word_of_address(PERMIT2)


def bytes_of(value: Any, what: str) -> bytes:
    """Return a hex answer as bytes. Raises `ChainUnavailable` naming `what` was asked."""
    if isinstance(value, RpcRefused):
        raise ChainUnavailable(f"{what}: {value.message}")
    try:
        return bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise ChainUnavailable(f"{what}: the answer is not hex") from None


def integer_of(value: Any, what: str) -> int:
    """Return a hex answer as a number of 256 bits. Raises `ChainUnavailable` naming `what` was asked."""
    return _number(value, what, _WORD_END)


def count_of(value: Any, what: str) -> int:
    """Return a hex answer as a number that stores and transactions hold: of blocks, seconds, gas, or wei per gas.

    Raises `ChainUnavailable` naming `what` was asked.
    """
    return _number(value, what, _COUNT_END)


def _number(value: Any, what: str, end: int) -> int:
    if isinstance(value, RpcRefused):
        raise ChainUnavailable(f"{what}: {value.message}")
    try:
        number = int(value, 16)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < end:
        raise ChainUnavailable(f"{what}: the answer is not such a number")
    return number


def _word(value: Any) -> bytes | None:
    """Return a 32-byte answer, or None where the contract has no such function."""
    if isinstance(value, RpcRefused):
        return None
    data = bytes_of(value, "eth_call")
    return data if len(data) == 32 else None

"""Reads of Permit2 and of what a token lets it move, batched into one round trip where they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Reader
from contracts.evm.token import allowance_data, bytes_of, call_object, integer_of
from contracts.keccak import keccak
from contracts.limits import ENDINGS_LOOKED_AT_MAX
from contracts.networks import PERMIT2
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import AUTHORIZATION_USED_TOPIC, TRANSFER_TOPIC
from contracts.schemes.permit2 import settlements_in, word_and_bit
from contracts.typed_data import word_of_address, word_of_uint

__all__ = ["Ending", "Permit2", "Permit2Facts", "approve_data", "transfers"]

_APPROVE = keccak(b"approve(address,uint256)")[:4]
_DOMAIN_SEPARATOR = keccak(b"DOMAIN_SEPARATOR()")[:4]
_NONCE_BITMAP = keccak(b"nonceBitmap(address,uint256)")[:4]
# UnorderedNonceInvalidation(address indexed owner, uint256 word, uint256 mask)
_INVALIDATION_TOPIC = "0x" + keccak(b"UnorderedNonceInvalidation(address,uint256,uint256)").hex()


@dataclass(frozen=True, slots=True)
class Permit2Facts:
    """What must be true before anything is signed. `domain_separator` is None where there is no Permit2."""

    domain_separator: bytes | None
    proxy_has_code: bool
    allowance_atomic: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a used nonce was used: `amount_atomic` moved in `transaction`, or None where the payer revoked it."""

    amount_atomic: int | None
    transaction: str
    block: int


class Permit2:
    """Permit2 on the chain behind `rpc`. Every method raises `ChainUnavailable` when no endpoint answers."""

    def __init__(self, rpc: Reader) -> None:
        self._rpc = rpc

    async def facts(self, proxy: Address, token: Address, owner: Address) -> Permit2Facts:
        """Return Permit2's domain, whether `proxy` is there, and how much of `token` Permit2 may move for `owner`."""
        code, separator, proxy_code, allowance = await self._rpc.batch(
            [
                ("eth_getCode", [address_text(PERMIT2), "latest"]),
                ("eth_call", [call_object(PERMIT2, _DOMAIN_SEPARATOR), "latest"]),
                ("eth_getCode", [address_text(proxy), "latest"]),
                ("eth_call", [call_object(token, allowance_data(owner)), "latest"]),
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
        answer = await self._rpc.call("eth_call", call_object(token, allowance_data(owner)), "latest")
        return integer_of(answer, "allowance")

    async def bitmaps(self, owner: Address, words: Sequence[int]) -> list[int]:
        """Return, for each word of `owner`'s nonces, its 256 bits: set are those used or revoked."""
        head = _NONCE_BITMAP + word_of_address(owner)
        answers = await self._rpc.batch(
            [("eth_call", [call_object(PERMIT2, head + word_of_uint(word)), "latest"]) for word in words]
        )
        return [integer_of(answer, "nonceBitmap") for answer in answers]

    async def used_nonces(self, owner: Address, nonces: Sequence[bytes]) -> list[bool]:
        """Return, for each 32-byte nonce, whether its bit is set: used or revoked. One read serves 256 of a word."""
        places = [word_and_bit(nonce) for nonce in nonces]
        words = list(dict.fromkeys(word for word, _ in places))
        bits = dict(zip(words, await self.bitmaps(owner, words), strict=True)) if words else {}
        return [bool(bits[word] >> bit & 1) for word, bit in places]

    async def ending(
        self, token: Address, authorization: Authorization, from_block: int, *, amount_atomic: int | None = None
    ) -> Ending | None:
        """Return how a nonce whose bit is set was used from a block on; None where no public trace tells.

        A payment is a transfer from payer to payee, of `amount_atomic` where that is known, in a transaction that was
        asked to settle this very permit. Each permit needs a transfer of its own; of several transactions that were
        asked for it, the first has settled it.
        """
        logs = await self._logs(
            token, from_block, [TRANSFER_TOPIC, _topic(authorization.payer), _topic(authorization.payee)]
        )
        value = None if amount_atomic is None else "0x" + word_of_uint(amount_atomic).hex()
        hashes = [str(log["transactionHash"]) for log in logs if value is None or str(log["data"]).lower() == value]
        settled: set[bytes] = set()
        for transaction in list(dict.fromkeys(hashes))[-ENDINGS_LOOKED_AT_MAX:]:
            ending = await self._ending_in(transaction, token, authorization, from_block, settled)
            if ending is not None:
                return ending
        return await self._revocation(authorization.payer, authorization.nonce, from_block)

    async def _ending_in(
        self, transaction: str, token: Address, authorization: Authorization, from_block: int, settled: set[bytes]
    ) -> Ending | None:
        """Look at one transaction. `settled` are the nonces that those before it have settled; it adds its own."""
        asked, receipt = await self._rpc.batch(
            [("eth_getTransactionByHash", [transaction]), ("eth_getTransactionReceipt", [transaction])]
        )
        if not isinstance(asked, dict) or not isinstance(receipt, dict):
            return None
        payer, payee = authorization.payer, authorization.payee
        block = integer_of(receipt["blockNumber"], "blockNumber")
        calldata = bytes_of(asked["input"], "eth_getTransactionByHash")
        settlements = {
            nonce: amount
            for nonce, amount in settlements_in(calldata, token, payer, payee).items()
            if nonce not in settled
        }
        for amount in set(settlements.values()):
            alike = [nonce for nonce in settlements if settlements[nonce] == amount]
            used = [
                nonce for nonce, is_used in zip(alike, await self.used_nonces(payer, alike), strict=True) if is_used
            ]
            moved = transfers(receipt["logs"], token, payer, payee, amount)
            if moved < len(used):
                # One that was revoked before cannot have been settled here; one that was revoked since, can.
                revoked = [await self._revocation(payer, nonce, from_block) for nonce in used]
                used = [nonce for nonce, end in zip(used, revoked, strict=True) if end is None or end.block >= block]
            if moved >= len(used):
                settled.update(used)
        if authorization.nonce not in settled:
            return None
        return Ending(settlements[authorization.nonce], transaction, block)

    async def _revocation(self, payer: Address, nonce: bytes, from_block: int) -> Ending | None:
        """Return the first revocation of a nonce from a block on. A payer may also "revoke" what is used already."""
        word, bit = word_and_bit(nonce)
        for log in await self._logs(PERMIT2, from_block, [_INVALIDATION_TOPIC, _topic(payer)]):
            stated = bytes_of(log["data"], "eth_getLogs")
            if int.from_bytes(stated[:32], "big") == word and int.from_bytes(stated[32:64], "big") >> bit & 1:
                block = integer_of(log["blockNumber"], "blockNumber")
                return Ending(None, str(log["transactionHash"]), block)
        return None

    async def _logs(self, address: Address, from_block: int, topics: list[str]) -> list[dict[str, Any]]:
        wanted = {"address": address_text(address), "fromBlock": hex(from_block), "toBlock": "latest", "topics": topics}
        logs = await self._rpc.call("eth_getLogs", wanted)
        if not isinstance(logs, list):
            raise ChainUnavailable("eth_getLogs: the answer is not a list")
        return logs


def transfers(logs: Sequence[Any], token: Address, payer: Address, payee: Address, amount_atomic: int) -> int:
    """Return how many of one transaction's `logs` are transfers of that amount from payer to payee.

    A transfer that an EIP-3009 authorization made belongs to it, and is not counted: a token burns the nonce first,
    then moves the money.
    """
    value, wanted = "0x" + word_of_uint(amount_atomic).hex(), [TRANSFER_TOPIC, _topic(payer), _topic(payee)]
    count, is_authorized = 0, False
    for log in logs:
        topics = [str(topic).lower() for topic in log["topics"]]
        if str(log["address"]).lower() != "0x" + token.hex():
            continue
        if topics[:2] == [AUTHORIZATION_USED_TOPIC, _topic(payer)]:
            is_authorized = True
        elif topics[:2] == [TRANSFER_TOPIC, _topic(payer)]:
            count += not is_authorized and topics == wanted and str(log["data"]).lower() == value
            is_authorized = False
    return count


def approve_data(amount_atomic: int) -> bytes:
    """Return calldata of the token's `approve` by which its holder lets Permit2 move up to `amount_atomic`."""
    return _APPROVE + word_of_address(PERMIT2) + word_of_uint(amount_atomic)


def _topic(address: Address) -> str:
    return "0x" + word_of_address(address).hex()

"""What the chain shows of many authorizations at once, for comparing books with it.

A used nonce alone proves nothing: its token may have paid, revoked or burnt it. Events tell which, and the transfer
counts only with the exact payer, payee and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable
from contracts.evm.permit2 import Permit2
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import (
    AUTHORIZATION_CANCELED_TOPIC,
    AUTHORIZATION_USED_TOPIC,
    Log,
    logs_by_authorization,
    paid_by,
)
from contracts.typed_data import word_of_address

__all__ = ["Fate", "Shown", "read_fates", "read_permit2_fates"]


class Fate(Enum):
    """What became of an authorization on chain."""

    UNUSED = "unused"
    PAID = "paid"
    CANCELLED = "cancelled"
    BURNT = "used without its transfer"
    # The endpoint knows the nonce as used and finds no event of it.
    UNEXPLAINED = "used, without an event that says how"


@dataclass(frozen=True, slots=True)
class Shown:
    """One authorization on chain. `transaction` and `block` are known where a trace was found.

    `amount_atomic` is what moved of a ceiling, None where that is the whole value.
    """

    fate: Fate
    transaction: str = ""
    block: int | None = None
    amount_atomic: int | None = None


async def read_fates(rpc: Rpc, token: Address, asked: Sequence[tuple[Authorization, int]]) -> list[Shown]:
    """Return what the chain shows of each authorization of one token, in order.

    `asked` pairs an authorization with the block before which it cannot have been used. Three rounds of batched
    requests, whatever their number. Raises `ChainUnavailable`.
    """
    by_payer: dict[Address, list[bytes]] = {}
    for authorization, _ in asked:
        by_payer.setdefault(authorization.payer, []).append(authorization.nonce)
    reader = Token(rpc, token)
    used = {
        (payer, nonce)
        for payer, nonces in by_payer.items()
        for nonce, is_used in zip(nonces, await reader.used_nonces(payer, nonces), strict=True)
        if is_used
    }
    of_used = [one for one in asked if (one[0].payer, one[0].nonce) in used]
    events = await rpc.batch([("eth_getLogs", [_events_filter(token, *one)]) for one in of_used]) if of_used else []
    try:
        found = {one[0].nonce: _newest(answer) for one, answer in zip(of_used, events, strict=True)}
        payments = await _payments(rpc, token, {str(log["transactionHash"]) for log in found.values() if log})
        return [
            _shown(authorization, found.get(authorization.nonce), payments, token)
            if (authorization.payer, authorization.nonce) in used
            else Shown(Fate.UNUSED)
            for authorization, _ in asked
        ]
    except (KeyError, TypeError, IndexError, ValueError):
        raise ChainUnavailable("the chain's node gave an incomplete answer") from None


async def read_permit2_fates(rpc: Rpc, token: Address, asked: Sequence[tuple[Authorization, int]]) -> list[Shown]:
    """`read_fates` for authorizations of one token over Permit2. One read tells of 256; each used one is looked up."""
    reader, used = Permit2(rpc), set[tuple[Address, bytes]]()
    for payer in {authorization.payer for authorization, _ in asked}:
        nonces = [authorization.nonce for authorization, _ in asked if authorization.payer == payer]
        states = await reader.used_nonces(payer, nonces)
        used.update((payer, nonce) for nonce, is_used in zip(nonces, states, strict=True) if is_used)
    fates = []
    for authorization, from_block in asked:
        if (authorization.payer, authorization.nonce) not in used:
            fates.append(Shown(Fate.UNUSED))
            continue
        try:
            ending = await reader.ending(token, authorization, from_block)
        except RpcRefused:
            ending = None
        if ending is None:
            fates.append(Shown(Fate.UNEXPLAINED))
        elif ending.amount_atomic is None:
            fates.append(Shown(Fate.CANCELLED, ending.transaction, ending.block))
        else:
            fates.append(Shown(Fate.PAID, ending.transaction, ending.block, ending.amount_atomic))
    return fates


def _shown(
    authorization: Authorization,
    event: Log | None,
    payments: dict[str, dict[tuple[str, str], list[Log]]],
    token: Address,
) -> Shown:
    if event is None:
        return Shown(Fate.UNEXPLAINED)
    transaction, block = str(event["transactionHash"]), int(event["blockNumber"], 16)
    if str(event["topics"][0]).lower() == AUTHORIZATION_CANCELED_TOPIC:
        return Shown(Fate.CANCELLED, transaction, block)
    paid = paid_by(payments[transaction], authorization, token)
    return Shown(Fate.PAID if paid else Fate.BURNT, transaction, block)


async def _payments(rpc: Rpc, token: Address, transactions: set[str]) -> dict[str, dict[tuple[str, str], list[Log]]]:
    """Return the token's logs of some transactions, by transaction and authorization."""
    hashes = sorted(transactions)
    receipts = await rpc.batch([("eth_getTransactionReceipt", [one]) for one in hashes]) if hashes else []
    return {one: logs_by_authorization(receipt["logs"], token) for one, receipt in zip(hashes, receipts, strict=True)}


def _newest(answer: Any) -> Log | None:
    """Return the latest event of a nonce; None where the endpoint does not search logs."""
    if isinstance(answer, RpcRefused) or not answer:
        return None
    event: Log = answer[-1]
    return event


def _events_filter(token: Address, authorization: Authorization, from_block: int) -> dict[str, Any]:
    return {
        "address": address_text(token),
        "fromBlock": hex(from_block),
        "toBlock": "latest",
        "topics": [
            [AUTHORIZATION_USED_TOPIC, AUTHORIZATION_CANCELED_TOPIC],
            "0x" + word_of_address(authorization.payer).hex(),
            "0x" + authorization.nonce.hex(),
        ],
    }

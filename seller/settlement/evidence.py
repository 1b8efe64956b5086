"""What the chain shows of an authorization. A used nonce alone proves nothing: it may be paid, revoked or burnt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from contracts.address import Address
from contracts.errors import (
    ChainUnavailable,
    InsufficientFunds,
    PaymentExpired,
    PaymentReplayed,
    SettlementFailed,
)
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, call_object, read_head
from contracts.lifecycle import MoneyEvent
from contracts.schemes.exact_eip3009 import (
    AUTHORIZATION_CANCELED_TOPIC,
    AUTHORIZATION_USED_TOPIC,
    Authorization,
    settle_call,
    was_paid,
)
from contracts.typed_data import word_of_address
from seller.settlement.outbox import Item, Verdict

__all__ = ["Evidence", "logs_by_authorization", "paid_by", "would_settle"]

Log = dict[str, Any]

_log = logging.getLogger("farebox.seller.settlement")

# JSON-RPC code of a revert; some nodes only say so in words.
_REVERTED_CODE = 3


class Evidence:
    """Asks the chain what became of an item, whoever submitted it."""

    def __init__(self, rpc: Rpc, token: Address) -> None:
        self._rpc = rpc
        self._token = Token(rpc, token)

    async def judge(self, item: Item, *, on_chain: bool = False) -> Verdict:
        """Return CHAIN_PAID, HOPELESS, or no event while the nonce is unused and in time. Raises `ChainUnavailable`.

        Only a transfer at or after the height at which the payment was presented here is a payment for it.
        """
        authorization = item.authorization
        try:
            (used,) = await self._token.used_nonces(authorization.payer, [authorization.nonce])
            if not used:
                return await self._judge_unused(item, on_chain)
            events = await self._token.nonce_events(authorization.payer, authorization.nonce, item.since_block)
            for event in events:
                topic, transaction_hash = str(event["topics"][0]).lower(), str(event["transactionHash"])
                if topic == AUTHORIZATION_CANCELED_TOPIC:
                    return Verdict(item, MoneyEvent.HOPELESS, reason=SettlementFailed.code)
                receipt = await self._rpc.call("eth_getTransactionReceipt", transaction_hash)
                if receipt is not None:
                    logs = logs_by_authorization(receipt["logs"], self._token.address)
                    if paid_by(logs, authorization, self._token.address):
                        return Verdict(item, MoneyEvent.CHAIN_PAID, transaction_hash)
        except RpcRefused as error:
            raise ChainUnavailable(f"the chain's node refused to answer: {error.message}") from None
        except (KeyError, TypeError, IndexError, ValueError):
            raise ChainUnavailable("the chain's node gave an incomplete answer") from None
        return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentReplayed.code)

    async def _judge_unused(self, item: Item, on_chain: bool) -> Verdict:
        head = await read_head(self._rpc)
        if head.timestamp_s >= item.authorization.valid_before_s:
            return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentExpired.code)
        covered = await self._token.balance_of(item.authorization.payer) >= item.authorization.value_atomic
        reason = SettlementFailed.code if covered else InsufficientFunds.code
        return Verdict(item, None, reason=reason, on_chain=on_chain)


async def would_settle(rpc: Rpc, token: Address, authorization: Authorization, signature: bytes) -> bool:
    """Simulate the transfer on the latest block and tell whether it succeeds. Raises `ChainUnavailable`."""
    try:
        await rpc.call("eth_call", call_object(token, settle_call(authorization, signature)), "latest")
    except RpcRefused as error:
        if error.rpc_code != _REVERTED_CODE and "revert" not in error.message.lower():
            raise ChainUnavailable(f"eth_call: {error.message}") from None
        _log.info("the chain would refuse nonce 0x%s: %s", authorization.nonce.hex(), error.message)
        return False
    return True


def logs_by_authorization(logs: Sequence[Log], token: Address) -> dict[tuple[str, str], list[Log]]:
    """Return one transaction's token logs, by the (payer, nonce) topics of the authorization they belong to.

    In a batch, only the logs from its own nonce to the next nonce count: another payment of the same payer and value
    must not pass for this one.
    """
    token_text = "0x" + token.hex()
    ours = [log for log in logs if str(log["address"]).lower() == token_text and log["topics"]]
    starts = [index for index, log in enumerate(ours) if str(log["topics"][0]).lower() == AUTHORIZATION_USED_TOPIC]
    if len(starts) == 1:
        return {_key_topics(ours[starts[0]]): ours}
    return {_key_topics(ours[start]): ours[start:end] for start, end in pairwise([*starts, len(ours)])}


def paid_by(logs: dict[tuple[str, str], list[Log]], authorization: Authorization, token: Address) -> bool:
    """Tell whether a transaction, given by its `logs_by_authorization`, shows this authorization paid."""
    key = "0x" + word_of_address(authorization.payer).hex(), "0x" + authorization.nonce.hex()
    return was_paid(logs.get(key, ()), authorization, token)


def _key_topics(used: Log) -> tuple[str, str]:
    payer, nonce = used["topics"][1:3]
    return str(payer).lower(), str(nonce).lower()

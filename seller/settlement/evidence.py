"""What the chain shows of an authorization. A used nonce alone proves nothing: it may be paid, revoked or burnt."""

from __future__ import annotations

import logging

from contracts.address import Address
from contracts.errors import (
    ChainUnavailable,
    ContractPayer,
    InsufficientFunds,
    PaymentExpired,
    PaymentReplayed,
    SettlementFailed,
)
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, call_object, read_head
from contracts.lifecycle import MoneyEvent
from contracts.schemes.authorization import Authorization
from contracts.schemes.exact_eip3009 import AUTHORIZATION_CANCELED_TOPIC, logs_by_authorization, paid_by, transfer_call
from seller.settlement.outbox import Item, Verdict

__all__ = ["Evidence", "logs_by_authorization", "paid_by", "would_settle"]

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
        payer = await self._token.payer_facts(item.authorization.payer)
        if payer.has_code:
            # It was an account without code when it was verified; EIP-7702 gives and takes code at any time.
            reason = ContractPayer.code
        elif payer.balance_atomic < item.authorization.value_atomic:
            reason = InsufficientFunds.code
        else:
            reason = SettlementFailed.code
        return Verdict(item, None, reason=reason, on_chain=on_chain)


async def would_settle(
    rpc: Rpc, token: Address, authorization: Authorization, signature: bytes, *, block: str = "latest"
) -> bool:
    """Simulate the transfer on `block` and tell whether it succeeds. Raises `ChainUnavailable`.

    "latest" has the time of the latest block, "pending" that of the next one; a node that keeps no pending block
    simulates on its latest.
    """
    try:
        await rpc.call("eth_call", call_object(token, transfer_call(authorization, signature)), block)
    except RpcRefused as error:
        if error.rpc_code == _REVERTED_CODE or "revert" in error.message.lower():
            _log.info("the chain would refuse nonce 0x%s: %s", authorization.nonce.hex(), error.message)
            return False
        if block != "latest":
            return await would_settle(rpc, token, authorization, signature)
        raise ChainUnavailable(f"eth_call: {error.message}") from None
    return True

"""What the chain shows of an authorization. A used nonce alone proves nothing: it may be paid, revoked or burnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from contracts.address import Address
from contracts.errors import (
    AllowanceRequired,
    ChainUnavailable,
    ContractPayer,
    InsufficientFunds,
    PaymentExpired,
    PaymentReplayed,
    PaymentRevoked,
    SettlementFailed,
    TokenPaused,
)
from contracts.evm.permit2 import Permit2, transfers
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, read_head
from contracts.lifecycle import MoneyEvent
from contracts.schemes import exact_eip3009
from contracts.schemes.exact_eip3009 import AUTHORIZATION_CANCELED_TOPIC, logs_by_authorization, paid_by
from seller.settlement.outbox import Item, Verdict
from seller.settlement.witness import is_disputed

__all__ = ["Evidence", "is_shown"]


class Evidence:
    """Asks the chain what became of an item, whoever submitted it."""

    def __init__(self, rpc: Rpc, token: Address) -> None:
        self._rpc = rpc
        self._token = Token(rpc, token)
        self._permit2 = Permit2(rpc)

    async def judge(self, item: Item, *, on_chain: bool = False) -> Verdict:
        """Return CHAIN_PAID, HOPELESS, or no event while the nonce is unused and in time. Raises `ChainUnavailable`.

        Only a transfer at or after the height at which the payment was presented here is a payment for it.
        """
        is_burnt_by_token = item.rail.NAME == exact_eip3009.NAME
        try:
            if not await self.is_used(item):
                return await self._judge_unused(item, on_chain)
            return await (self._judge_used(item) if is_burnt_by_token else self._judge_used_permit(item))
        except RpcRefused as error:
            raise ChainUnavailable(f"the chain's node refused to answer: {error.message}") from None
        except (KeyError, TypeError, IndexError, ValueError):
            raise ChainUnavailable("the chain's node gave an incomplete answer") from None

    async def is_used(self, item: Item) -> bool:
        """Tell whether the nonce of an item is used or revoked. Raises `ChainUnavailable`."""
        registry = self._token if item.rail.NAME == exact_eip3009.NAME else self._permit2
        (used,) = await registry.used_nonces(item.authorization.payer, [item.authorization.nonce])
        return used

    async def paid_in(self, items: Sequence[Item], logs: Sequence[Any]) -> set[int]:
        """Return the ids of those that our own transaction with these `logs` has paid. Raises `ChainUnavailable`.

        A permit was settled by it where its bit is set, and there is a transfer for each such permit of the amount.
        """
        try:
            return await self._paid_in(items, logs)
        except (KeyError, TypeError, IndexError, ValueError):
            raise ChainUnavailable("the chain's node gave an incomplete receipt") from None

    async def _paid_in(self, items: Sequence[Item], logs: Sequence[Any]) -> set[int]:
        token = self._token.address
        by_token = [item for item in items if item.rail.NAME == exact_eip3009.NAME]
        found = logs_by_authorization(logs, token)
        paid = {item.id for item in by_token if paid_by(found, item.authorization, token)}
        used = [item for item in items if item not in by_token and await self.is_used(item)]
        alike = Counter(_transfer_of(item) for item in used)
        return paid | {
            item.id for item in used if transfers(logs, token, *_transfer_of(item)) >= alike[_transfer_of(item)]
        }

    async def _judge_used(self, item: Item) -> Verdict:
        authorization = item.authorization
        for event in await self._token.nonce_events(authorization.payer, authorization.nonce, item.since_block):
            topic, transaction_hash = str(event["topics"][0]).lower(), str(event["transactionHash"])
            if topic == AUTHORIZATION_CANCELED_TOPIC:
                return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentRevoked.code)
            receipt = await self._rpc.call("eth_getTransactionReceipt", transaction_hash)
            if receipt is not None and is_shown(receipt["logs"], item, self._token.address):
                return await self._paid(item, transaction_hash)
        return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentReplayed.code)

    async def _paid(self, item: Item, transaction_hash: str) -> Verdict:
        if await is_disputed(self._rpc, transaction_hash):
            raise ChainUnavailable(
                "the RPC endpoints do not agree about a payment", remedy="remove the endpoint that is wrong from `rpc`"
            )
        return Verdict(item, MoneyEvent.CHAIN_PAID, transaction_hash)

    async def _judge_used_permit(self, item: Item) -> Verdict:
        ending = await self._permit2.ending(
            self._token.address, item.authorization, item.since_block, amount_atomic=item.charged_atomic
        )
        if ending is None:
            return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentReplayed.code)
        if ending.amount_atomic is None:
            return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentRevoked.code)
        return await self._paid(item, ending.transaction)

    async def _judge_unused(self, item: Item, on_chain: bool) -> Verdict:
        head = await read_head(self._rpc)
        authorization = item.authorization
        if head.timestamp_s >= authorization.valid_before_s:
            return Verdict(item, MoneyEvent.HOPELESS, reason=PaymentExpired.code)
        by_permit2 = item.rail.NAME != exact_eip3009.NAME
        payer = await self._token.payer_facts(authorization.payer, permit2=by_permit2)
        allowance_atomic = payer.allowance_atomic if by_permit2 and item.token_permit is None else None
        if payer.has_code and not item.contract_payer:
            # It was an account without code when it was verified; EIP-7702 gives and takes code at any time.
            reason = ContractPayer.code
        elif payer.balance_atomic < item.charged_atomic:
            reason = InsufficientFunds.code
        elif allowance_atomic is not None and allowance_atomic < item.charged_atomic:
            reason = AllowanceRequired.code
        elif await self._token.is_paused():
            # Nobody's money moves: no fault of this payer, who is not remembered for it.
            reason = TokenPaused.code
        else:
            reason = SettlementFailed.code
        return Verdict(item, None, reason=reason, on_chain=on_chain)


def _transfer_of(item: Item) -> tuple[Address, Address, int]:
    return item.authorization.payer, item.authorization.payee, item.charged_atomic


def is_shown(logs: Sequence[Any], item: Item, token: Address) -> bool:
    """Tell whether one transaction's `logs` show an item paid; over Permit2, only that its transfer is among them."""
    authorization = item.authorization
    if item.rail.NAME == exact_eip3009.NAME:
        return paid_by(logs_by_authorization(logs, token), authorization, token)
    return transfers(logs, token, *_transfer_of(item)) > 0

"""The direct settler: our own gas key puts transfers on chain, in batches through Multicall3.

One payment goes to its token or proxy itself; more go through Multicall3, whatever their rails, where a failing one
does not take the others along. What only we may send, or what runs a stranger's code, goes alone. Every call is
simulated first, so a payment that cannot be settled costs no gas.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from contracts.address import Address, address_text
from contracts.crash import checkpoint
from contracts.errors import ChainUnavailable, SettlementUnavailable
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import count_of, integer_of, read_head
from contracts.lifecycle import MoneyEvent
from contracts.networks import MULTICALL3
from contracts.schemes import exact_eip3009
from contracts.schemes.authorization import Call
from contracts.schemes.erc6492 import bare
from seller.limits import (
    CONFIRMATIONS,
    CONFIRMATIONS_DEFAULT,
    FEE_BUMP_AFTER_S,
    FEE_BUMP_DENOMINATOR,
    FEE_BUMP_NUMERATOR,
    FEE_BUMPS_MAX,
    GAP_FILL_MAX,
    GAS_MARGIN_DENOMINATOR,
    GAS_MARGIN_NUMERATOR,
    GAS_PER_BATCH,
    GAS_PER_CONTRACT_PAYER,
    GAS_PER_DEPLOYMENT,
    GAS_PER_PERMIT2_TRANSFER,
    GAS_PER_SELF_TRANSFER,
    GAS_PER_TOKEN_PERMIT,
    GAS_PER_TRANSFER,
    IN_FLIGHT_MAX,
    RESEND_AFTER_S,
)
from seller.settlement.calls import item_calls, joined, refusal_of
from seller.settlement.evidence import Evidence
from seller.settlement.key import GasKey
from seller.settlement.multicall import aggregate_results
from seller.settlement.outbox import Form, Item, Outbox, Stale, Transaction, Verdict, now_ms
from seller.settlement.witness import is_disputed

__all__ = ["ChainSettler"]

_log = logging.getLogger("farebox.seller.settlement")


@dataclass(frozen=True, slots=True)
class _Account:
    """The gas account as the chain sees it, and what gas costs now."""

    transaction_count: int
    balance_wei: int
    max_fee_wei: int
    priority_fee_wei: int


class ChainSettler:
    """Settles with `key` on the chain behind `rpc`. Only a holder of the account's lease may call it.

    `max_fee_wei` is the most that is ever offered for a unit of gas, whatever the endpoint says that gas costs.
    """

    def __init__(
        self, outbox: Outbox, rpc: Rpc, chain_id: int, token: Address, key: GasKey, *, max_fee_wei: int | None = None
    ) -> None:
        self.account = key.address.hex()
        self._outbox = outbox
        self._rpc = rpc
        self._chain_id = chain_id
        self._token = token
        self._key = key
        self._max_fee_wei = max_fee_wei
        self._evidence = Evidence(rpc, token)
        self._judged: list[int] = []
        self._resent_ms: dict[int, int] = {}
        self._has_multicall: bool | None = None

    async def close(self) -> None:
        """Nothing is held open here."""

    def has_room(self) -> bool:
        """Tell whether another transaction may be sent before the earlier ones are judged."""
        return len(self._outbox.sent(self._key.address)) < IN_FLIGHT_MAX

    async def submit(self, items: Sequence[Item]) -> list[int]:
        """Simulate, store and send one transaction for `items`; return the ids of those that are judged already.

        Raises `ChainUnavailable`, or `SettlementUnavailable` when the account has no ether for gas, or gas costs more
        than it may.
        """
        if len(items) > 1 and (items[0].goes_alone or not await self._can_batch()):
            items = items[:1]
        elif len(items) > 1:
            items = [item for item in items if not item.goes_alone]
        if items[0].contract_payer:
            items = [await self._as_deployed(items[0])]
        accepted, refused = await self._simulate(items)
        checkpoint("settle.simulated")
        verdicts = [await self._evidence.judge(item) for item in refused]
        await self._outbox.conclude(verdicts)
        if accepted:
            call = joined(self._calls(accepted))
            gas = await self._gas(accepted, call)
            account = await self._read_account(gas)
            try:
                transaction = await self._outbox.store(
                    self._key.address,
                    accepted,
                    account.transaction_count,
                    (call.to, call.data, gas),
                    lambda nonce: self._sign(
                        nonce, (call.to, call.data, gas), account.max_fee_wei, account.priority_fee_wei
                    ),
                )
            except Stale:
                return [item.id for item in refused]
            checkpoint("settle.stored")
            await self._send(transaction)
        return [item.id for item in refused]

    async def resolve(self) -> list[int]:
        """Look for receipts; return the ids of the items judged since it returned last."""
        for transaction in self._outbox.sent(self._key.address):
            receipt = await self._receipt(transaction)
            if receipt is None and await self._is_superseded(transaction):
                # The count and the receipt come from two moments: only a receipt missing after the count is missing.
                receipt = await self._receipt(transaction) or {"logs": [], "transactionHash": ""}
            if receipt is not None and await self._is_deep(receipt) and not await self._is_disputed(receipt):
                # Kept until they can be told: the next transaction's receipt may fail to come.
                self._judged += await self._judge(transaction, receipt)
        judged, self._judged = self._judged, []
        return judged

    async def push(self) -> bool:
        """Send again what stays unmined, and take free account nonces below it; tell whether anything is open.

        Raises `ChainUnavailable`, or `SettlementUnavailable` when a free nonce cannot be taken for want of gas.
        """
        still_open = self._outbox.sent(self._key.address)
        self._resent_ms = {tx.id: self._resent_ms[tx.id] for tx in still_open if tx.id in self._resent_ms}
        for transaction in still_open:
            await self._push(transaction)
        if still_open:
            await self._fill_gap(still_open[0])
        return bool(still_open)

    # Sending

    async def _can_batch(self) -> bool:
        if self._has_multicall is None:
            self._has_multicall = await self._rpc.call("eth_getCode", address_text(MULTICALL3), "latest") != "0x"
            if not self._has_multicall:
                _log.warning("there is no Multicall3 on this chain; payments are settled one by one")
        return self._has_multicall

    async def _as_deployed(self, item: Item) -> Item:
        """Return the item without its wallet's deployment where another payment has deployed it since."""
        code = await self._rpc.call("eth_getCode", address_text(item.authorization.payer), "latest")
        return item if code == "0x" else replace(item, signature=bare(item.signature))

    async def _simulate(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Return (what the chain would settle, what it would refuse), trying each item alone after a failure."""
        fresh = [item for item in items if item.attempts == 0]
        alone = [item for item in items if item.attempts > 0]
        accepted: list[Item] = []
        refused: list[Item] = []
        if len(fresh) > 1:
            answer = await self._rpc.call("eth_call", self._call_object(joined(self._calls(fresh))), "latest")
            for item, succeeded in zip(fresh, aggregate_results(answer, len(fresh)), strict=True):
                (accepted if succeeded else alone).append(item)
        else:
            alone += fresh
        for item in alone:
            (accepted if await self._would_settle(item) else refused).append(item)
        return accepted, refused

    async def _would_settle(self, item: Item) -> bool:
        """Simulate one item on the latest block, or, where that is older than the payment, on the next one."""
        if await self._refusal(item) is None:
            return True
        if item.authorization.valid_after_s < (await read_head(self._rpc)).timestamp_s:
            return False
        return await self._refusal(item, block="pending") is None

    async def _refusal(self, item: Item, *, block: str = "latest") -> str | None:
        calls, sender = item_calls(item, self._token), self._key.address
        return await refusal_of(self._rpc, calls, sender=sender, block=block, capped=item.contract_payer)

    def _calls(self, items: Sequence[Item]) -> list[Call]:
        return [call for item in items for call in item_calls(item, self._token)]

    def _call_object(self, call: Call) -> dict[str, str]:
        return {
            "from": address_text(self._key.address),
            "to": address_text(call.to),
            "data": "0x" + call.data.hex(),
        }

    async def _gas(self, items: Sequence[Item], call: Call) -> int:
        if len(items) > 1:
            return GAS_PER_BATCH + sum(_gas_of(item) for item in items)
        if items[0].contract_payer:
            return GAS_PER_CONTRACT_PAYER if call.to != MULTICALL3 else GAS_PER_DEPLOYMENT
        try:
            estimate = count_of(await self._rpc.call("eth_estimateGas", self._call_object(call)), "eth_estimateGas")
        except RpcRefused:
            return GAS_PER_BATCH + _gas_of(items[0])
        return estimate * GAS_MARGIN_NUMERATOR // GAS_MARGIN_DENOMINATOR

    async def _read_account(self, gas: int) -> _Account:
        account_text = address_text(self._key.address)
        block, priority_fee, count, balance = await self._rpc.batch(
            [
                ("eth_getBlockByNumber", ["latest", False]),
                ("eth_maxPriorityFeePerGas", []),
                ("eth_getTransactionCount", [account_text, "latest"]),
                ("eth_getBalance", [account_text, "latest"]),
            ]
        )
        priority_fee_wei = (
            0 if isinstance(priority_fee, RpcRefused) else count_of(priority_fee, "eth_maxPriorityFeePerGas")
        )
        base_fee = block.get("baseFeePerGas") if isinstance(block, dict) else block
        max_fee_wei = self._fee_offered(count_of(base_fee, "a block's base fee"), priority_fee_wei)
        balance_wei = integer_of(balance, "eth_getBalance")
        account = _Account(_transactions(count), balance_wei, max_fee_wei, priority_fee_wei)
        if account.balance_wei < gas * max_fee_wei:
            raise SettlementUnavailable(
                f"the gas account {account_text} holds {account.balance_wei} wei, a settlement may take "
                f"{gas * max_fee_wei}",
                remedy=f"send ether to {account_text}",
            )
        return account

    def _fee_offered(self, base_fee_wei: int, priority_fee_wei: int) -> int:
        """Return what to offer for a unit of gas. Raises `SettlementUnavailable` when less than it costs is allowed."""
        # Twice the base fee outlives six full blocks in a row.
        wanted_wei, costs_wei = 2 * base_fee_wei + priority_fee_wei, base_fee_wei + priority_fee_wei
        if self._max_fee_wei is None:
            return wanted_wei
        if costs_wei > self._max_fee_wei:
            raise SettlementUnavailable(
                f"a unit of gas costs {costs_wei} wei by the endpoint's word, max_fee_wei allows {self._max_fee_wei}",
                remedy="compare with another endpoint; wait, or raise `max_fee_wei`",
            )
        return min(wanted_wei, self._max_fee_wei)

    def _sign(self, nonce: int, call: tuple[Address, bytes, int], max_fee_wei: int, priority_fee_wei: int) -> Form:
        to, data, gas = call
        return self._key.sign(
            chain_id=self._chain_id,
            nonce=nonce,
            to=to,
            data=data,
            gas=gas,
            max_fee_wei=max_fee_wei,
            priority_fee_wei=priority_fee_wei,
        )

    async def _send(self, transaction: Transaction) -> None:
        """Send the newest form. A refusal decides nothing ("already known", "nonce too low"): receipts do."""
        self._resent_ms[transaction.id] = now_ms()
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + transaction.forms[-1].raw.hex())
            checkpoint("settle.sent")
        except RpcRefused as error:
            _log.info("the node answered a settlement transaction with: %s", error.message)

    async def _fill_gap(self, oldest: Transaction) -> None:
        """Take the account nonces that nobody takes below our oldest transaction: without them it is never mined.

        A node that told too high a count leaves such a gap, and so does a transaction that a re-organisation undid.
        """
        if now_ms() - oldest.forms[0].created_ms < RESEND_AFTER_S * 1000:
            return
        pending = await self._rpc.call("eth_getTransactionCount", address_text(self._key.address), "pending")
        free = range(_transactions(pending), oldest.account_nonce)[:GAP_FILL_MAX]
        if not free:
            return
        _log.warning("account nonces %d to %d are not taken; filling them", free[0], free[-1])
        account, call = await self._read_account(GAS_PER_SELF_TRANSFER), (self._key.address, b"", GAS_PER_SELF_TRANSFER)
        for nonce in free:
            try:
                filler = await self._outbox.store(
                    self._key.address,
                    (),
                    nonce,
                    call,
                    lambda nonce: self._sign(nonce, call, account.max_fee_wei, account.priority_fee_wei),
                    fills_gap=True,
                )
            except Stale:
                continue
            await self._send(filler)

    # Receipts

    async def _receipt(self, transaction: Transaction) -> dict[str, Any] | None:
        answers = await self._rpc.batch([("eth_getTransactionReceipt", [form.hash]) for form in transaction.forms])
        for answer in answers:
            if isinstance(answer, RpcRefused):
                raise ChainUnavailable(f"eth_getTransactionReceipt: {answer.message}")
            if answer is not None:
                return _receipt_of(answer)
        return None

    async def _is_deep(self, receipt: dict[str, Any]) -> bool:
        """Tell whether a receipt has the confirmations that its network wants."""
        confirmations = CONFIRMATIONS.get(self._chain_id, CONFIRMATIONS_DEFAULT)
        if confirmations <= 1 or not receipt["transactionHash"]:
            return True
        head = await read_head(self._rpc)
        return head.number - count_of(receipt["blockNumber"], "a receipt's block") + 1 >= confirmations

    async def _is_disputed(self, receipt: dict[str, Any]) -> bool:
        """Tell whether another endpoint does not show what a receipt says."""
        return bool(receipt["transactionHash"]) and await is_disputed(self._rpc, str(receipt["transactionHash"]))

    async def _is_superseded(self, transaction: Transaction) -> bool:
        """Tell whether the account's nonce was taken by a transaction that is none of ours."""
        if now_ms() - transaction.forms[-1].created_ms < RESEND_AFTER_S * 1000:
            return False
        count = await self._rpc.call("eth_getTransactionCount", address_text(self._key.address), "latest")
        return _transactions(count) > transaction.account_nonce

    async def _judge(self, transaction: Transaction, receipt: dict[str, Any]) -> list[int]:
        items = self._outbox.carried_by(transaction)
        checkpoint("settle.receipt_seen")
        paid = await self._evidence.paid_in(items, receipt["logs"])
        verdicts = []
        for item in items:
            if item.id in paid:
                verdicts.append(Verdict(item, MoneyEvent.CHAIN_PAID, str(receipt["transactionHash"])))
            else:
                verdicts.append(await self._evidence.judge(item, on_chain=True))
        await self._outbox.conclude(verdicts, transaction)
        checkpoint("settle.concluded")
        return [item.id for item in items]

    async def _push(self, transaction: Transaction) -> None:
        """Send again what has no receipt for a while, and raise its fee when that did not help."""
        newest, now = transaction.forms[-1], now_ms()
        may_raise = len(transaction.forms) - 1 < FEE_BUMPS_MAX
        max_fee_wei = newest.max_fee_wei * FEE_BUMP_NUMERATOR // FEE_BUMP_DENOMINATOR + 1
        if self._max_fee_wei is not None and max_fee_wei > self._max_fee_wei:
            # Nodes take the place of a transaction only for a tenth more.
            may_raise = False
        if may_raise and now - newest.created_ms >= FEE_BUMP_AFTER_S * 1000:
            form = self._sign(
                transaction.account_nonce,
                (transaction.call_to, transaction.call_data, transaction.gas),
                max_fee_wei,
                newest.priority_fee_wei * FEE_BUMP_NUMERATOR // FEE_BUMP_DENOMINATOR + 1,
            )
            await self._outbox.store_form(self._key.address, transaction, form)
            checkpoint("settle.raised")
            transaction.forms.append(form)
            await self._send(transaction)
        elif now - self._resent_ms.get(transaction.id, 0) >= RESEND_AFTER_S * 1000:
            await self._send(transaction)


def _gas_of(item: Item) -> int:
    if item.rail.NAME == exact_eip3009.NAME:
        return GAS_PER_TRANSFER
    return GAS_PER_PERMIT2_TRANSFER + (GAS_PER_TOKEN_PERMIT if item.token_permit is not None else 0)


def _transactions(answer: Any) -> int:
    return count_of(answer, "eth_getTransactionCount")


def _receipt_of(answer: Any) -> dict[str, Any]:
    """Return an answer that is a mined transaction's receipt. Raises `ChainUnavailable`."""
    kinds = {"transactionHash": str, "blockNumber": str, "logs": list}
    if isinstance(answer, dict) and all(isinstance(answer.get(name), kind) for name, kind in kinds.items()):
        return answer
    raise ChainUnavailable("eth_getTransactionReceipt: the answer is not a receipt")

"""Transactions of the buyer's own wallet: priced, shown before they are signed, submitted, and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from buyer.limits import CANCEL_RECEIPT_TIMEOUT_S
from buyer.signing import Signer, Transaction
from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable, InsufficientBalance, SettlementFailed
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import call_object, count_of, integer_of
from contracts.keccak import keccak
from contracts.schemes.authorization import Call

__all__ = ["check_gas", "coin", "cost_max_wei", "next_nonce", "price", "submit"]

# Added to the node's estimate: the state may have changed by a few storage slots until it is mined.
_GAS_MARGIN_PERCENT = 25
_RECEIPT_POLL_S = 0.25


async def price(rpc: Rpc, chain_id: int, sender: Address, calls: Sequence[Call]) -> list[Transaction]:
    """Return one transaction a call, with the gas the node estimates and fees that outlast a few full blocks.

    Raises `ChainUnavailable`, and `SettlementFailed` with the node's words where a call would revert.
    """
    nonce = await next_nonce(rpc, sender)
    block = await rpc.call("eth_getBlockByNumber", "latest", False)
    try:
        tip = count_of(await rpc.call("eth_maxPriorityFeePerGas"), "eth_maxPriorityFeePerGas")
    except RpcRefused:
        tip = 10**9
    base_fee = (block.get("baseFeePerGas") if isinstance(block, dict) else None) or "0x0"
    # Twice the base fee outlasts six full blocks in a row.
    fee = 2 * count_of(base_fee, "a block's base fee") + tip
    transactions = []
    for offset, call in enumerate(calls):
        asked = {**call_object(call.to, call.data), "from": address_text(sender)}
        try:
            estimate = count_of(await rpc.call("eth_estimateGas", asked), "eth_estimateGas")
        except RpcRefused as error:
            raise SettlementFailed(
                f"the transaction would fail: {error.message[:120]}", remedy="read the reason; nothing was sent"
            ) from None
        gas = estimate * (100 + _GAS_MARGIN_PERCENT) // 100
        transactions.append(Transaction(chain_id, call.to, nonce + offset, gas, fee, tip, call.data))
    return transactions


async def next_nonce(rpc: Rpc, sender: Address) -> int:
    """Return the number of an account's next transaction. Raises `ChainUnavailable`."""
    what = "eth_getTransactionCount"
    return count_of(await rpc.call(what, address_text(sender), "pending"), what)


def cost_max_wei(transactions: Sequence[Transaction]) -> int:
    """Return what transactions may cost at most, in wei of the chain's own coin."""
    return sum(transaction.gas_limit * transaction.max_fee_per_gas for transaction in transactions)


async def check_gas(rpc: Rpc, sender: Address, transactions: Sequence[Transaction], what: str) -> None:
    """Raise `InsufficientBalance` when the wallet cannot pay the gas; `what` the transactions do is named in it."""
    balance_wei = integer_of(await rpc.call("eth_getBalance", address_text(sender), "latest"), "eth_getBalance")
    cost_wei = cost_max_wei(transactions)
    if cost_wei > balance_wei:
        raise InsufficientBalance(
            f"{what} may cost {cost_wei} wei of gas, the wallet has {balance_wei}",
            remedy="send the wallet some of the chain's own coin",
        )


async def submit(rpc: Rpc, signer: Signer, transactions: Sequence[Transaction], what: str) -> list[str]:
    """Sign and send each transaction, wait until it is mined, and return their hashes.

    Raises `SettlementFailed` for one that reverted, `ChainUnavailable` for one that is not mined in time. Whether it is
    mined later, the chain knows.
    """
    hashes = []
    for transaction in transactions:
        sent = await _send(rpc, signer.sign_transaction(transaction))
        receipt = await _wait(rpc, sent, what)
        if receipt.get("status") != "0x1":
            raise SettlementFailed(f"{what}: transaction {sent} reverted", remedy="run the command again")
        hashes.append(sent)
    return hashes


def coin(wei: int) -> str:
    """Return wei in whole coins, rounded up to six decimals."""
    millionths = -(-wei // 10**12)
    return f"{millionths // 10**6}.{millionths % 10**6:06d}"


async def _send(rpc: Rpc, raw: bytes) -> str:
    try:
        answer = await rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
    except RpcRefused as error:
        # Sent twice through two endpoints, the second says that it knows it: that is success.
        if "already known" not in error.message.lower():
            raise
        answer = "0x" + keccak(raw).hex()
    return str(answer)


async def _wait(rpc: Rpc, transaction_hash: str, what: str) -> dict[str, object]:
    deadline = time.monotonic() + CANCEL_RECEIPT_TIMEOUT_S
    while time.monotonic() < deadline:
        receipt = await rpc.call("eth_getTransactionReceipt", transaction_hash)
        if isinstance(receipt, dict):
            return receipt
        await asyncio.sleep(_RECEIPT_POLL_S)
    raise ChainUnavailable(
        f"{what}: transaction {transaction_hash} was not mined within {CANCEL_RECEIPT_TIMEOUT_S:.0f} s",
        remedy="look it up later, or run the command again: the chain decides",
    )

"""Cancel: revoke signed authorizations on chain, so that nobody can use them any more.

The wallet signs `CancelAuthorization`; anybody may submit it, and here the same wallet pays the gas. Many go into one
transaction through Multicall3 where the chain has it. What the chain then shows decides the state, not our receipt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from eth_abi.abi import encode

from buyer.limits import CANCEL_RECEIPT_TIMEOUT_S
from buyer.pool import Pool
from buyer.purchase import Purchase
from buyer.signers import Signer, Transaction
from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable, InsufficientBalance, SettlementFailed, TermsNotAllowed
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import call_object
from contracts.keccak import keccak
from contracts.networks import MULTICALL3
from contracts.schemes.exact_eip3009 import cancel_call
from contracts.storage import Connection

__all__ = ["Cancellation", "cancel", "plan_cancellation"]

_AGGREGATE3 = keccak(b"aggregate3((address,bool,bytes)[])")[:4]
# One revocation needs about 50,000 gas; fifty stay far below every block's limit.
_BATCH = 50
# Added to the node's estimate: the state may have changed by a few storage slots until it is mined.
_GAS_MARGIN_PERCENT = 25
_RECEIPT_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What will be revoked, and its cost at most, in wei of the chain's own coin."""

    nonces: list[bytes]
    transactions: list[Transaction]
    cost_max_wei: int


async def plan_cancellation(purchase: Purchase, pool: Pool, signer: Signer, rpc_urls: Sequence[str]) -> Cancellation:
    """Sign the revocations of everything unspent and unsettled, and estimate what submitting them costs.

    Nothing is submitted. Raises `TermsNotAllowed` for another wallet, `InsufficientBalance` when it cannot pay the
    gas, `ChainUnavailable`, `SignerFailed`.
    """
    if signer.address != purchase.payer:
        raise TermsNotAllowed(f"only the wallet {address_text(purchase.payer)} can revoke what it signed")
    nonces = pool.database.read(lambda connection: _cancellable(connection, purchase))
    if not nonces:
        return Cancellation([], [], 0)
    token = purchase.offer.asset.address
    signatures = signer.sign_cancellations(nonces, purchase.offer.domain)
    calls = [cancel_call(signer.address, nonce, signature) for nonce, signature in zip(nonces, signatures, strict=True)]
    async with Rpc(rpc_urls) as rpc:
        batched = await rpc.call("eth_getCode", address_text(MULTICALL3), "latest") not in ("0x", None)
        targets = _batches(token, calls) if batched else [(token, call) for call in calls]
        transactions = await _priced(rpc, purchase.offer.network.chain_id, signer.address, targets)
        balance_wei = int(await rpc.call("eth_getBalance", address_text(signer.address), "latest"), 16)
    cost_max_wei = sum(transaction.gas_limit * transaction.max_fee_per_gas for transaction in transactions)
    if cost_max_wei > balance_wei:
        raise InsufficientBalance(
            f"revoking {len(nonces)} authorizations may cost {cost_max_wei} wei of gas, the wallet has {balance_wei}",
            remedy="send the wallet some of the chain's own coin, or let the authorizations expire",
        )
    return Cancellation(nonces, transactions, cost_max_wei)


async def cancel(
    pool: Pool, purchase: Purchase, plan: Cancellation, signer: Signer, rpc_urls: Sequence[str]
) -> dict[str, int]:
    """Submit the revocations, wait until they are mined, and return what the chain then shows of the purchase.

    Raises `ChainUnavailable` or `SettlementFailed`; running it again is safe.
    """
    pool.database.transact(lambda connection: _note_asked(connection, purchase, plan.nonces))
    async with Rpc(rpc_urls) as rpc:
        for transaction in plan.transactions:
            raw = signer.sign_transaction(transaction)
            transaction_hash = await _submit(rpc, raw)
            receipt = await _wait(rpc, transaction_hash)
            if receipt.get("status") != "0x1":
                raise SettlementFailed(f"the revocation {transaction_hash} reverted", remedy="run the command again")
    return await pool.reconcile_purchase(purchase, rpc_urls, ready_too=True)


def _cancellable(connection: Connection, purchase: Purchase) -> list[bytes]:
    query = "SELECT nonce FROM authorizations WHERE purchase_id = ? AND state IN ('ready', 'unknown') ORDER BY id"
    return [row["nonce"] for row in connection.execute(query, (purchase.id,))]


def _note_asked(connection: Connection, purchase: Purchase, nonces: list[bytes]) -> None:
    connection.executemany(
        "UPDATE authorizations SET cancel_asked = 1 WHERE purchase_id = ? AND nonce = ?",
        [(purchase.id, nonce) for nonce in nonces],
    )


def _batches(token: Address, calls: list[bytes]) -> list[tuple[Address, bytes]]:
    """Return Multicall3 calls in which each revocation may fail alone: one may be used or revoked already."""
    groups = [calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH)]
    return [
        (
            MULTICALL3,
            _AGGREGATE3 + encode(["(address,bool,bytes)[]"], [[(address_text(token), True, call) for call in group]]),
        )
        for group in groups
    ]


async def _priced(rpc: Rpc, chain_id: int, sender: Address, targets: list[tuple[Address, bytes]]) -> list[Transaction]:
    nonce = int(await rpc.call("eth_getTransactionCount", address_text(sender), "pending"), 16)
    block = await rpc.call("eth_getBlockByNumber", "latest", False)
    try:
        tip = int(await rpc.call("eth_maxPriorityFeePerGas"), 16)
    except RpcRefused:
        tip = 10**9
    # Twice the base fee outlasts six full blocks in a row.
    fee = 2 * int(block.get("baseFeePerGas") or "0x0", 16) + tip
    transactions = []
    for offset, (to, data) in enumerate(targets):
        call = {**call_object(to, data), "from": address_text(sender)}
        estimate = int(await rpc.call("eth_estimateGas", call), 16)
        gas = estimate * (100 + _GAS_MARGIN_PERCENT) // 100
        transactions.append(Transaction(chain_id, to, nonce + offset, gas, fee, tip, data))
    return transactions


async def _submit(rpc: Rpc, raw: bytes) -> str:
    try:
        answer = await rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
    except RpcRefused as error:
        # Sent twice through two endpoints, the second says that it knows it: that is success.
        if "already known" not in error.message.lower():
            raise
        answer = "0x" + keccak(raw).hex()
    return str(answer)


async def _wait(rpc: Rpc, transaction_hash: str) -> dict[str, object]:
    deadline = time.monotonic() + CANCEL_RECEIPT_TIMEOUT_S
    while time.monotonic() < deadline:
        receipt = await rpc.call("eth_getTransactionReceipt", transaction_hash)
        if isinstance(receipt, dict):
            return receipt
        await asyncio.sleep(_RECEIPT_POLL_S)
    raise ChainUnavailable(
        f"the revocation {transaction_hash} was not mined within {CANCEL_RECEIPT_TIMEOUT_S:.0f} s",
        remedy="run `farebox process --all` later: the chain decides",
    )

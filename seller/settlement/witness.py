"""A second pair of eyes on the chain: a transaction counts only when no endpoint that answers denies it.

One endpoint may lie, be behind, or be on a fork. Where a seller names several, each that can be reached must show the
same transaction in the same block before its payments count as settled; until then nobody knows, and nothing is served
for them. An endpoint that is away has no say, so that two endpoints do not fail twice as often as one.
"""

from __future__ import annotations

import logging

from contracts.evm.rpc import Rpc

__all__ = ["is_disputed"]

_log = logging.getLogger("farebox.seller.settlement")


async def is_disputed(rpc: Rpc, transaction_hash: str) -> bool:
    """Tell whether the endpoints disagree about a transaction. Raises `ChainUnavailable` when none answers."""
    if not rpc.has_witnesses:
        return False
    receipts = await rpc.each("eth_getTransactionReceipt", transaction_hash)
    blocks = {receipt.get("blockHash") if isinstance(receipt, dict) else None for receipt in receipts}
    if len(blocks) <= 1 and None not in blocks:
        return False
    _log.warning("the RPC endpoints do not agree about %s; its payments wait until they do", transaction_hash)
    return True

"""Ending a purchase: what the command asks, does and says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from buyer.cancel import cancel, plan_cancellation
from buyer.documents import money
from buyer.pool import Pool
from buyer.purchase import Purchase
from buyer.signing import Signer
from buyer.transact import coin
from contracts.console import out

__all__ = ["print_removal", "removal_document", "revoke"]


async def revoke(
    pool: Pool, purchase: Purchase, signer: Signer, rpc_urls: Sequence[str], agree: Callable[[str], None]
) -> None:
    """Stop spending, show the cost, and revoke on chain what is unspent. `agree` raises when the answer is no."""
    plan = await plan_cancellation(purchase, pool, signer, rpc_urls)
    if plan.nonces:
        agree(
            f"Revoke {len(plan.nonces)} authorizations in {len(plan.transactions)} transactions, "
            f"for at most {coin(plan.cost_max_wei)} of the chain's own coin?"
        )
    pool.remove(purchase)
    await cancel(pool, purchase, plan, signer, rpc_urls)


def removal_document(pool: Pool, purchase: Purchase) -> dict[str, Any]:
    """Return what is left of the purchase."""
    counts, state = pool.counts_of(purchase), pool.state_of(purchase)
    left_atomic = pool.exposure_of(purchase)
    return {
        "ok": True,
        "name": purchase.name,
        "state": state,
        "live": counts.live,
        "spent": counts.spent,
        "expired": counts.expired,
        "cancelled": counts.cancelled,
        **money("worst_case_loss", left_atomic, purchase.offer.asset),
    }


def print_removal(document: dict[str, Any]) -> None:
    """Print what is left of the purchase."""
    out.print(f"{document['name']}: {document['state']}, {document['cancelled']} revoked on chain", markup=False)
    if document["live"]:
        out.print(
            f"  {document['live']} signed authorizations are still valid, up to {document['worst_case_loss']}; only "
            "time or --cancel-onchain ends them",
            markup=False,
        )

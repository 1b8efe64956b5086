"""What `farebox wallet` prints: one document for programs, the same for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from buyer.documents import asset_document, money
from buyer.transact import coin, cost_max_wei
from buyer.wallet import Act, Shown, day_text
from contracts.address import ZERO, address_text
from contracts.console import out
from contracts.evm.agent_wallet import WalletRail

__all__ = ["act_document", "print_act", "print_wallet", "question", "wallet_document"]


def question(act: Act) -> str:
    """Return what a person is asked to agree to."""
    what = act.what[0].upper() + act.what[1:]
    return f"{what}, for at most {coin(cost_max_wei(act.transactions))} of the chain's own coin?"


def act_document(act: Act, sent: Sequence[str] | None) -> dict[str, Any]:
    """Return what was done, or with None for `sent` what would be."""
    return {
        "ok": True,
        "dry_run": sent is None,
        "wallet": address_text(act.wallet),
        "network": act.place.network.caip2,
        "network_name": act.place.network.label,
        "what": act.what,
        "already_done": not act.transactions,
        "gas_limit": sum(transaction.gas_limit for transaction in act.transactions),
        "gas_cost_max_wei": str(cost_max_wei(act.transactions)),
        "transactions": list(sent or ()),
    }


def print_act(document: dict[str, Any]) -> None:
    """Print what was, or would be, done."""
    if document["already_done"]:
        out.print(f"nothing to do for {document['wallet']}: it is so already", markup=False)
        return
    verb = "would " if document["dry_run"] else "done: "
    out.print(f"{verb}{document['what']} on {document['network_name']}", markup=False)
    cost = coin(int(document["gas_cost_max_wei"]))
    out.print(f"  gas: at most {document['gas_limit']:,}, {cost} of the chain's own coin", markup=False)
    for transaction in document["transactions"]:
        out.print(f"  transaction {transaction}", markup=False)


def wallet_document(shown: Shown) -> dict[str, Any]:
    """Return a wallet as the chain has it."""
    state, policy, asset = shown.state, shown.state.policy, shown.asset
    return {
        "ok": True,
        "wallet": address_text(shown.wallet),
        "network": shown.place.network.caip2,
        "network_name": shown.place.network.label,
        "owner": address_text(state.owner),
        "pending_owner": None if state.pending_owner == ZERO else address_text(state.pending_owner),
        "agent": None if state.is_frozen else address_text(state.agent),
        "frozen": state.is_frozen,
        "asset": asset_document(asset),
        **money("balance", state.balance_atomic, asset),
        "policy": {
            "rail": policy.rail.name.lower(),
            **money("unit", policy.unit_atomic, asset),
            "slots": policy.slots,
            **money("reserve_cap", policy.reserve_cap_atomic, asset),
            **money("day_cap", policy.day_cap_atomic, asset),
            "from_day": day_text(policy.from_day),
            "in_force": policy.rail is not WalletRail.NONE and policy.from_day <= shown.day,
        },
        **money("spendable_today_at_most", state.spendable_atomic, asset),
        **money("permit2_allowance", state.permit2_allowance_atomic, asset),
    }


def print_wallet(document: dict[str, Any]) -> None:
    """Print a wallet as the chain has it."""
    policy = document["policy"]
    out.print(f"{document['wallet']} on {document['network_name']}", markup=False)
    out.print(f"  owner    {document['owner']}", markup=False)
    out.print(f"  agent    {document['agent'] or 'none: the wallet is frozen'}", markup=False)
    out.print(f"  balance  {document['balance']}", markup=False)
    if policy["rail"] == "none":
        out.print("  policy   none: the agent spends nothing of this token", markup=False)
        return
    since = "" if policy["in_force"] else f", from {policy['from_day']} on; until then nothing"
    out.print(
        f"  policy   {policy['slots']} payments of {policy['unit']} a day by {policy['rail']}, "
        f"{policy['day_cap']} in all{since}",
        markup=False,
    )
    if policy["rail"] == "permit2":
        out.print(f"  Permit2  may move {document['permit2_allowance']}", markup=False)

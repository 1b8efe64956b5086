"""What commands print: JSON documents with money as atomic text and as decimals, and the same for a person."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from buyer.journal import intents_of
from buyer.limits import SELLER_TIMEOUT_S_MAX
from buyer.policy import Choice, Rejection, SpendPolicy, acceptable, describe
from buyer.pool import Pool
from buyer.presign import Plan
from buyer.probe import Probe
from buyer.purchase import Purchase, RefillPolicy
from buyer.receipts import Receipt
from buyer.refill import Processed
from contracts.address import address_text
from contracts.console import out
from contracts.money import Asset, format_amount
from contracts.networks import Network
from contracts.offers import Offer
from contracts.tiers import tier_of

__all__ = [
    "asset_document",
    "money",
    "plan_document",
    "print_each_purchase",
    "print_plan",
    "print_probe",
    "print_processed",
    "print_purchase",
    "print_purchases",
    "print_receipts",
    "probe_document",
    "processed_document",
    "purchase_document",
    "purchases_document",
    "receipt_document",
    "rejections",
]


def money(name: str, amount_atomic: int, asset: Asset) -> dict[str, str]:
    """Return `{name_atomic: "1000", name: "0.001 USDC"}`."""
    return {f"{name}_atomic": str(amount_atomic), name: format_amount(amount_atomic, asset)}


def asset_document(asset: Asset) -> dict[str, Any]:
    """Return a token for programs."""
    return {
        "address": asset.address_text,
        "symbol": asset.symbol,
        "decimals": asset.decimals,
        "name": asset.name,
        "version": asset.version,
    }


def _offer_document(offer: Offer) -> dict[str, Any]:
    """Return the terms of one payment for programs."""
    return {
        "scheme": offer.scheme,
        "method": offer.method,
        "network": offer.network.caip2,
        "network_name": offer.network.label,
        "asset": asset_document(offer.asset),
        **money("price", offer.amount_atomic, offer.asset),
        "pay_to": address_text(offer.pay_to),
        "max_timeout_s": offer.max_timeout_s,
        "tier": tier_of(offer.extra),
    }


def probe_document(probe: Probe, rejected: Sequence[Rejection]) -> dict[str, Any]:
    """Return every payment option, and for those that cannot be paid the reason."""
    problems = {rejection.option.index: rejection.error for rejection in rejected}
    options = []
    for option in probe.asked.options:
        problem = problems.get(option.index)
        document: dict[str, Any] = {"index": option.index, "payable": problem is None}
        if option.terms is not None:
            document |= _offer_document(option.terms.offer)
        if problem is not None:
            document["problem"] = {"code": problem.code, "message": problem.message}
        options.append(document)
    return {
        "ok": True,
        "method": probe.method,
        "url": probe.url,
        "x402_version": probe.asked.x402_version,
        "options": options,
    }


def rejections(probe: Probe) -> list[Rejection]:
    """Return why options cannot be paid by anybody's policy: scheme, token or validity, not price."""
    policy = SpendPolicy(
        accept_quote=True, max_validity_s=SELLER_TIMEOUT_S_MAX, allow_v1=True, schemes=("exact", "upto")
    )
    return acceptable(probe.asked, policy, probe.url)[1]


def print_probe(probe: Probe, rejected: Sequence[Rejection]) -> None:
    """Print every payment option in words."""
    problems = {rejection.option.index: rejection.error for rejection in rejected}
    out.print(f"{probe.method} {probe.url} asks for payment (x402 version {probe.asked.x402_version})", markup=False)
    for option in probe.asked.options:
        problem = problems.get(option.index)
        words = "cannot be read" if option.terms is None else describe(option.terms.offer)
        out.print(f"  option {option.index}: {words}", markup=False)
        if problem is not None:
            out.print(f"      [yellow]not payable[/]: {escape(problem.message)}")


def plan_document(plan: Plan, choice: Choice | None) -> dict[str, Any]:
    """Return what would be signed."""
    draft = plan.draft
    offer = draft.terms.offer
    return {
        "name": draft.name,
        "endpoint": draft.endpoint,
        "model": draft.model,
        "payer": address_text(draft.payer),
        "top_up": draft.existing is not None,
        **_offer_document(offer),
        **money("price_cap", draft.price_cap_atomic, offer.asset),
        "count": plan.count + len(plan.resumed),
        "resumed": len(plan.resumed),
        **money("worst_case_loss", plan.worst_case_loss_atomic, offer.asset),
        **money("balance", plan.facts.balance_atomic, offer.asset),
        **money("live_before", plan.live_atomic, offer.asset),
        "valid_before_s": plan.valid_before_s,
        "agent": None if draft.agent is None else address_text(draft.agent),
        "days": [{"day": day, "count": more} for day, more in plan.days],
        "refill": _refill_document(draft.refill, offer.asset),
        "not_chosen": [
            {"index": rejection.option.index, "code": rejection.error.code, "message": rejection.error.message}
            for rejection in (choice.rejected if choice else [])
        ],
    }


def print_plan(plan: Plan, choice: Choice | None) -> None:
    """Print what would be signed; the worst-case loss stands out."""
    draft, offer = plan.draft, plan.draft.terms.offer
    asset = offer.asset
    for rejection in choice.rejected if choice else []:
        out.print(f"option {rejection.option.index} not chosen: {rejection.error.message}", markup=False, style="dim")
    out.print(f"seller    {draft.endpoint}  model {draft.model}", markup=False)
    out.print(f"terms     {describe(offer)}", markup=False)
    balance, live = (format_amount(amount, asset) for amount in (plan.facts.balance_atomic, plan.live_atomic))
    out.print(f"wallet    {address_text(draft.payer)} holds {balance}, {live} of it promised before", markup=False)
    count = plan.count + len(plan.resumed)
    resumed = f" ({len(plan.resumed)} of them unfinished before)" if plan.resumed else ""
    resumed += f" for {len(plan.days)} days" if plan.days else ""
    out.print(f"signs     {count} authorizations{resumed}, valid until {_time(plan.valid_before_s)}", markup=False)
    loss = format_amount(plan.worst_case_loss_atomic, asset)
    out.print(
        f"[bold]worst-case loss  {count} x {escape(format_amount(offer.amount_atomic, asset))} = {escape(loss)}[/] "
        f"({plan.worst_case_loss_atomic} atomic), to this seller only"
    )


def purchase_document(pool: Pool, purchase: Purchase, now_s: int) -> dict[str, Any]:
    """Return one purchase with its counts."""
    counts = pool.counts(purchase.name)
    asset = purchase.offer.asset
    return {
        "name": purchase.name,
        "state": purchase.state,
        "endpoint": purchase.endpoint,
        "model": purchase.model,
        "payer": address_text(purchase.payer),
        "x402_version": purchase.x402_version,
        **_offer_document(purchase.offer),
        **money("price_cap", purchase.price_cap_atomic, asset),
        **dataclasses.asdict(counts),
        "signed": counts.signed,
        "remaining": counts.remaining,
        "spendable": pool.spendable(purchase, now_s),
        "unfinished": len(pool.database.read(lambda connection: intents_of(connection, purchase))),
        "expires_first_s": pool.expires_first_s(purchase),
        **money("worst_case_loss", pool.worst_case_loss_atomic(purchase.name), asset),
        "refill": _refill_document(purchase.refill, asset),
        "agent": None if purchase.agent is None else address_text(purchase.agent),
        "calls_per_day": purchase.calls_per_day,
    }


def print_purchase(document: dict[str, Any]) -> None:
    """Print one purchase."""
    shown = document
    out.print(f"[bold]{escape(shown['name'])}[/]  {shown['state']}")
    out.print(f"  {shown['model']} at {shown['endpoint']}", markup=False)
    tier = f", {shown['tier']} tier" if shown["tier"] else ""
    out.print(f"  {shown['price']} a call on {shown['network_name']}, cap {shown['price_cap']}{tier}", markup=False)
    names = ("ready", "claimed", "sent", "unknown", "spent", "expired", "cancelled")
    states = "  ".join(f"{name} {shown[name]}" for name in names if shown[name] or name in ("ready", "spent"))
    out.print(f"  signed {shown['signed']} = {states}", markup=False)
    stale = shown["ready"] - shown["spendable"]
    if stale:
        out.print(
            f"  {stale} ready ones are of older terms, of a later day, or too near their end to be sent", markup=False
        )
    if shown["unfinished"]:
        out.print(f"  {shown['unfinished']} signings were interrupted; `farebox process` finishes them", markup=False)
    if shown["expires_first_s"]:
        out.print(f"  the first expires {_time(shown['expires_first_s'])}", markup=False)
    out.print(f"  worst-case loss {shown['worst_case_loss']}", markup=False)
    if shown["agent"]:
        out.print(f"  paid out of the wallet {shown['payer']}, signed by {shown['agent']}", markup=False)
        out.print(f"  at most {shown['calls_per_day']} calls are signed for each day, two days ahead", markup=False)
    if shown["refill"]:
        out.print(f"  refill: {_refill_words(shown['refill'])}", markup=False)


def purchases_document(pool: Pool, now_s: int) -> dict[str, Any]:
    """Return all purchases, and what the payments of all of them together could cost, by network and token."""
    purchases = pool.purchases()
    losses: Counter[tuple[Network, Asset]] = Counter()
    for purchase in purchases:
        losses[purchase.offer.network, purchase.offer.asset] += pool.worst_case_loss_atomic(purchase.name)
    return {
        "ok": True,
        "purchases": [purchase_document(pool, purchase, now_s) for purchase in purchases],
        "totals": [
            {
                "network": network.caip2,
                "network_name": network.label,
                "asset": asset.address_text,
                **money("worst_case_loss", loss_atomic, asset),
            }
            for (network, asset), loss_atomic in losses.items()
        ],
    }


def print_each_purchase(document: dict[str, Any]) -> None:
    """Print every purchase in full."""
    for each in document["purchases"]:
        print_purchase(each)
    _print_totals(document)


def print_purchases(document: dict[str, Any]) -> None:
    """Print all purchases as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "MODEL", "PRICE", "NETWORK", "READY", "UNKNOWN", "SPENT", "WORST CASE", "STATE"):
        table.add_column(column, justify="right" if column in ("READY", "UNKNOWN", "SPENT") else "left")
    for each in document["purchases"]:
        names = ("name", "model", "price", "network_name", "spendable", "unknown", "spent", "worst_case_loss", "state")
        table.add_row(*(escape(str(each[name])) for name in names))
    if document["purchases"]:
        out.print(table)
    _print_totals(document)


def _print_totals(document: dict[str, Any]) -> None:
    if not document["purchases"]:
        out.print("no purchases yet; `farebox buy` makes one")
    if len(document["purchases"]) > 1:
        losses = [f"{total['worst_case_loss']} on {total['network_name']}" for total in document["totals"]]
        out.print(f"worst-case loss of all: {', '.join(losses)}", markup=False)


def receipt_document(receipt: Receipt, asset: Asset | None) -> dict[str, Any]:
    """Return one receipt."""
    document: dict[str, Any] = dataclasses.asdict(receipt)
    document["price_atomic"] = str(receipt.price_atomic)
    document["charged_atomic"] = None if receipt.charged_atomic is None else str(receipt.charged_atomic)
    if asset is not None:
        document["price"] = format_amount(receipt.price_atomic, asset)
        if receipt.charged_atomic is not None:
            document["charged"] = format_amount(receipt.charged_atomic, asset)
    return document


def print_receipts(documents: Sequence[dict[str, Any]]) -> None:
    """Print receipts as a table."""
    if not documents:
        out.print("no receipts yet")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("TIME", "RECEIPT", "PURCHASE", "PRICE", "STATE", "STATUS", "ROUTE", "TRANSACTION"):
        table.add_column(column, overflow="fold")
    for document in documents:
        table.add_row(
            _time(document["at_s"] or 0),
            document["receipt_id"],
            escape(document["purchase"]),
            _price_words(document),
            document["state"],
            str(document["status"] or "-"),
            escape(document["route"] or "-"),
            document["transaction"] or "-",
        )
    out.print(table)


def _price_words(document: dict[str, Any]) -> str:
    """Return what a call cost; of a ceiling what was charged, with a mark while only the seller says so."""
    charged = document.get("charged") or document["charged_atomic"]
    if charged is None:
        return document.get("price") or str(document["price_atomic"])
    return charged if document["charge_proven"] else f"{charged} (unproven)"


def processed_document(processed: Processed) -> dict[str, Any]:
    """Return what one run did for one purchase."""
    return {
        "name": processed.name,
        "action": processed.action,
        "reason": processed.reason,
        "signed": processed.signed,
        "chain": processed.chain,
        "code": None if processed.error is None else processed.error.code,
    }


def print_processed(documents: Sequence[dict[str, Any]]) -> None:
    """Print what a run did."""
    if not documents:
        out.print("nothing to do: there are no purchases")
    for document in documents:
        found = ", ".join(f"{count} {state}" for state, count in document["chain"].items() if count)
        chain = f"  (chain: {found})" if found else ""
        out.print(f"{document['name']}: {document['action']}: {document['reason']}{chain}", markup=False)


def _refill_document(refill: RefillPolicy | None, asset: Asset) -> dict[str, Any] | None:
    if refill is None:
        return None
    document: dict[str, Any] = {"enabled": refill.enabled, "threshold": refill.threshold, "count": refill.count}
    if refill.max_total_atomic is not None:
        document |= money("max_total", refill.max_total_atomic, asset)
    if refill.max_per_day_atomic is not None:
        document |= money("max_per_day", refill.max_per_day_atomic, asset)
    return document


def _refill_words(refill: dict[str, Any]) -> str:
    when = f"{refill['count']} more at {refill['threshold']} left" if refill["enabled"] else "off"
    caps = [f"at most {refill[name]} {words}" for name, words in _CAP_WORDS.items() if name in refill]
    return ", ".join([when, *caps])


_CAP_WORDS = {"max_total": "in all", "max_per_day": "a day"}


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

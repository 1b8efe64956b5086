"""What the discover commands print: JSON documents, and the same for a person.

Text of strangers stands under `untrusted` in every document, cleaned, and is escaped where it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from contracts.address import Address, address_text
from contracts.console import out
from contracts.money import Asset, format_amount
from contracts.networks import parse_network
from contracts.offers import Offer
from registry.candidates import Candidate
from registry.card import Card, Service
from registry.listings import Listing
from registry.rank import Offered
from registry.reputation import Reputation
from registry.search import Result
from registry.standing import Finding
from registry.verification import Step, Verdict

__all__ = [
    "agent_document",
    "finding_document",
    "listing_document",
    "print_agent",
    "print_card",
    "print_findings",
    "print_listings",
    "print_reputation",
    "print_results",
    "reputation_document",
    "result_document",
    "untrusted",
]

_MARKS = {
    "ok": "[green]ok[/]",
    "absent": "[yellow]absent[/]",
    "mismatch": "[bold red]MISMATCH[/]",
    "unreachable": "[yellow]unreachable[/]",
    "not_applicable": "[dim]not applicable[/]",
}
_STATE_MARKS = {"verified": "[green]verified[/]", "blocked": "[bold red]blocked[/]", "unproven": "[yellow]unproven[/]"}


def untrusted(card: Card) -> dict[str, Any]:
    """Return what a registration file says, marked as somebody else's words."""
    return {
        "name": card.name,
        "description": card.description,
        "services": [_service_document(service) for service in card.services],
        "skills": list(card.skills),
        "tags": list(card.tags),
    }


def result_document(result: Result, *, explain: bool) -> dict[str, Any]:
    """Return one search result."""
    document = {
        "agent": str(result.agent),
        "score": round(result.terms.score, 6),
        "state": result.state,
        "verdict": result.verdict,
        "reason": result.reason,
        "endpoint": result.endpoint,
        "pay_to": _address(result.pay_to),
        **_price(result.offered),
        "latency_ms": result.latency_ms,
        "rating": result.rating,
        "surveyed_at_s": result.surveyed_at_s,
        "untrusted": {**untrusted(result.card), "models": list(result.models)},
    }
    if explain:
        document["terms"] = {name: round(value, 4) for name, value in asdict(result.terms).items()}
    return document


def print_results(results: Sequence[Result], *, explain: bool) -> None:
    """Print results as a table, with agents in their short spelling; names are somebody else's words."""
    if not results:
        out.print("nothing found; `farebox discover sync` brings the index up to date")
        return
    table = Table(box=None, pad_edge=False)
    columns = ["AGENT", "NAME", "PRICE", "NETWORK", "PROOF", "STATE", "RATING", "SCORE"]
    for column in [*columns, *(["text", "liveness", "proof", "rating", "price"] if explain else [])]:
        # An id is copied from here, and must stay in one piece.
        table.add_column(column, overflow="fold", min_width=min(len(column), 8), no_wrap=column == "AGENT")
    for result in results:
        terms = result.terms
        factors = (terms.text, terms.liveness, terms.verification, terms.reputation, terms.price)
        table.add_row(
            f"{result.agent.chain_id}:{result.agent.number}",
            escape(result.card.name),
            escape(_price_words(result.offered)),
            "-" if result.offered.network is None else _label(result.offered.network),
            _STATE_MARKS.get(result.verdict, "[dim]unknown[/]"),
            result.state,
            "unrated" if result.rating is None else f"{result.rating:.2f}",
            f"{terms.score:.3f}",
            *([f"{factor:.2f}" for factor in factors] if explain else []),
        )
    out.print(table)


def listing_document(listing: Listing) -> dict[str, Any]:
    """Return what one facilitator lists; `source` is who says so."""
    return {
        "source": listing.source,
        "match": listing.match,
        "kind": listing.kind,
        "pay_to": _address(listing.pay_to),
        **_price(listing.offered),
        "calls_30_days": listing.calls_30_days,
        "payers_30_days": listing.payers_30_days,
        "fetched_at_s": listing.fetched_at_s,
        "untrusted": {
            "resource": listing.resource,
            "tool": listing.tool,
            "name": listing.name,
            "description": listing.description,
            "tags": list(listing.tags),
        },
    }


def print_listings(listings: Sequence[Listing]) -> None:
    """Print listed items that belong to no agent."""
    if not listings:
        return
    out.print("\nlisted by facilitators, in no registry; nothing about them is proven:")
    table = Table(box=None, pad_edge=False)
    for column in ("RESOURCE", "NAME", "PRICE", "PAYERS IN 30 DAYS", "SOURCE"):
        table.add_column(column, overflow="fold")
    for listing in listings:
        payers = "-" if listing.payers_30_days is None else str(listing.payers_30_days)
        words = (listing.resource, listing.name, _price_words(listing.offered), payers, listing.source)
        table.add_row(*map(escape, words))
    out.print(table)


def agent_document(candidate: Candidate, standing: dict[str, Any] | None, warnings: Sequence[str]) -> dict[str, Any]:
    """Return what the index has of one agent."""
    card = candidate.card
    return {
        "agent": str(candidate.agent),
        "owner": _address(candidate.on_chain.owner),
        "wallet": _address(candidate.on_chain.wallet),
        "file": {
            "state": "ok" if card is not None else "missing",
            "error": candidate.error,
            "warnings": list(warnings),
            "content_hash": None if candidate.content_hash is None else "0x" + candidate.content_hash.hex(),
            "names_this_id": None if card is None else card.names(candidate.agent),
            "says_x402": None if card is None else card.x402,
            "says_active": None if card is None else card.active,
        },
        "standing": standing,
        "untrusted": {"uri": candidate.on_chain.uri[:2048], **(untrusted(card) if card is not None else {})},
    }


def print_agent(document: dict[str, Any]) -> None:
    """Print one agent."""
    theirs = document["untrusted"]
    out.print(f"[bold]{document['agent']}[/]")
    out.print(f"  says its name is {theirs.get('name') or '(nothing)'}", markup=False)
    if theirs.get("description"):
        out.print(f"  says of itself: {theirs['description']}", markup=False)
    out.print(f"  owner {document['owner'] or '-'}  wallet {document['wallet'] or 'unset'}", markup=False)
    file = document["file"]
    found = ", ".join(file["warnings"]) or "no warnings"
    out.print(f"  file {file['state']}{': ' + file['error'] if file['error'] else ''} ({found})", markup=False)
    for service in theirs.get("services", []):
        out.print(f"    {service['name']}: {service['endpoint']}", markup=False)
    standing = document["standing"]
    if standing is not None:
        out.print(f"  last survey: {standing['state']}, {standing['verdict']} {standing['reason']}", markup=False)
        if standing.get("price"):
            out.print(f"  asks {standing['price']} to {standing['pay_to']} at {standing['endpoint']}", markup=False)


def print_card(document: dict[str, Any]) -> None:
    """Print a registration file as it was found."""
    out.print(f"{document['bytes']} bytes, sha256 {document['content_hash']}")
    out.print("warnings: " + (", ".join(document["warnings"]) or "none"))
    theirs = document["untrusted"]
    if theirs is None:
        out.print("it is no registration file")
        return
    out.print(f"says its name is {theirs['name'] or '(nothing)'}", markup=False)
    out.print(f"says of itself: {theirs['description'] or '(nothing)'}", markup=False)
    for service in theirs["services"]:
        out.print(f"  {service['name']}: {service['endpoint']}", markup=False)


def finding_document(finding: Finding) -> dict[str, Any]:
    """Return what one endpoint answered, and what is proven there."""
    probe, offer = finding.probe, finding.offer
    return {
        "endpoint": probe.endpoint,
        "state": probe.state,
        "http_status": probe.status,
        "latency_ms": probe.latency_ms,
        "error": probe.error,
        **({} if offer is None else _price(_offered_of(offer))),
        "pay_to": None if offer is None else address_text(offer.pay_to),
        **_verdict_document(finding.verdict),
        "untrusted": {"models": list(probe.models)},
    }


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Return the ladder."""
    return {"verdict": verdict.state, "reason": verdict.reason, "steps": [asdict(step) for step in verdict.steps]}


def print_findings(findings: Iterable[Finding]) -> None:
    """Print each endpoint with its ladder."""
    for finding in findings:
        offer = finding.offer
        out.print(f"[bold]{escape(finding.probe.endpoint)}[/]  {_STATE_MARKS[finding.verdict.state]}")
        if offer is not None:
            price = format_amount(offer.amount_atomic, offer.asset)
            where = f"{price} on {offer.network.label} to {address_text(offer.pay_to)}"
            out.print(f"  asks {where}, answers in {finding.probe.latency_ms} ms", markup=False)
        else:
            out.print(f"  {finding.probe.state}: {finding.probe.error}", markup=False)
        for step in finding.verdict.steps:
            _print_step(step)


def _print_step(step: Step) -> None:
    """Print one rung."""
    out.print(f"  {step.name:8} {_MARKS[step.result]}  {escape(step.detail)}")


def reputation_document(reputation: Reputation) -> dict[str, Any]:
    """Return a reputation; `score` is null for an unrated agent."""
    return {
        "score": reputation.score,
        "own": None if reputation.own is None else {**asdict(reputation.own), "score": reputation.own.score},
        "reviewers": reputation.reviewers,
        "related_reviewers": reputation.related,
        "tags": [asdict(tag) for tag in reputation.tags],
    }


def print_reputation(reputation: Reputation) -> None:
    """Print a reputation, counts before scores."""
    own = reputation.own
    if own is None:
        out.print("you never paid it")
    else:
        out.print(f"you paid it {own.calls} times and were served {own.served} times")
    score = reputation.score
    out.print("[bold]unrated[/]" if score is None else f"[bold]{score:.2f}[/] of 1")
    if not reputation.tags:
        out.print("nobody rated it")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("TAG", "RAW", "FILTERED", "PAID", "MEAN OF PAID"):
        table.add_column(column)
    for tag in reputation.tags:
        mean = "-" if tag.mean is None else f"{tag.mean:.1f}"
        table.add_row(escape(tag.tag or "(none)"), str(tag.raw), str(tag.filtered), str(tag.paid), mean)
    out.print(table)
    out.print(f"{reputation.reviewers} reviewers, {reputation.related} of them the agent's own addresses")


def _offered_of(offer: Offer) -> Offered:
    """Return an offer as the index keeps it."""
    asset = offer.asset
    return Offered(offer.network.caip2, asset.address, str(offer.amount_atomic), asset.decimals, asset.symbol)


def _service_document(service: Service) -> dict[str, str]:
    return {"name": service.name, "endpoint": service.endpoint, "version": service.version}


def _price(offered: Offered) -> dict[str, Any]:
    asset = None if offered.asset is None else address_text(offered.asset)
    words = None if offered.price_atomic is None else _price_words(offered)
    return {"network": offered.network, "asset": asset, "price_atomic": offered.price_atomic, "price": words}


def _price_words(offered: Offered) -> str:
    if offered.price_atomic is None or offered.asset is None or offered.decimals is None:
        return "-"
    asset = Asset(Address(offered.asset), "", "", offered.decimals, offered.symbol or "")
    return format_amount(int(offered.price_atomic), asset)


def _label(network: str) -> str:
    return parse_network(network).label


def _address(address: Address | None) -> str | None:
    return None if address is None else address_text(address)

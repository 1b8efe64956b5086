"""Buying from the registry: search, verify, probe, and only then an order; every check is shown before signing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from buyer.agent_notes import agents_held, forget_agent, remember_agent
from buyer.home import Home
from buyer.limits import RECEIPTS_MAX, SELLERS_TRIED_MAX
from buyer.pool import Pool
from buyer.presign import Plan
from contracts.address import Address, address_text, parse_address
from contracts.console import out
from contracts.errors import FareboxError, NameUnknown, TermsNotAllowed, UsageError
from contracts.networks import parse_network
from contracts.offers import Offer
from registry.agent_id import AgentId, parse_agent_id
from registry.fetch import Fetcher
from registry.guard import NetworkPolicy
from registry.index import Index
from registry.limits import SEARCH_LIMIT_MAX
from registry.reputation import PaidCall
from registry.search import Query, dollars, search
from registry.shown import finding_document, print_findings
from registry.standing import Finding
from registry.verify import Check, Checked, require_payable, verify_agent
from registry.wiring import gateways, the_index

__all__ = [
    "Refused",
    "Seller",
    "Wanted",
    "choose_seller",
    "find_seller",
    "note_seller",
    "own_calls",
    "paid_calls",
    "seller_document",
]

Announce = Callable[["Refused | Seller"], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where to buy: at the `endpoint`, from the one `agent`, or from the best seller for a `query`; one of the three.

    Without a `model` the only one that the agent sells is taken.
    """

    endpoint: str | None
    query: str | None
    agent: str | None
    model: str | None
    max_price: str | None
    networks: Sequence[str]
    rpc_urls: Sequence[str]
    index: Path | None = None
    allow_private: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """An agent that is not bought from, and why."""

    agent: str
    error: FareboxError


@dataclass(frozen=True, slots=True)
class Seller:
    """An agent whose checks hold: buy `model` at `endpoint`, and pay nobody but `payees` on its own chain."""

    agent: AgentId
    endpoint: str
    model: str
    payees: tuple[Address, ...]
    finding: Finding
    is_chain_live: bool
    refused: tuple[Refused, ...] = ()

    def check(self, offer: Offer) -> None:
        """Raise `TermsNotAllowed` unless `offer`, asked for since, still pays the agent."""
        if offer.network != self.agent.network or offer.pay_to not in self.payees:
            raise TermsNotAllowed(
                f"{self.agent}: now asks to be paid at {address_text(offer.pay_to)} on {offer.network.label}, which is "
                "not what was verified a moment ago",
                remedy="choose another seller",
            )


def choose_seller(pool: Pool, name: str, wanted: Wanted, *, quiet: bool) -> Seller | None:
    """Return the agent to buy from, every check of it printed unless `quiet`; None where the user named an endpoint.

    A query takes the best seller that no other purchase of this home is of, so that asking it again under another name
    buys from the next one; under the same name it adds to what is there. Raises `UsageError` for a choice that is none,
    and as `find_seller`.
    """
    if sum(way is not None for way in (wanted.endpoint, wanted.query, wanted.agent)) != 1:
        raise UsageError("--endpoint, --agent or --from: give one of them")
    if wanted.endpoint is not None:
        if wanted.model is None:
            raise UsageError("--model: is required with --endpoint")
        return None
    held = agents_held(pool)
    if wanted.query is not None and name in held:
        wanted = replace(wanted, query=None, agent=held[name])
    announce: Announce = (lambda _: None) if quiet else _print_considered
    return find_seller(wanted, paid_calls(pool), announce, passed_over=frozenset(held.values()))


def paid_calls(pool: Pool) -> list[PaidCall]:
    """Return the pool's own paid calls, as the registry's reputation takes them."""
    return [
        PaidCall(
            network=receipt.network,
            payee=parse_address(receipt.payee),
            is_served=receipt.state == "spent" and receipt.status is not None and receipt.status < 400,
            at_s=receipt.at_s,
            latency_ms=receipt.latency_ms,
        )
        for receipt in pool.receipts(name=None, limit=RECEIPTS_MAX)
        if receipt.state != "cancelled"
    ]


def own_calls() -> list[PaidCall]:
    """Return the paid calls of the home's pool; none where there is no pool yet."""
    home = Home.open()
    if not home.has_pool:
        return []
    with Pool.open(home) as pool:
        return paid_calls(pool)


def find_seller(
    wanted: Wanted, calls: Sequence[PaidCall], announce: Announce, *, passed_over: Collection[str] = ()
) -> Seller:
    """Return the seller to buy from; `announce` is told of it, and before of everyone that was refused.

    A query does not find the agents in `passed_over`. Raises what refused a named agent; for a query, `TermsNotAllowed`
    when none of the best could be bought from.
    """
    if not wanted.rpc_urls:
        raise UsageError("--rpc: is required, to ask the chain who the agent is", remedy="or set FAREBOX_RPC")
    with the_index(wanted.index, must_exist=True) as index:
        if wanted.agent is not None:
            parse_agent_id(wanted.agent, "--agent")
            seller = asyncio.run(_checked(index, wanted.agent, wanted))
            announce(seller)
            return seller
        names = _best(index, wanted, calls, passed_over)
        refused: list[Refused] = []
        for name in names:
            try:
                seller = asyncio.run(_checked(index, name, wanted, tuple(refused)))
            except FareboxError as error:
                refused.append(Refused(name, error))
                announce(refused[-1])
            else:
                announce(seller)
                return seller
    raise TermsNotAllowed(
        f"--from: none of the best {len(names)} for {wanted.query!r} can be bought from: {refused[0].error.message}",
        remedy="see the reasons with `farebox discover verify AGENT`",
    )


def seller_document(seller: Seller) -> dict[str, Any]:
    """Return what was checked, for programs."""
    refused = [{"agent": each.agent, "code": each.error.code, "message": each.error.message} for each in seller.refused]
    return {
        "agent": str(seller.agent),
        "chain_read": "live" if seller.is_chain_live else "index",
        "model": seller.model,
        **finding_document(seller.finding),
        "refused": refused,
    }


def _print_considered(considered: Refused | Seller) -> None:
    """Print one agent that was looked at, with every check of the one that is bought from."""
    if isinstance(considered, Refused):
        out.print(f"[yellow]not bought from[/] {escape(considered.error.message)}")
        return
    out.print(f"[bold]{considered.agent}[/]  model {escape(considered.model)}")
    print_findings([considered.finding])


def note_seller(home: Home, seller: Seller | None, plan: Plan) -> None:
    """Before signing, note which agent a purchase is of, so that it is asked about again before more is signed.

    A new purchase of no agent has no note, also where an earlier one of that name had.
    """
    draft = plan.draft
    if seller is not None:
        is_pinned = any(step.name == "payee" and "pinned" in step.detail for step in seller.finding.verdict.steps)
        remember_agent(home, draft.name, seller.agent, draft.terms.offer.pay_to if is_pinned else None)
    elif draft.existing is None:
        forget_agent(home, draft.name)


def _best(index: Index, wanted: Wanted, calls: Sequence[PaidCall], passed_over: Collection[str]) -> list[str]:
    """Return the agents to look at, the most promising first. Raises `NameUnknown` when there is none."""
    query = Query(
        text=wanted.query or "",
        max_price=None if wanted.max_price is None else dollars(wanted.max_price, "--max-price"),
        network=parse_network(wanted.networks[0], "--network") if len(wanted.networks) == 1 else None,
        limit=min(SEARCH_LIMIT_MAX, SELLERS_TRIED_MAX + len(passed_over)),
    )
    now_s = int(time.time())
    results = index.database.read(lambda connection: search(connection, query, now_s, calls))
    payable = [result for result in results if result.state == "payable"]
    # An agent that lists models, and not the one that is wanted, can hardly have it.
    payable.sort(
        key=lambda result: bool(result.models) and wanted.model is not None and wanted.model not in result.models
    )
    names = [str(result.agent) for result in payable if str(result.agent) not in passed_over]
    if names:
        return names[:SELLERS_TRIED_MAX]
    if payable:
        raise NameUnknown(
            f"--from: every seller that fits {wanted.query!r} is one of another purchase already",
            remedy="add to that purchase by its name, or run `farebox discover sync`",
        )
    if results:
        raise NameUnknown(
            f"--from: of the {len(results)} that fit {wanted.query!r}, none named a price when it was last asked",
            remedy="run `farebox discover sync`; `farebox discover search` shows them",
        )
    raise NameUnknown(f"--from: nothing in the index fits {wanted.query!r}", remedy="run `farebox discover sync`")


async def _checked(index: Index, name: str, wanted: Wanted, refused: tuple[Refused, ...] = ()) -> Seller:
    check = Check(agent=name, model=wanted.model, gateways=gateways(None, allow_private=wanted.allow_private))
    async with Fetcher(NetworkPolicy(allow_private=wanted.allow_private)) as fetcher:
        checked: Checked = await verify_agent(index.database, fetcher, check, wanted.rpc_urls, int(time.time()))
    finding, payees = require_payable(checked)
    agent = checked.candidate.agent
    model = wanted.model or _only(finding.probe.models, agent)
    return Seller(agent, finding.probe.endpoint, model, payees, finding, checked.is_live, refused)


def _only(models: Sequence[str], agent: AgentId) -> str:
    if len(models) == 1:
        return models[0]
    listed = ", ".join(models[:8]) or "none"
    raise UsageError(f"--model: is required; {agent} lists {listed}", remedy="name one with --model")

"""Checking one agent now, before it is trusted or paid: chain, file, domain, content and price, all read afresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from contracts.address import Address, parse_address
from contracts.errors import TermsNotAllowed
from contracts.storage import Connection, Database
from registry.candidates import Candidate, find_candidate
from registry.documents import read_document
from registry.fetch import Fetcher
from registry.onchain import read_agent
from registry.retrieve import Gateways, retrieve
from registry.standing import Finding, add_pin, approve, read_pins, store_survey
from registry.survey import Surveyor
from registry.verification import Pin

__all__ = ["Check", "Checked", "require_payable", "verify_agent"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Which agent to check, in any spelling; which `model` to ask the price of; and what the user decides with it.

    `pin` is a payee to trust from now on; `accept` takes the file as it is, so that a later change is a mismatch.
    """

    agent: str
    model: str | None = None
    pin: str | None = None
    accept: bool = False
    gateways: Gateways = field(default_factory=Gateways)


@dataclass(frozen=True, slots=True)
class Checked:
    """An agent as it is now, and what was found at its endpoints, the best first. `is_live`: the chain was asked."""

    candidate: Candidate
    findings: list[Finding]
    is_live: bool


async def verify_agent(
    database: Database, fetcher: Fetcher, check: Check, rpc_urls: Sequence[str], now_s: int
) -> Checked:
    """Climb the ladder for the agent of `check`, keep what was found, and return it.

    Without `rpc_urls` the chain is as the index has it. Raises `UsageError`, `NameUnknown`, `ChainUnavailable`.
    """
    pin = None if check.pin is None else parse_address(check.pin, "--pin")
    candidate = database.read(partial(find_candidate, text=check.agent))
    if rpc_urls:
        candidate = replace(candidate, on_chain=await read_agent(rpc_urls, candidate.agent))
    candidate = await _with_file(candidate, fetcher, check.gateways)
    if check.accept and candidate.content_hash is not None:
        content_hash = candidate.content_hash
        candidate = replace(candidate, approved_hash=content_hash)
        database.transact(partial(approve, agent=candidate.agent, content_hash=content_hash, now_s=now_s))
    pins = database.read(partial(read_pins, agent=candidate.agent))
    if pin is not None:
        pins.append(Pin(candidate.agent.network.caip2, pin))
        database.transact(partial(add_pin, agent=candidate.agent, pin=pins[-1], note="", now_s=now_s))
    findings = await Surveyor(fetcher, check.model).look(candidate, pins)
    if findings:
        database.transact(partial(_store, candidate=candidate, findings=findings, now_s=now_s), durable=False)
    return Checked(candidate, findings, bool(rpc_urls))


def require_payable(checked: Checked) -> tuple[Finding, tuple[Address, ...]]:
    """Return the endpoint to buy at, and whom it may pay. Raises `TermsNotAllowed` naming what is wrong.

    Nothing blocked is bought; and what is not proven about the payee is not either, unless the user pinned it.
    """
    agent = checked.candidate.agent
    if not checked.findings:
        raise TermsNotAllowed(f"{agent}: its file names nothing that is sold over HTTP", remedy="choose another seller")
    best = checked.findings[0]
    steps = {step.name: step for step in best.verdict.steps}
    if best.verdict.state == "blocked":
        raise TermsNotAllowed(
            f"{agent}: {best.verdict.reason}",
            remedy=f"choose another seller; if you know better, farebox discover verify {agent} --pin ADDRESS",
        )
    if steps["payee"].result != "ok":
        raise TermsNotAllowed(f"{agent}: payee: {steps['payee'].detail}", remedy="choose another seller")
    return best, tuple(offer.pay_to for offer in best.probe.offers if offer.network == agent.network)


async def _with_file(candidate: Candidate, fetcher: Fetcher, gateways: Gateways) -> Candidate:
    """Return the candidate with its registration file as it is now."""
    found = await retrieve(candidate.on_chain.uri, fetcher, gateways)
    if found.data is None:
        return replace(candidate, card=None, content_hash=None, error=found.error)
    card = read_document(found.data).card
    return replace(candidate, card=card, content_hash=found.content_hash, error=None)


def _store(connection: Connection, candidate: Candidate, findings: Sequence[Finding], now_s: int) -> None:
    store_survey(connection, candidate, findings, now_s, set())

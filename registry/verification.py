"""The verification ladder: what is proven about an agent, step by step, each with a named result. Pure.

1. `chain`: the id exists; owner and wallet are known.
2. `file`: the registration file names this very id, and no other's was copied.
3. `domain`: the endpoint's domain names this id at /.well-known/agent-registration.json, or serves the file itself.
4. `content`: the file is what the user accepted before, where he did.
5. `payee`: what the live 402 asks is paid to the agent's wallet, or its owner, on the agent's own chain.

Each is `ok`, `absent` (nothing claims it), `mismatch` (something contradicts it), `unreachable` (could not be looked
at) or `not_applicable`. A mismatch blocks. Source: ERC-8004, "Endpoint Domain Verification"; x402 has no such rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from contracts.address import Address, address_text
from contracts.offers import Offer
from registry.agent_id import AgentId, read_agent_id
from registry.card import Card

__all__ = [
    "OnChain",
    "Pin",
    "Result",
    "Step",
    "Verdict",
    "check_chain",
    "check_content",
    "check_domain",
    "check_file",
    "check_payee",
    "judge",
    "origin_of",
]

Result = Literal["ok", "absent", "mismatch", "unreachable", "not_applicable"]
VerdictState = Literal["verified", "unproven", "blocked"]


@dataclass(frozen=True, slots=True)
class Step:
    """One rung: `subject` is the domain or endpoint it speaks of, "" for the agent itself; `detail` is our own text."""

    name: str
    result: Result
    detail: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class OnChain:
    """What the chain says of an agent at one block. `wallet` is None when unset, which every transfer does."""

    owner: Address | None
    wallet: Address | None
    uri: str = ""

    @property
    def payees(self) -> tuple[Address, ...]:
        """Who may be paid for this agent: its wallet, and its owner."""
        return tuple(dict.fromkeys(address for address in (self.wallet, self.owner) if address is not None))


@dataclass(frozen=True, slots=True)
class Pin:
    """A payee the user trusts for an agent although the chain does not name it."""

    network: str
    pay_to: Address


@dataclass(frozen=True, slots=True)
class Verdict:
    """All steps, and what follows: `verified`, `unproven` (something is missing) or `blocked` with the `reason`."""

    state: VerdictState
    steps: tuple[Step, ...]
    reason: str = ""


def check_chain(on_chain: OnChain | None) -> Step:
    """Tell whether the id exists."""
    if on_chain is None or on_chain.owner is None:
        return Step("chain", "absent", "no such id is registered")
    if on_chain.wallet is None:
        return Step("chain", "ok", f"owned by {address_text(on_chain.owner)}; its wallet is unset")
    return Step("chain", "ok", f"paid at {address_text(on_chain.wallet)}")


def check_file(agent: AgentId, card: Card | None, error: str | None) -> Step:
    """Tell whether the registration file names `agent`."""
    if card is None:
        if error is not None:
            return Step("file", "unreachable", f"it cannot be had ({error})")
        return Step("file", "absent", "it is no registration file")
    if card.names(agent):
        return Step("file", "ok", "names this id")
    if card.registrations:
        return Step("file", "mismatch", "names another id: it was written for another agent")
    return Step("file", "absent", "names no id")


def check_domain(agent: AgentId, origin: str, file_url: str | None, proof: Any, error: str | None) -> Step:
    """Tell whether the domain of `origin` stands by `agent`. `proof` is its decoded well-known document."""
    if file_url is not None and origin_of(file_url) == origin:
        return Step("domain", "ok", "the registration file is served there", origin)
    if error is not None:
        is_missing = error in ("status_404", "status_410", "too_many_redirects")
        if is_missing:
            return Step("domain", "absent", f"it publishes no proof ({error})", origin)
        return Step("domain", "unreachable", f"it cannot be asked ({error})", origin)
    listed = proof.get("registrations") if isinstance(proof, dict) else None
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    named = [read_agent_id(entry.get("agentRegistry"), entry.get("agentId")) for entry in entries]
    if agent in named:
        return Step("domain", "ok", "names this id", origin)
    if any(name is not None for name in named):
        return Step("domain", "mismatch", "stands by other ids, not by this one", origin)
    return Step("domain", "absent", "its proof names no id", origin)


def check_content(content_hash: bytes | None, approved_hash: bytes | None) -> Step:
    """Tell whether the file is still the one the user accepted."""
    if approved_hash is None:
        return Step("content", "not_applicable", "no earlier file was accepted")
    if content_hash is None:
        return Step("content", "unreachable", "the file cannot be read now")
    if content_hash == approved_hash:
        return Step("content", "ok", "unchanged since it was accepted")
    return Step("content", "mismatch", "the file changed since it was accepted")


def check_payee(
    agent: AgentId, on_chain: OnChain | None, endpoint: str, offers: Sequence[Offer] | None, pins: Collection[Pin]
) -> Step:
    """Tell whether everything `endpoint` asks for on the agent's chain goes to the agent. None: no price was heard."""
    if offers is None:
        return Step("payee", "unreachable", "the endpoint names no price now", endpoint)
    unproven = [offer for offer in offers if Pin(offer.network.caip2, offer.pay_to) not in pins]
    if not unproven:
        return Step("payee", "ok", "pinned by you", endpoint)
    here = [offer for offer in unproven if offer.network.chain_id == agent.chain_id]
    if not here:
        where = ", ".join(sorted({offer.network.label for offer in unproven}))
        return Step("payee", "not_applicable", f"it is paid on {where} only, where the registry says nothing", endpoint)
    expected = () if on_chain is None else on_chain.payees
    for offer in here:
        if offer.pay_to not in expected:
            named = " or ".join(address_text(address) for address in expected) or "nobody"
            detail = f"the 402 pays {address_text(offer.pay_to)}, the registry names {named}"
            return Step("payee", "mismatch", detail, endpoint)
    is_wallet = on_chain is not None and all(offer.pay_to == on_chain.wallet for offer in here)
    return Step("payee", "ok", "the 402 pays the agent's " + ("wallet" if is_wallet else "owner"), endpoint)


def judge(steps: Iterable[Step]) -> Verdict:
    """Return what follows from the steps: one mismatch blocks, and only complete proof verifies."""
    taken = tuple(steps)
    wrong = next((step for step in taken if step.result == "mismatch"), None)
    if wrong is not None:
        return Verdict("blocked", taken, f"{wrong.name}: {wrong.detail}")
    if not any(step.name == "chain" and step.result == "ok" for step in taken):
        return Verdict("blocked", taken, "chain: no such id is registered")
    results = {step.name: step.result for step in taken}
    if all(results.get(name) == "ok" for name in ("chain", "file", "domain", "payee")):
        return Verdict("verified", taken)
    missing = next(step for step in taken if step.result != "ok" and step.name != "content")
    return Verdict("unproven", taken, f"{missing.name}: {missing.detail}")


def origin_of(url: str) -> str:
    """Return `scheme://host[:port]` of a URL, without the port where it is the usual one; "" for anything else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    usual = {"http": 80, "https": 443}[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")

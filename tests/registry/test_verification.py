"""Goal: an agent is called verified only when every rung holds, and one contradiction blocks it, by name.

Method: a good agent, and one fact of it changed at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from contracts.address import Address, address_text, parse_address
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer
from registry.agent_id import AgentId
from registry.card import Card, Registration
from registry.verification import (
    OnChain,
    Pin,
    Verdict,
    check_chain,
    check_content,
    check_domain,
    check_file,
    check_payee,
    judge,
)

REGISTRY = parse_address("0x8004A818BFB912233c491871b3d84c89A494BD9e")
AGENT = AgentId(84532, REGISTRY, 42)
OWNER, WALLET, STRANGER = (Address(bytes([n]) * 20) for n in (1, 2, 3))
USDC = Asset(Address(bytes([9]) * 20), "USDC", "2", 6, "USDC")
ORIGIN = "https://seller.example"
ENDPOINT = ORIGIN + "/v1"


def offer(pay_to: Address = WALLET, chain_id: int = 84532) -> Offer:
    return Offer("exact", Network(chain_id), USDC, 1000, pay_to, 60)


def entry(agent: AgentId) -> dict[str, Any]:
    return {"agentId": agent.number, "agentRegistry": f"eip155:{agent.chain_id}:{address_text(agent.registry).lower()}"}


def naming(*agents: AgentId) -> Card:
    return Card(registrations=tuple(Registration(a.chain_id, address_text(a.registry), str(a.number)) for a in agents))


OTHER = replace(AGENT, number=43)


@dataclass(frozen=True)
class Facts:
    on_chain: OnChain | None = field(default_factory=lambda: OnChain(OWNER, WALLET))
    card: Card | None = field(default_factory=lambda: naming(AGENT))
    file_url: str | None = None
    proof: Any = field(default_factory=lambda: {"registrations": [entry(AGENT)]})
    proof_error: str | None = None
    content: bytes | None = b"hash"
    approved: bytes | None = None
    offers: tuple[Offer, ...] | None = field(default_factory=lambda: (offer(),))
    pins: tuple[Pin, ...] = ()

    def verdict(self) -> Verdict:
        return judge(
            [
                check_chain(self.on_chain),
                check_file(AGENT, self.card, None if self.card else "timeout"),
                check_domain(AGENT, ORIGIN, self.file_url, self.proof, self.proof_error),
                check_content(self.content, self.approved),
                check_payee(AGENT, self.on_chain, ENDPOINT, self.offers, self.pins),
            ]
        )


@pytest.mark.parametrize(
    "facts",
    [
        Facts(),
        Facts(offers=(offer(OWNER),)),
        Facts(on_chain=OnChain(OWNER, None), offers=(offer(OWNER),)),
        Facts(file_url=ORIGIN + "/card.json", proof=None, proof_error="timeout"),
        Facts(approved=b"hash"),
        Facts(offers=(offer(STRANGER),), pins=(Pin("eip155:84532", STRANGER),)),
        Facts(offers=(offer(), offer(STRANGER, chain_id=8453))),
        Facts(card=naming(OTHER, AGENT)),
    ],
)
def test_an_agent_whose_every_rung_holds_is_verified(facts: Facts) -> None:
    assert (facts.verdict().state, facts.verdict().reason) == ("verified", "")


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (Facts(offers=(offer(STRANGER),)), "payee"),
        (Facts(offers=(offer(), offer(STRANGER))), "payee"),
        (Facts(on_chain=OnChain(OWNER, None)), "payee"),
        (Facts(offers=(offer(STRANGER),), pins=(Pin("eip155:8453", STRANGER),)), "payee"),
        (Facts(card=naming(OTHER)), "file"),
        (Facts(proof={"registrations": [entry(OTHER)]}), "domain"),
        (Facts(approved=b"other"), "content"),
        (Facts(on_chain=None, offers=None), "chain"),
    ],
)
def test_one_contradiction_blocks_and_is_named(facts: Facts, step: str) -> None:
    verdict = facts.verdict()
    assert verdict.state == "blocked"
    assert verdict.reason.startswith(step + ": ")


@pytest.mark.parametrize(
    ("facts", "step", "result"),
    [
        (Facts(card=None), "file", "unreachable"),
        (Facts(card=Card()), "file", "absent"),
        (Facts(proof=None, proof_error="status_404"), "domain", "absent"),
        (Facts(proof=None, proof_error="timeout"), "domain", "unreachable"),
        (Facts(proof={"registrations": "nonsense"}), "domain", "absent"),
        (Facts(proof=["nonsense"]), "domain", "absent"),
        (Facts(proof={"registrations": [7, {"agentId": 42}]}), "domain", "absent"),
        (Facts(offers=None), "payee", "unreachable"),
        (Facts(offers=(offer(chain_id=8453),)), "payee", "not_applicable"),
        (Facts(file_url="https://other.example/card.json", proof=None, proof_error="status_404"), "domain", "absent"),
    ],
)
def test_what_is_missing_leaves_an_agent_unproven_and_says_what(facts: Facts, step: str, result: str) -> None:
    verdict = facts.verdict()
    assert verdict.state == "unproven"
    assert {taken.name: taken.result for taken in verdict.steps}[step] == result
    assert verdict.reason.startswith(step + ": ")


def test_a_mismatch_says_who_would_be_paid_and_who_should_be() -> None:
    reason = Facts(offers=(offer(STRANGER),)).verdict().reason
    assert address_text(STRANGER) in reason
    assert address_text(WALLET) in reason
    assert address_text(OWNER) in reason
    same = Facts(offers=(offer(STRANGER),), on_chain=OnChain(WALLET, WALLET)).verdict().reason
    assert same.count(address_text(WALLET)) == 1

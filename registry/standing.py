"""Standings: what the last survey made of each agent, as rows; with the history of probes and the user's decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.address import Address
from contracts.offers import Offer
from contracts.storage import Connection
from contracts.wire import Requirements
from registry.agent_id import AgentId
from registry.candidates import Candidate
from registry.limits import PROBES_KEPT
from registry.probe import Probe, cheapest
from registry.verification import Pin, Verdict

__all__ = ["Finding", "add_pin", "approve", "read_pins", "store_survey"]

_PROBE = """
    INSERT INTO probes (endpoint, url, probed_at_s, state, http_status, latency_ms, scheme, network, asset, pay_to,
        price_atomic, offers, models, error)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_FORGET_PROBES = """
    DELETE FROM probes WHERE endpoint = :endpoint AND number NOT IN
        (SELECT number FROM probes WHERE endpoint = :endpoint ORDER BY number DESC LIMIT :kept)
"""
_STEP = """
    INSERT INTO verifications (chain_id, agent_id, step, subject, result, detail, checked_at_s)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (chain_id, agent_id, step, subject) DO UPDATE SET
        result = excluded.result, detail = excluded.detail, checked_at_s = excluded.checked_at_s
"""
_STANDING = """
    INSERT INTO standings (chain_id, agent_id, uri_key, owner, wallet, endpoint, state, verdict, reason, network, asset,
        pay_to, price_atomic, decimals, symbol, latency_ms, models, answered, probed, surveyed_at_s)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (chain_id, agent_id) DO UPDATE SET
        uri_key = excluded.uri_key, owner = excluded.owner, wallet = excluded.wallet, endpoint = excluded.endpoint,
        state = excluded.state, verdict = excluded.verdict, reason = excluded.reason, network = excluded.network,
        asset = excluded.asset, pay_to = excluded.pay_to, price_atomic = excluded.price_atomic,
        decimals = excluded.decimals, symbol = excluded.symbol, latency_ms = excluded.latency_ms,
        models = excluded.models, answered = excluded.answered, probed = excluded.probed,
        surveyed_at_s = excluded.surveyed_at_s
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one endpoint of an agent answered, and what is proven of the agent there."""

    probe: Probe
    verdict: Verdict

    @property
    def offer(self) -> Offer | None:
        """What a buyer would pay here: the cheapest offer."""
        return cheapest(self.probe.offers)


def store_survey(
    connection: Connection, candidate: Candidate, found: Sequence[Finding], now_s: int, asked: set[str]
) -> None:
    """Keep what was found, the best first. `asked` are the endpoints whose probe of this run is kept already."""
    agent = candidate.agent
    for finding in found:
        if finding.probe.endpoint not in asked:
            asked.add(finding.probe.endpoint)
            _store_probe(connection, finding.probe, now_s)
    connection.execute("DELETE FROM verifications WHERE chain_id = ? AND agent_id = ?", (agent.chain_id, agent.number))
    connection.executemany(
        _STEP,
        [
            (agent.chain_id, agent.number, step.name, step.subject, step.result, step.detail, now_s)
            for finding in found
            for step in finding.verdict.steps
        ],
    )
    _store_standing(connection, candidate, found[0], now_s)


def read_pins(connection: Connection, agent: AgentId) -> list[Pin]:
    """Return the payees that the user trusts for `agent`."""
    rows = connection.execute(
        "SELECT network, pay_to FROM pins WHERE chain_id = ? AND agent_id = ?", (agent.chain_id, agent.number)
    )
    return [Pin(row["network"], Address(row["pay_to"])) for row in rows]


def add_pin(connection: Connection, agent: AgentId, pin: Pin, note: str, now_s: int) -> None:
    """Trust a payee for `agent` from now on."""
    connection.execute(
        "INSERT INTO pins (chain_id, agent_id, network, pay_to, note, pinned_at_s) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (agent.chain_id, agent.number, pin.network, pin.pay_to, note, now_s),
    )


def approve(connection: Connection, agent: AgentId, content_hash: bytes, now_s: int) -> None:
    """Accept the file of `agent` as it is now; another content later is a mismatch."""
    connection.execute(
        "INSERT INTO approvals (chain_id, agent_id, content_hash, approved_at_s) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (chain_id, agent_id) DO UPDATE SET content_hash = excluded.content_hash,"
        " approved_at_s = excluded.approved_at_s",
        (agent.chain_id, agent.number, content_hash, now_s),
    )


def _store_probe(connection: Connection, probe: Probe, now_s: int) -> None:
    offer = cheapest(probe.offers)
    spelled: list[Requirements] = [each.spelled for each in probe.offers]
    connection.execute(
        _PROBE,
        (
            probe.endpoint,
            probe.url,
            now_s,
            probe.state,
            probe.status,
            probe.latency_ms,
            *_terms(offer),
            msgspec.json.encode(spelled).decode(),
            msgspec.json.encode(probe.models).decode(),
            probe.error,
        ),
    )
    connection.execute(_FORGET_PROBES, {"endpoint": probe.endpoint, "kept": PROBES_KEPT})


def _store_standing(connection: Connection, candidate: Candidate, best: Finding, now_s: int) -> None:
    agent, on_chain = candidate.agent, candidate.on_chain
    probe, offer = best.probe, best.offer
    answered, probed = connection.execute(
        "SELECT count(*) FILTER (WHERE state = 'payable'), count(*) FROM probes WHERE endpoint = ?", (probe.endpoint,)
    ).fetchone()
    _, network, asset, pay_to, price_atomic = _terms(offer)
    connection.execute(
        _STANDING,
        (
            agent.chain_id,
            agent.number,
            candidate.uri_key,
            on_chain.owner,
            on_chain.wallet,
            probe.endpoint,
            probe.state,
            best.verdict.state,
            best.verdict.reason,
            network,
            asset,
            pay_to,
            price_atomic,
            None if offer is None else offer.asset.decimals,
            None if offer is None else offer.asset.symbol,
            probe.latency_ms,
            msgspec.json.encode(probe.models).decode(),
            answered,
            probed,
            now_s,
        ),
    )


def _terms(offer: Offer | None) -> tuple[Any, ...]:
    """Return scheme, network, asset, payee and price as columns."""
    if offer is None:
        return (None,) * 5
    return offer.scheme, offer.network.caip2, offer.asset.address, offer.pay_to, str(offer.amount_atomic)

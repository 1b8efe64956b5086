"""Candidates: agents of the index, each with its file and what the chain says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.address import Address, address_text
from contracts.errors import NameUnknown
from contracts.money import Asset, format_amount
from contracts.networks import Network
from contracts.storage import Connection, Row
from registry.agent_id import AgentId, parse_agent_id
from registry.card import Card
from registry.verification import OnChain

__all__ = ["ONE", "Candidate", "candidate_from", "find_candidate", "read_standing"]

_CANDIDATE = """
    SELECT agents.*, chains.identity, documents.card, documents.content_hash, documents.error, approvals.content_hash
        AS approved_hash
    FROM agents JOIN chains USING (chain_id) LEFT JOIN documents USING (uri_key)
        LEFT JOIN approvals USING (chain_id, agent_id)
"""
ONE = f"{_CANDIDATE} WHERE agents.chain_id = ? AND agents.agent_id = ?"
# SQLite counts to here, and ids are dense from 0.
_NUMBER_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent of the index, with its file and what the chain says of it."""

    agent: AgentId
    on_chain: OnChain
    uri_key: bytes | None
    card: Card | None
    content_hash: bytes | None = None
    approved_hash: bytes | None = None
    error: str | None = None


def find_candidate(connection: Connection, text: str) -> Candidate:
    """Return the agent that `text` names in any spelling. Raises `UsageError`, or `NameUnknown` when not indexed."""
    chain_id, registry, number = parse_agent_id(text)
    row = None
    if max(chain_id, number) <= _NUMBER_MAX:
        row = connection.execute(ONE, (chain_id, number)).fetchone()
    if row is None:
        raise NameUnknown(
            f"{text[:120]}: is not in the local index",
            remedy=f"run `farebox discover sync --chain {Network(chain_id).caip2}`, or check the id",
        )
    if registry is not None and registry != row["identity"]:
        raise NameUnknown(
            f"{text[:120]}: the index follows the registry {address_text(row['identity'])}",
            remedy="check the registry address in the id",
        )
    return candidate_from(row)


def candidate_from(row: Row) -> Candidate:
    """Return the candidate in a row of `ONE`."""
    card = None if row["card"] is None else msgspec.json.decode(row["card"], type=Card)
    owner, wallet = (None if row[name] is None else Address(row[name]) for name in ("owner", "wallet"))
    return Candidate(
        agent=AgentId(row["chain_id"], Address(row["identity"]), row["agent_id"]),
        on_chain=OnChain(owner, wallet, row["uri"]),
        uri_key=row["uri_key"],
        card=card,
        content_hash=row["content_hash"],
        approved_hash=row["approved_hash"],
        error=row["error"],
    )


def read_standing(connection: Connection, candidate: Candidate) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the last survey of an agent as a document, None without one, and the warnings about its file."""
    agent = candidate.agent
    row = connection.execute(
        "SELECT * FROM standings WHERE chain_id = ? AND agent_id = ?", (agent.chain_id, agent.number)
    ).fetchone()
    noted = connection.execute("SELECT warnings FROM documents WHERE uri_key = ?", (candidate.uri_key,)).fetchone()
    warnings = [] if noted is None else msgspec.json.decode(noted[0], type=list[str])
    if row is None:
        return None, warnings
    shown = ("endpoint", "state", "verdict", "reason", "network", "price_atomic", "latency_ms", "answered", "probed")
    document = {name: row[name] for name in (*shown, "surveyed_at_s")}
    pay_to = None if row["pay_to"] is None else address_text(row["pay_to"])
    return {**document, "pay_to": pay_to, "price": _price_words(row)}, warnings


def _price_words(row: Row) -> str | None:
    if row["price_atomic"] is None:
        return None
    return format_amount(int(row["price_atomic"]), Asset(Address(row["asset"]), "", "", row["decimals"], row["symbol"]))

"""Candidates: agents of the index, each with its file and what the chain says of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from contracts.address import Address, address_text
from contracts.errors import NameUnknown
from contracts.networks import Network
from contracts.storage import Connection, Row
from registry.agent_id import AgentId, parse_agent_id
from registry.card import Card
from registry.verification import OnChain

__all__ = ["CANDIDATE", "Candidate", "candidate_from", "find_candidate"]

CANDIDATE = """
    SELECT agents.*, chains.identity, documents.card, documents.content_hash, documents.error, approvals.content_hash
        AS approved_hash
    FROM agents JOIN chains USING (chain_id) LEFT JOIN documents USING (uri_key)
        LEFT JOIN approvals USING (chain_id, agent_id)
"""
_ONE = f"{CANDIDATE} WHERE agents.chain_id = ? AND agents.agent_id = ?"
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
        row = connection.execute(_ONE, (chain_id, number)).fetchone()
    if row is None:
        label = Network(chain_id).label
        raise NameUnknown(
            f"{text[:120]}: is not in the local index",
            remedy=f"run `farebox discover sync --chain {label}`, or check the id",
        )
    if registry is not None and registry != row["identity"]:
        raise NameUnknown(
            f"{text[:120]}: the index follows the registry {address_text(row['identity'])}",
            remedy="check the registry address in the id",
        )
    return candidate_from(row)


def candidate_from(row: Row) -> Candidate:
    """Return the candidate in a row of `CANDIDATE`."""
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

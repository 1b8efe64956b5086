"""Ratings in the index: those of one agent with what is needed to judge them, and the scores of many for search."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.address import Address
from contracts.erc8004 import AGENT_WALLET_KEY
from contracts.storage import Connection
from registry.agent_id import AgentId
from registry.reputation import PaidCall, Rating, Reputation, experience_of, judge_ratings
from registry.text import clean

__all__ = ["read_reputation", "related_to", "scores", "trust"]

_TAG_CHARS_MAX = 32
_GIVEN = """
    SELECT given.client, given.feedback_index, given.value, given.decimals, given.tag1, given.time_s,
        payment_proofs.transaction_hash
    FROM feedback_events AS given LEFT JOIN payment_proofs USING (chain_id, agent_id, client, feedback_index)
    WHERE given.chain_id = :chain_id AND given.agent_id = :agent_id AND given.kind = 'given' AND NOT EXISTS (
        SELECT 1 FROM feedback_events AS revoked
        WHERE revoked.kind = 'revoked' AND revoked.chain_id = given.chain_id AND revoked.agent_id = given.agent_id
            AND revoked.client = given.client AND revoked.feedback_index = given.feedback_index)
"""
_RELATED = """
    SELECT account AS address FROM identity_events
    WHERE chain_id = :chain_id AND agent_id = :agent_id AND kind IN ('registered', 'transfer')
    UNION SELECT former FROM identity_events WHERE chain_id = :chain_id AND agent_id = :agent_id AND kind = 'transfer'
    UNION SELECT value FROM identity_events
    WHERE chain_id = :chain_id AND agent_id = :agent_id AND kind = 'metadata' AND name = :wallet_key
"""
# Whatever a crowd says, an agent has a score only by proof of payment, by a trusted reviewer, or by one's own calls.
_HEARD = """
    SELECT chain_id, agent_id FROM payment_proofs
    UNION SELECT chain_id, agent_id FROM feedback_events WHERE client IN (SELECT address FROM trusted_reviewers)
"""
_PAID = (
    "SELECT chain_id, agent_id FROM agents WHERE wallet = ? UNION SELECT chain_id, agent_id FROM agents WHERE owner = ?"
)


def read_reputation(connection: Connection, agent: AgentId, calls: Sequence[PaidCall], now_s: int) -> Reputation:
    """Return the reputation of `agent`; `calls` are one's own paid calls, to whomever."""
    place = {"chain_id": agent.chain_id, "agent_id": agent.number}
    now = connection.execute(
        "SELECT owner, wallet FROM agents WHERE chain_id = :chain_id AND agent_id = :agent_id", place
    ).fetchone()
    payees = [Address(address) for address in now or () if address is not None]
    own = experience_of(calls, agent.network.caip2, payees)
    rows = connection.execute(_GIVEN, place).fetchall()
    ratings = [
        Rating(
            Address(row["client"]),
            row["feedback_index"],
            int(row["value"] or 0),
            row["decimals"] or 0,
            clean(row["tag1"], _TAG_CHARS_MAX),
            row["time_s"],
            row["transaction_hash"],
        )
        for row in rows
    ]
    trusted = (
        {Address(row[0]) for row in connection.execute("SELECT address FROM trusted_reviewers")} if rows else set()
    )
    return judge_ratings(ratings, related=related_to(connection, agent), trusted=trusted, own=own, now_s=now_s)


def related_to(connection: Connection, agent: AgentId) -> frozenset[Address]:
    """Return every owner and wallet `agent` ever had: their word about it is its own."""
    place = {"chain_id": agent.chain_id, "agent_id": agent.number, "wallet_key": AGENT_WALLET_KEY}
    rows = connection.execute(_RELATED, place)
    return frozenset(Address(row[0]) for row in rows if row[0] is not None and len(row[0]) == 20 and any(row[0]))


def scores(
    connection: Connection, agents: Sequence[AgentId], *, calls: Sequence[PaidCall], now_s: int
) -> dict[AgentId, float]:
    """Return the scores of those of `agents` that are rated. Looks only at agents about whom something counts."""
    heard = {(row[0], row[1]) for row in connection.execute(_HEARD)}
    for payee in {call.payee for call in calls}:
        heard.update((row[0], row[1]) for row in connection.execute(_PAID, (payee, payee)))
    found = {}
    for agent in agents:
        if (agent.chain_id, agent.number) in heard:
            score = read_reputation(connection, agent, calls, now_s).score
            if score is not None:
                found[agent] = score
    return found


def trust(connection: Connection, reviewer: Address, note: str, now_s: int) -> None:
    """Let the ratings of `reviewer` count without a payment."""
    connection.execute(
        "INSERT INTO trusted_reviewers (address, note, added_at_s) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (reviewer, note, now_s),
    )

"""The current state of agents, made from their events and from nothing else.

Events arrive newest first, and some go again in a re-org, so state is never changed step by step: an agent that an
event touched is made anew from all its events. The same events give the same state, in whatever order they came.

An agent whose URI changed loses its row in `agent_text`, so whoever fills that table finds what is to be done by what
is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from contracts.address import ZERO
from contracts.erc8004 import AGENT_WALLET_KEY
from contracts.storage import Connection, Row

__all__ = ["AgentState", "fold", "refresh", "uri_key"]

_EVENTS = """
    SELECT block, transaction_hash, kind, account, former, name, value, value_bytes FROM identity_events
    WHERE chain_id = ? AND agent_id = ? ORDER BY block, log_index
"""
_STORE = """
    INSERT INTO agents (chain_id, agent_id, registered_block, registered_transaction, registrant, owner, wallet, uri,
        uri_bytes, uri_key, transfers, updated_block)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (chain_id, agent_id) DO UPDATE SET
        registered_block = excluded.registered_block, registered_transaction = excluded.registered_transaction,
        registrant = excluded.registrant, owner = excluded.owner, wallet = excluded.wallet, uri = excluded.uri,
        uri_bytes = excluded.uri_bytes, uri_key = excluded.uri_key, transfers = excluded.transfers,
        updated_block = excluded.updated_block
"""


@dataclass(slots=True)
class AgentState:
    """One agent as its events leave it. What no event told yet is None, or empty."""

    updated_block: int
    registered_block: int | None = None
    registered_transaction: bytes | None = None
    registrant: bytes | None = None
    owner: bytes | None = None
    wallet: bytes | None = None
    uri: str = ""
    uri_bytes: int = 0
    transfers: int = 0
    metadata: dict[str, bytes] = field(default_factory=dict)


def uri_key(uri: str) -> bytes | None:
    """Return the key of the document that `uri` leads to; None for an empty URI."""
    return hashlib.sha256(uri.encode()).digest() if uri else None


def fold(events: Sequence[Row]) -> AgentState:
    """Return the state after one agent's events, which are in order. The registry clears the wallet on a transfer."""
    state = AgentState(updated_block=events[-1]["block"])
    for event in events:
        kind = event["kind"]
        if kind == "registered":
            state.registered_block, state.registered_transaction = event["block"], event["transaction_hash"]
            state.registrant = event["account"]
        if kind in ("registered", "uri"):
            state.uri, state.uri_bytes = event["value"].decode(errors="replace"), event["value_bytes"]
        elif kind == "transfer":
            state.owner = event["account"]
            state.transfers += event["former"] != ZERO
        elif kind == "metadata" and event["name"] == AGENT_WALLET_KEY:
            state.wallet = event["value"] if len(event["value"]) == 20 and event["value"] != ZERO else None
        elif kind == "metadata" and event["value"]:
            state.metadata[event["name"]] = event["value"]
        elif kind == "metadata":
            state.metadata.pop(event["name"], None)
    return state


def refresh(connection: Connection, chain_id: int, agent_ids: Iterable[int]) -> None:
    """Make these agents anew from their events; one without events is gone."""
    for agent_id in agent_ids:
        events = connection.execute(_EVENTS, (chain_id, agent_id)).fetchall()
        before = connection.execute(
            "SELECT number, uri FROM agents WHERE chain_id = ? AND agent_id = ?", (chain_id, agent_id)
        ).fetchone()
        connection.execute("DELETE FROM metadata WHERE chain_id = ? AND agent_id = ?", (chain_id, agent_id))
        if not events:
            _remove(connection, chain_id, agent_id, before)
            continue
        state = fold(events)
        if before is not None and before["uri"] != state.uri:
            connection.execute("DELETE FROM agent_text WHERE rowid = ?", (before["number"],))
        _store(connection, chain_id, agent_id, state)


def _store(connection: Connection, chain_id: int, agent_id: int, state: AgentState) -> None:
    connection.execute(
        _STORE,
        (
            chain_id,
            agent_id,
            state.registered_block,
            state.registered_transaction,
            state.registrant,
            state.owner,
            state.wallet,
            state.uri,
            state.uri_bytes,
            uri_key(state.uri),
            state.transfers,
            state.updated_block,
        ),
    )
    connection.executemany(
        "INSERT INTO metadata (chain_id, agent_id, key, value) VALUES (?, ?, ?, ?)",
        [(chain_id, agent_id, key, value) for key, value in state.metadata.items()],
    )


def _remove(connection: Connection, chain_id: int, agent_id: int, before: Row | None) -> None:
    if before is None:
        return
    connection.execute("DELETE FROM agent_text WHERE rowid = ?", (before["number"],))
    connection.execute("DELETE FROM agents WHERE chain_id = ? AND agent_id = ?", (chain_id, agent_id))
    connection.execute("DELETE FROM verifications WHERE chain_id = ? AND agent_id = ?", (chain_id, agent_id))

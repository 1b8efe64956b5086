"""Whether the logs we were given are all there are: what they leave out shows in what the chain itself counts.

Agent ids are dense from 0 and their number is one storage word. A reviewer's ratings of an agent are dense from 1. A
transfer starts at the owner the former one made. Where something is missing, its neighbours say in which blocks, and
the index who told us of those.
"""

from __future__ import annotations

from registry.index import Index, Interval

__all__ = ["holes"]


def holes(index: Index, chain_id: int, *, agent_count: int, first_block: int, head_block: int) -> list[Interval]:
    """Return the blocks of which an endpoint told too little, or too much; none for an index that is whole."""
    registered = index.database.read(
        lambda connection: connection.execute(
            "SELECT agent_id, registered_block FROM agents WHERE chain_id = ? AND registered_block IS NOT NULL"
            " ORDER BY agent_id",
            (chain_id,),
        ).fetchall()
    )
    found: list[Interval] = []
    expected, since = 0, first_block
    for agent_id, block in registered:
        if agent_id >= agent_count:
            found.append((block, block))
            continue
        if agent_id != expected:
            found.append((min(since, block), block))
        expected, since = agent_id + 1, block
    if expected < agent_count:
        found.append((since, head_block))
    return found + _broken_chains(index, chain_id) + _feedback_holes(index, chain_id, first_block)


def _broken_chains(index: Index, chain_id: int) -> list[Interval]:
    rows = index.database.read(
        lambda connection: connection.execute(
            "SELECT agent_id, block, former, account FROM identity_events"
            " WHERE chain_id = ? AND kind = 'transfer' ORDER BY agent_id, block, log_index",
            (chain_id,),
        ).fetchall()
    )
    found: list[Interval] = []
    agent, owner, since = None, bytes(20), 0
    for agent_id, block, former, account in rows:
        if agent_id != agent:
            agent, owner, since = agent_id, bytes(20), block
        if former != owner:
            found.append((since, block))
        owner, since = account, block
    return found


def _feedback_holes(index: Index, chain_id: int, first_block: int) -> list[Interval]:
    rows = index.database.read(
        lambda connection: connection.execute(
            "SELECT agent_id, client, feedback_index, block FROM feedback_events"
            " WHERE chain_id = ? AND kind = 'given' ORDER BY agent_id, client, feedback_index",
            (chain_id,),
        ).fetchall()
    )
    found: list[Interval] = []
    pair, expected, since = None, 1, first_block
    for agent_id, client, number, block in rows:
        if (agent_id, client) != pair:
            pair, expected, since = (agent_id, client), 1, first_block
        if number != expected:
            found.append((min(since, block), block))
        expected, since = number + 1, block
    return found

"""Whether a sample of agents is on chain what their logs made of them: who owns them, who is paid, who rated them.

Where `registry.completeness` sees what is missing between two logs, this sees what is missing after the last one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from contracts.address import Address
from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Rpc
from contracts.storage import Connection
from registry.chains import RegistryChain
from registry.endpoints import NoWayOn
from registry.index import Head, Index, Interval
from registry.limits import SAMPLE_AGENTS
from registry.reading import read_agents, read_clients, read_last_indexes

__all__ = ["Patience", "contradictions"]

T = TypeVar("T")

_SAMPLE = """
    SELECT agent_id, registered_block, owner, wallet, uri FROM agents WHERE chain_id = ?
    ORDER BY updated_block DESC, agent_id DESC LIMIT ?
"""
_RATED = """
    SELECT client, max(feedback_index) AS last_index FROM feedback_events
    WHERE chain_id = ? AND agent_id = ? AND kind = 'given' GROUP BY client
"""


class Patience(Protocol):
    """Asks one question again while an endpoint is busy."""

    async def __call__(self, read: Callable[[], Awaitable[T]]) -> T: ...


async def contradictions(
    index: Index, rpc: Rpc, chain: RegistryChain, head: Head, patiently: Patience
) -> list[Interval]:
    """Return the blocks to doubt, those since the registration of every agent that is not what its logs say.

    Looks at the agents that changed last. Raises `ChainUnavailable`.
    """
    rows = index.database.read(
        lambda connection: connection.execute(_SAMPLE, (chain.chain_id, SAMPLE_AGENTS)).fetchall()
    )
    numbers = [row["agent_id"] for row in rows]
    facts = await patiently(partial(read_agents, rpc, chain, numbers, head.number))
    wrong = {
        row["agent_id"]
        for row in rows
        if (row["owner"], row["wallet"], row["uri"]) != ((fact := facts[row["agent_id"]]).owner, fact.wallet, fact.uri)
    }
    wrong |= await _wrongly_rated(index, rpc, chain, head, numbers=numbers, patiently=patiently)
    return [(row["registered_block"], head.number) for row in rows if row["agent_id"] in wrong]


async def _wrongly_rated(
    index: Index, rpc: Rpc, chain: RegistryChain, head: Head, *, numbers: Sequence[int], patiently: Patience
) -> set[int]:
    """Return the agents with other reviewers on chain than in the index, or with more ratings of one of them."""
    rated = index.database.read(partial(_last_indexes, chain_id=chain.chain_id, numbers=numbers))
    known = {number: {client for of, client in rated if of == number} for number in numbers}
    pairs = sorted(rated)[:SAMPLE_AGENTS]
    try:
        clients = await patiently(partial(read_clients, rpc, chain, numbers, head.number))
        last = await patiently(partial(read_last_indexes, rpc, chain, pairs, head.number))
    except NoWayOn:
        raise
    except ChainUnavailable:
        # Lists of reviewers have no bound: what no endpoint can answer must not keep an index from being finished.
        return set()
    wrong = {number for number, listed in clients.items() if listed != known[number]}
    return wrong | {number for number, client in pairs if last[number, client] != rated[number, client]}


def _last_indexes(connection: Connection, chain_id: int, numbers: Sequence[int]) -> dict[tuple[int, Address], int]:
    """Return how many ratings the index has of each agent and client."""
    return {
        (number, Address(row["client"])): row["last_index"]
        for number in numbers
        for row in connection.execute(_RATED, (chain_id, number)).fetchall()
    }

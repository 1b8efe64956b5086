"""Who an agent is right now, asked of the chain before it is paid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Rpc
from contracts.evm.token import read_head
from registry.agent_id import AgentId
from registry.chains import RegistryChain
from registry.limits import WITNESSES
from registry.reading import read_agents
from registry.verification import OnChain

__all__ = ["read_agent"]


async def read_agent(rpc_urls: Sequence[str], agent: AgentId) -> OnChain:
    """Return owner, wallet and URI of `agent`, read at one block; an owner of None for an id that does not exist.

    Where several endpoints are given, two are asked, and must agree: this decides who is paid. Raises
    `ChainUnavailable` when none answers, one is on another chain, or they disagree.
    """
    said = await asyncio.gather(*(_ask(url, agent) for url in rpc_urls[:WITNESSES]), return_exceptions=True)
    answers = [answer for answer in said if isinstance(answer, OnChain)]
    if not answers:
        raise next((error for error in said if isinstance(error, BaseException)), ChainUnavailable("no RPC endpoint"))
    if any(answer != answers[0] for answer in answers):
        raise ChainUnavailable(
            f"the RPC endpoints disagree about {agent}", remedy="try again in a minute, or name others with --rpc"
        )
    return answers[0]


async def _ask(url: str, agent: AgentId) -> OnChain:
    async with Rpc([url]) as rpc:
        chain_id = await rpc.call("eth_chainId")
        if chain_id != hex(agent.chain_id):
            raise ChainUnavailable(f"an RPC endpoint is on chain {chain_id}, {agent} on {agent.chain_id}")
        block = (await read_head(rpc)).number
        chain = RegistryChain(agent.network, agent.registry, agent.registry)
        facts = (await read_agents(rpc, chain, [agent.number], block))[agent.number]
        return OnChain(facts.owner, facts.wallet, facts.uri)

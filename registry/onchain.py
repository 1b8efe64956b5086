"""What the chain says of one agent right now: owner, wallet and URI, all read at one block."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from contracts.address import ZERO, Address
from contracts.erc8004 import selector
from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import bytes_of, call_object, read_head
from contracts.typed_data import word_of_uint
from registry.agent_id import AgentId
from registry.limits import WITNESSES
from registry.verification import OnChain

__all__ = ["read_agent"]

# JSON-RPC code of a reverted call, which `ownerOf` of a missing id is.
_REVERTED = 3
_READS = ("ownerOf(uint256)", "getAgentWallet(uint256)", "tokenURI(uint256)")


async def read_agent(rpc_urls: Sequence[str], agent: AgentId) -> OnChain:
    """Return what the chain says of `agent`; an owner of None for an id that does not exist.

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
        block = hex((await read_head(rpc)).number)
        calls = [
            ("eth_call", [call_object(agent.registry, selector(name) + word_of_uint(agent.number)), block])
            for name in _READS
        ]
        owner, wallet, uri = await rpc.batch(calls)
    if isinstance(owner, RpcRefused):
        if owner.rpc_code != _REVERTED and "revert" not in owner.message.lower():
            raise ChainUnavailable(f"ownerOf: {owner.message}")
        return OnChain(None, None)
    return OnChain(_address(owner), _address(wallet), _text(uri))


def _address(answer: Any) -> Address | None:
    """Return the address of one word, or None for zero and for no answer."""
    if isinstance(answer, RpcRefused):
        return None
    word = bytes_of(answer, "eth_call")
    return Address(word[12:32]) if len(word) == 32 and word[12:] != ZERO else None


def _text(answer: Any) -> str:
    """Return the text of an ABI-encoded string."""
    data = b"" if isinstance(answer, RpcRefused) else bytes_of(answer, "eth_call")
    length = int.from_bytes(data[32:64], "big")
    return data[64 : 64 + length].decode(errors="replace") if length <= len(data) else ""

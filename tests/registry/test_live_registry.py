"""Our stand-in beside the registry of a real chain, where `FAREBOX_FORK_URL` names an endpoint of one. Off by default.

Reads only; with an endpoint of Base Sepolia: FAREBOX_FORK_URL=https://... pytest tests/registry/test_live_registry.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from contracts.address import Address, address_text
from contracts.erc8004 import selector
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import call_object, read_head
from contracts.networks import Network
from contracts.typed_data import word_of_uint
from registry.chains import RegistryChain, chain_of
from registry.reading import check_registries, read_agents, read_count, read_implementation, read_window
from tests.registry.ledger_of_agents import Registrar

FORK_URL = os.environ.get("FAREBOX_FORK_URL", "")
MISSING = word_of_uint(2**200)
BLOCKS = 500

pytestmark = pytest.mark.skipif(not FORK_URL, reason="FAREBOX_FORK_URL names no chain to compare with")


@pytest_asyncio.fixture
async def real() -> AsyncIterator[Rpc]:
    async with Rpc([FORK_URL]) as rpc:
        yield rpc


@pytest_asyncio.fixture
async def chain(real: Rpc) -> RegistryChain:
    return chain_of(Network(int(await real.call("eth_chainId"), 16)))


@pytest.fixture(scope="module")
def ours() -> Iterator[Devnet]:
    with Devnet() as devnet:
        place_registries(devnet)
        Registrar(devnet).register(0, "https://a.example")
        yield devnet


async def answer(rpc: Rpc, to: Address, data: bytes) -> str:
    """Return what a call returns, or the data of its revert."""
    try:
        return str(await rpc.call("eth_call", call_object(to, data), "latest"))
    except RpcRefused as refused:
        return str(refused.data)


@pytest.mark.parametrize("function", ["getVersion()", "name()", "symbol()"])
async def test_both_answer_alike(real: Rpc, chain: RegistryChain, ours: Devnet, function: str) -> None:
    async with Rpc([ours.rpc_url]) as rpc:
        mine = await answer(rpc, chain_of(Network(31337)).identity, selector(function))
    assert await answer(real, chain.identity, selector(function)) == mine


@pytest.mark.parametrize(
    "function", ["ownerOf(uint256)", "tokenURI(uint256)", "getAgentWallet(uint256)", "supportsInterface(bytes4)"]
)
async def test_both_say_the_same_of_what_is_not_there(
    real: Rpc, chain: RegistryChain, ours: Devnet, function: str
) -> None:
    async with Rpc([ours.rpc_url]) as rpc:
        mine = await answer(rpc, chain_of(Network(31337)).identity, selector(function) + MISSING)
    assert await answer(real, chain.identity, selector(function) + MISSING) == mine


async def test_the_chain_has_the_registries_we_think_it_has(real: Rpc, chain: RegistryChain) -> None:
    assert await check_registries(real, chain)
    head = await read_head(real)
    assert any(await read_implementation(real, chain, head.number)), address_text(chain.identity)


async def test_the_counter_counts_agents(real: Rpc, chain: RegistryChain) -> None:
    head = await read_head(real)
    count = await read_count(real, chain, head.number)
    facts = await read_agents(real, chain, [count - 1, count], head.number)
    assert facts[count - 1].owner is not None
    assert facts[count].owner is None


async def test_the_newest_logs_can_be_read(real: Rpc, chain: RegistryChain) -> None:
    head = await read_head(real)
    window = await read_window(real, chain, max(0, head.number - BLOCKS), head.number, endpoint="real", recent={})
    assert all(event.place.block <= head.number for event in window.identity_events)

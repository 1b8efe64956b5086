"""A first sync of a large chain takes minutes; what it has read can be searched long before."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.networks import Network
from registry import upkeep
from registry.fetch import Fetcher
from registry.index import open_index
from registry.upkeep import Upkeep, keep_up
from tests.registry.ledger_of_agents import Registrar
from tests.registry.odd_node import OddNode
from tests.registry.syncing import query


class HeldNode(OddNode):
    """Tells the newest logs, and the others when it is released."""

    def __init__(self, upstream_url: str) -> None:
        super().__init__(upstream_url, range_max=30)
        self.released = threading.Event()

    def answer(self, document: Any) -> tuple[int, Any] | None:
        if self.spans:
            self.released.wait()
        return super().answer(document)


async def test_the_newest_agents_can_be_searched_while_the_chain_is_still_read(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FIRST_FILES_S", 0.05)
    place_registries(chain)
    registrar = Registrar(chain)
    registrar.town()
    with HeldNode(chain.rpc_url) as node, open_index(tmp_path / "index.db") as index:
        wanted = Upkeep(network=Network(31337), rpc_urls=[node.url], probe=False)
        # Every host of the town is made up: its name leads nowhere.
        async with Fetcher(resolver=nowhere) as fetcher:
            running = asyncio.create_task(keep_up(index, fetcher, wanted))
            while not query(index, "SELECT 1 FROM agent_text WHERE agent_text MATCH 'last'"):
                assert not running.done()
                await asyncio.sleep(0.01)
            assert query(index, "SELECT count(*) FROM agents WHERE registered_block IS NULL") != [(0,)]
            node.released.set()
            document = await running
    assert document["agents"] == 20
    assert document["files"]["read"] == 1


async def nowhere(_host: str, _port: int) -> list[str]:
    return []

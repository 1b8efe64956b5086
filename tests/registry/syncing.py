"""What the tests of sync share: a chain with agents, and an index of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contracts.networks import Network
from registry.chains import RegistryChain, chain_of
from registry.export import export_index
from registry.index import Index, open_index
from registry.sync import Progress, SyncReport, sync_chain

__all__ = ["CHAIN", "Books", "no_pause"]

CHAIN: RegistryChain = chain_of(Network(31337))


async def no_pause(seconds: float) -> None:
    """Stand in for the wait until a resting endpoint is asked again."""


class Books:
    """Index files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def sync(self, name: str, urls: Sequence[str], on_progress: Callable[[Progress], None] | None = None) -> SyncReport:
        with open_index(self.folder / f"{name}.db") as index:
            return asyncio.run(
                sync_chain(index, CHAIN, urls, on_progress=on_progress or (lambda _: None), pause=no_pause)
            )

    def exported(self, name: str) -> bytes:
        path = self.folder / f"{name}-{next(self._numbers)}.jsonl"
        with open_index(self.folder / f"{name}.db") as index:
            export_index(index, path, chain_only=True)
        return path.read_bytes()

    def clean(self, url: str) -> bytes:
        """Return the export of a new index, read from an honest node at one go."""
        name = f"clean{next(self._numbers)}"
        self.sync(name, [url])
        return self.exported(name)

    def rows(self, name: str, sql: str) -> list[Any]:
        with open_index(self.folder / f"{name}.db") as index:
            return query(index, sql)


def query(index: Index, sql: str) -> list[Any]:
    return [tuple(row) for row in index.database.read(lambda connection: connection.execute(sql).fetchall())]

"""One run of `farebox discover sync`: the chain's events, files, prices and proofs, then listings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from contracts.console import progress, progress_bar
from contracts.networks import Network
from registry.bazaar import pull
from registry.chains import chain_of
from registry.fetch import Fetcher
from registry.gather import Gathered, gather
from registry.index import Index
from registry.limits import FIRST_FILES_S
from registry.retrieve import Gateways
from registry.survey import survey
from registry.sync import Progress, SyncReport, sync_chain

__all__ = ["Upkeep", "keep_up"]

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What is brought up to date: always the events of `network`, and whatever else is asked for."""

    network: Network
    rpc_urls: Sequence[str]
    files: bool = True
    probe: bool = True
    bazaar: Sequence[str] = ()
    gateways: Gateways = field(default_factory=Gateways)


async def keep_up(index: Index, fetcher: Fetcher, upkeep: Upkeep) -> dict[str, Any]:
    """Do it, with a bar on a terminal, and return what was done as a document.

    Stopping at any moment loses little; what was stored is right. Raises as `sync_chain`, `SellerUnreachable` for a
    facilitator without a listing, and `StoreUnavailable`.
    """
    look = _Look(index, fetcher, upkeep)
    reading = asyncio.create_task(_read_chain(index, upkeep))
    try:
        # A first sync reads for minutes: the newest agents are looked at meanwhile, and can be searched within seconds.
        while upkeep.files and not (await asyncio.wait({reading}, timeout=FIRST_FILES_S))[0]:
            await look.at_what_is_due(_no_bar)
        report = await reading
    finally:
        reading.cancel()
    for warning in report.warnings:
        progress(f"warning: {warning}")
    await look.at_what_is_due(progress_bar)
    gathered, listed = look.gathered, 0
    for source in upkeep.bazaar:
        listed += await pull(index.database, fetcher, source, int(time.time()))
    return {
        "ok": True,
        "chain": upkeep.network.caip2,
        "head_block": report.head_block,
        "agents": report.agent_count,
        "events": report.events,
        "rolled_back_to": report.rolled_back_to,
        "warnings": report.warnings,
        "files": {"read": gathered.read, "unchanged": gathered.unchanged, "failed": gathered.failed},
        "surveyed": look.surveyed,
        "listed": listed,
    }


class _Look:
    """Looks at files and sellers, as often as it is told to, and counts what it saw."""

    def __init__(self, index: Index, fetcher: Fetcher, upkeep: Upkeep) -> None:
        self._database = index.database
        self._fetcher = fetcher
        self._upkeep = upkeep
        self.gathered = Gathered()
        self.surveyed = 0

    async def at_what_is_due(self, bar: Bar) -> None:
        """Fetch every file that is due, then ask every seller that is."""
        if self._upkeep.files:
            with bar("registration files") as advance:
                gathered = await gather(
                    self._database, self._fetcher, int(time.time()), gateways=self._upkeep.gateways, progress=advance
                )
            self.gathered.read += gathered.read
            self.gathered.unchanged += gathered.unchanged
            self.gathered.failed += gathered.failed
        if self._upkeep.probe:
            with bar("sellers") as advance:
                self.surveyed += await survey(self._database, self._fetcher, int(time.time()), progress=advance)


@contextmanager
def _no_bar(_what: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda _done, _total: None


async def _read_chain(index: Index, upkeep: Upkeep) -> SyncReport:
    with progress_bar(f"blocks of {upkeep.network.label}") as advance:

        def moved(so_far: Progress) -> None:
            advance(so_far.blocks_done, so_far.blocks_total)

        return await sync_chain(index, chain_of(upkeep.network), upkeep.rpc_urls, on_progress=moved)

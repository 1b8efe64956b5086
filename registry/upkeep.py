"""One run of `farebox discover sync`: the chain's events, then files, then prices and proofs, then listings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contracts.console import progress, progress_bar
from contracts.networks import Network
from registry.bazaar import pull
from registry.chains import chain_of
from registry.fetch import Fetcher
from registry.gather import Gathered, gather
from registry.index import Index
from registry.retrieve import IPFS_GATEWAY, Gateways
from registry.survey import survey
from registry.sync import Progress, SyncReport, sync_chain

__all__ = ["Upkeep", "keep_up"]


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What is brought up to date: always the events of `network`, and whatever else is asked for."""

    network: Network
    rpc_urls: Sequence[str]
    files: bool = True
    probe: bool = True
    bazaar: Sequence[str] = ()
    ipfs_gateway: str = IPFS_GATEWAY


async def keep_up(index: Index, fetcher: Fetcher, upkeep: Upkeep) -> dict[str, Any]:
    """Do it, with a bar on a terminal, and return what was done as a document.

    Stopping at any moment loses little; what was stored is right. Raises as `sync_chain`, `SellerUnreachable` for a
    facilitator without a listing, and `StoreUnavailable`.
    """
    report = await _read_chain(index, upkeep)
    for warning in report.warnings:
        progress(f"warning: {warning}")
    gathered, surveyed, listed = Gathered(), 0, 0
    if upkeep.files:
        gateways = Gateways(ipfs=upkeep.ipfs_gateway.rstrip("/"))
        with progress_bar("registration files") as advance:
            gathered = await gather(index.database, fetcher, int(time.time()), gateways=gateways, progress=advance)
    if upkeep.probe:
        with progress_bar("sellers") as advance:
            surveyed = await survey(index.database, fetcher, int(time.time()), progress=advance)
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
        "surveyed": surveyed,
        "listed": listed,
    }


async def _read_chain(index: Index, upkeep: Upkeep) -> SyncReport:
    with progress_bar(f"blocks of {upkeep.network.label}") as advance:

        def moved(so_far: Progress) -> None:
            advance(so_far.blocks_done, so_far.blocks_total)

        return await sync_chain(index, chain_of(upkeep.network), upkeep.rpc_urls, on_progress=moved)

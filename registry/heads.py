"""Which block is the latest, when several endpoints are asked and one may be ahead of the truth, behind it, or lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contracts.errors import ChainUnavailable
from contracts.evm.rpc import RpcRefused
from registry.endpoints import Endpoint
from registry.index import Head
from registry.reading import read_hashes

__all__ = ["Sight", "agreed_sight"]


@dataclass(frozen=True, slots=True)
class Sight:
    """The latest block that an endpoint shows, and the hashes of the blocks before it, by their numbers."""

    head: Head
    recent: dict[int, bytes]
    endpoint: Endpoint


async def agreed_sight(sights: Sequence[Sight]) -> Sight | None:
    """Return the highest of `sights` whose latest block more than half of the endpoints have; None where there is none.

    Of two endpoints that is both: what only one of them shows may be made up, and its logs with it.
    """
    for sight in sorted(sights, key=lambda sight: sight.head.number, reverse=True):
        shown = [await _shows(each, sight.head) for each in sights]
        if 2 * sum(shown) > len(sights):
            return sight
    return None


async def _shows(sight: Sight, head: Head) -> bool:
    if sight.head.number < head.number:
        return False
    hashes = sight.recent
    if head.number not in hashes:
        try:
            hashes = await read_hashes(sight.endpoint.rpc, [head.number])
        except (ChainUnavailable, RpcRefused):
            return False
    return hashes.get(head.number) == head.hash

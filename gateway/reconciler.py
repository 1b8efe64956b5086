"""Asks the chain about payments of unknown fate or cost, often while there is news and seldom while there is none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from buyer.pool import Pool
from buyer.purchase import Purchase
from contracts.errors import FareboxError
from gateway.limits import RECONCILE_EVERY_S, RECONCILE_EVERY_S_MAX
from gateway.shelf import Shelf

__all__ = ["Reconciler"]

T = TypeVar("T")

log = logging.getLogger("farebox.gateway")


@dataclass(slots=True)
class _Round:
    """When a purchase is next asked about, and how many payments of unknown fate or cost the last answer left."""

    unsettled: int
    wait_s: float
    next_s: float


class Reconciler:
    """Settles unknown payments of the purchases on a shelf.

    `rpc_urls` are asked beside those that a purchase names; of them, whoever serves its chain has a say.
    """

    def __init__(self, pool: Pool, shelf: Shelf, rpc_urls: Sequence[str]) -> None:
        self._pool, self._shelf, self._rpc_urls = pool, shelf, list(rpc_urls)
        self._rounds: dict[str, _Round] = {}

    async def run(self, now_s: float) -> None:
        """Ask about every purchase whose turn it is; an endpoint that fails is tried again at the next turn."""
        for purchase in self._shelf.purchases:
            try:
                await self._ask(purchase, now_s)
            except FareboxError as error:
                log.warning("purchase %s: %s: %s", purchase.name, error.code, error.message)
            except Exception:
                # One purchase's chain must not end what is known of the others.
                log.exception("purchase %s: its payments cannot be asked about", purchase.name)

    async def _ask(self, purchase: Purchase, now_s: float) -> None:
        rpc_urls = [*purchase.rpc_urls, *self._rpc_urls]
        unsettled = await self._in_store(lambda: self._pool.open_outcomes(purchase))
        last = self._rounds.get(purchase.name)
        if not rpc_urls or not unsettled or (last and unsettled == last.unsettled and now_s < last.next_s):
            return
        # Written down before the question, so that an endpoint which never answers is not asked at every turn.
        is_old = last is not None and last.unsettled == unsettled
        wait_s = min(2 * last.wait_s, RECONCILE_EVERY_S_MAX) if last and is_old else RECONCILE_EVERY_S
        self._rounds[purchase.name] = _Round(unsettled, wait_s, now_s + wait_s)
        await self._reconcile(purchase.name, rpc_urls)
        self._rounds[purchase.name].unsettled = await self._in_store(lambda: self._pool.open_outcomes(purchase))

    async def _reconcile(self, name: str, rpc_urls: list[str]) -> dict[str, int]:
        if self._pool.database.is_free:
            return await self._pool.reconcile(name, rpc_urls)
        # Its writes would hold this loop for as long as the database takes to answer.
        return await asyncio.to_thread(lambda: asyncio.run(self._pool.reconcile(name, rpc_urls)))

    async def _in_store(self, work: Callable[[], T]) -> T:
        return work() if self._pool.database.is_local else await asyncio.to_thread(work)

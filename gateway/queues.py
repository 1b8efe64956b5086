"""How long sellers' queues are, as they told it last: in their answers, and when asked while calls can choose.

A seller's word about its queue orders offers and nothing else. A price that it says it no longer honours is not sent:
such a payment would come back unserved, and stay locked up until it expires.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cachetools import LRUCache

from buyer.budgets import budget_units
from buyer.flow import Lost, NeverLeft, Outgoing
from buyer.purchase import Purchase
from contracts.errors import MalformedMessage
from contracts.tiers import (
    QUEUE_STATUS_PATH,
    TIERS,
    QueueFacts,
    QueueStatus,
    load_of,
    queue_in_headers,
    read_queue_status,
    tier_of,
)
from gateway.bidder.task import NORMAL, Observation
from gateway.limits import (
    BREAKERS_MAX,
    QUEUE_BODY_BYTES_MAX,
    QUEUE_FACTS_S,
    QUEUE_OBSERVED_EVERY_S,
    QUEUE_POLL_EVERY_S,
    QUEUE_POLL_IDLE_S,
    QUEUE_POLL_TIMEOUT_S,
    QUEUE_POLLED_MAX,
    QUEUE_SILENT_S,
)
from gateway.upstream import Upstream

__all__ = ["Queues", "tier_number"]


@dataclass(slots=True)
class _Known:
    """What one seller told last; times are unix seconds. `honoured_bp`: its least load price that is taken."""

    facts: QueueFacts | None = None
    at_s: float = 0.0
    honoured_bp: int | None = None
    honoured_at_s: float = 0.0
    asked_at_s: float = 0.0
    is_silent: bool = False
    observed_at_s: float = 0.0


class Queues:
    """What is known of sellers' queues, by the endpoint of their purchases. `observe` takes what the log shall keep."""

    def __init__(self, observe: Callable[[list[Observation]], None]) -> None:
        self._observe = observe
        self._known: LRUCache[str, _Known] = LRUCache(BREAKERS_MAX)
        self._chosen_at_s: dict[str, float] = {}

    def facts(self, purchase: Purchase, now_s: float) -> QueueFacts | None:
        """Return a seller's queue, or None where nothing fresh is known."""
        known = self._known.get(purchase.endpoint)
        return None if known is None or now_s - known.at_s > QUEUE_FACTS_S else known.facts

    def takes(self, purchase: Purchase, now_s: float) -> bool:
        """Tell whether a seller still takes what a purchase pays, as far as anybody knows."""
        pinned_bp, known = load_of(purchase.accepted.extra), self._known.get(purchase.endpoint)
        if pinned_bp is None or known is None or known.honoured_bp is None:
            return True
        return pinned_bp >= known.honoured_bp or now_s - known.honoured_at_s > QUEUE_FACTS_S

    def chosen_among(self, purchases: Sequence[Purchase], now_s: float) -> None:
        """Note that a call had these to choose from: their queues are worth asking about for a while.

        Of a single one, only where its price moves with them.
        """
        for purchase in purchases:
            if len(purchases) > 1 or load_of(purchase.accepted.extra) is not None:
                self._chosen_at_s[purchase.endpoint] = now_s
        while len(self._chosen_at_s) > QUEUE_POLLED_MAX:
            del self._chosen_at_s[min(self._chosen_at_s, key=self._chosen_at_s.__getitem__)]

    def heard(self, purchase: Purchase, headers: Mapping[str, str], now_s: float) -> None:
        """Take what an answer's headers tell."""
        facts = queue_in_headers(headers)
        if facts is not None:
            self._take([purchase], facts, now_s)

    def due(self, now_s: float) -> list[str]:
        """Return the endpoints that are to be asked now."""
        found = []
        for endpoint, chosen_at_s in self._chosen_at_s.items():
            known = self._known.get(endpoint) or _Known()
            pause_s = QUEUE_SILENT_S if known.is_silent else QUEUE_POLL_EVERY_S
            if now_s - chosen_at_s <= QUEUE_POLL_IDLE_S and now_s - known.asked_at_s >= pause_s:
                found.append(endpoint)
        return found

    async def ask(self, upstream: Upstream, purchases: Sequence[Purchase], clock: Callable[[], float]) -> None:
        """Ask every seller that is due, all at once; who does not answer is left alone for longer."""
        asked = self.due(clock())
        answers = await asyncio.gather(*(_status(upstream, endpoint) for endpoint in asked))
        for endpoint, status in zip(asked, answers, strict=True):
            now_s = clock()
            known = self._known.setdefault(endpoint, _Known())
            known.asked_at_s, known.is_silent = now_s, status is None
            if status is not None:
                known.honoured_bp, known.honoured_at_s = status.honoured_bp, now_s
                self._take([each for each in purchases if each.endpoint == endpoint], status.facts, now_s)

    def _take(self, purchases: Sequence[Purchase], facts: QueueFacts, now_s: float) -> None:
        if not purchases:
            return
        known = self._known.setdefault(purchases[0].endpoint, _Known())
        known.facts, known.at_s = facts, now_s
        if now_s - known.observed_at_s < QUEUE_OBSERVED_EVERY_S:
            return
        known.observed_at_s = now_s
        self._observe(
            [
                Observation(
                    seller=each.origin,
                    tier=tier_number(each),
                    price_units=budget_units(each.offer.amount_atomic, each.offer.asset),
                    queue_per_slot=facts.queue_per_slot,
                    busy_share=facts.busy_share,
                )
                for each in purchases
            ]
        )


def tier_number(purchase: Purchase) -> int:
    """Return the service class of a purchase by its number; the normal one where its terms name none."""
    tier = tier_of(purchase.accepted.extra)
    return NORMAL if tier is None else TIERS.index(tier)


async def _status(upstream: Upstream, endpoint: str) -> QueueStatus | None:
    """Return what a seller says of its queue, or None where it says nothing that can be read."""
    with contextlib.suppress(NeverLeft, Lost, TimeoutError, MalformedMessage):
        async with asyncio.timeout(QUEUE_POLL_TIMEOUT_S):
            answer = await upstream.open(Outgoing("GET", endpoint + QUEUE_STATUS_PATH))
            try:
                body = bytearray()
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > QUEUE_BODY_BYTES_MAX:
                        return None
                return read_queue_status(bytes(body)) if answer.status == 200 else None
            finally:
                answer.close()
    return None

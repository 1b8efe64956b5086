"""Buys background work where a seller sells it cheaper and has nothing better to do.

Only purchases of a `background` tier are spent, and only up to a task's own price. A seller that has no room, or that
makes room for others, says so and charges nothing: the task keeps its payment and is presented again later, under the
same key, which the pool makes one payment for ever.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from buyer.purchase import Purchase
from buyer.receipts import Receipt
from contracts.tiers import BACKGROUND, tier_of
from gateway.background.backlog import Backlog, Task
from gateway.background.limits import (
    AT_ONCE_MAX,
    AT_ONCE_UNTOLD,
    DUE_MAX,
    LOOK_EVERY_S,
    PUT_OFF_S,
    PUT_OFF_S_MAX,
    RESULT_LENGTH_MAX,
    STOP_S,
)
from gateway.desk import Desk
from gateway.envelope import Headers
from gateway.inside import CHAT, LATER, Reply, ask_inside, cost_units
from gateway.models import PAID_PREFIX
from gateway.requests import named_key
from gateway.routing import offer_of

__all__ = ["Filler"]

_REASON_LENGTH_MAX = 300
# A payment that nobody can present any more, and that nobody was paid by.
_NEVER_PAID = ("expired", "cancelled")
# Refusals of the desk's own that no later try would change.
_BAD_REQUESTS = (400, 404, 413, 422)


class _Source(NamedTuple):
    """What a task is paid from: a purchase, by its name, and where it is spent."""

    purchase: str
    endpoint: str


class Filler:
    """Works a backlog off at one desk."""

    def __init__(self, desk: Desk, backlog: Backlog) -> None:
        self._desk, self._backlog = desk, backlog
        self._calls: dict[asyncio.Task[None], str] = {}

    async def run(self, *, until_empty: bool = False) -> None:
        """Buy whatever can be bought, for ever or until nothing is left to do. Raises `StoreUnavailable`."""
        try:
            while True:
                due = await self._desk.in_store(self._due, writes=True)
                await self._start(due)
                if until_empty and not self._calls and not await self._desk.in_store(self._has_open):
                    return
                await self._pause()
        finally:
            await self._stop()

    def _due(self) -> Sequence[Task]:
        self._backlog.sweep(self._now_ms)
        return self._backlog.due(self._now_ms, DUE_MAX)

    def _has_open(self) -> bool:
        counts = self._backlog.counts()
        return bool(counts.get("waiting") or counts.get("buying"))

    async def _start(self, due: Sequence[Task]) -> None:
        """Begin what there is room for."""
        if due:
            await self._desk.in_store(self._desk.shelf.reload)
        busy = Counter(self._calls.values())
        for task in due:
            if len(self._calls) >= AT_ONCE_MAX:
                return
            source = await self._desk.in_store(functools.partial(self._taken, task, busy), writes=True)
            if source is not None:
                busy[source.endpoint] += 1
                self._calls[asyncio.create_task(self._buy(task, source.purchase))] = source.endpoint

    def _taken(self, task: Task, busy: Counter[str]) -> _Source | None:
        """Take a task, if there is what to pay it from and nobody else has it."""
        source = self._source(task, busy)
        return source if source is not None and self._backlog.take(task, source.purchase) else None

    def _source(self, task: Task, busy: Counter[str]) -> _Source | None:
        """Return what a task can be paid from now: what it was paid from before, else the cheapest with room."""
        sold = [each for each in self._desk.shelf.purchases if tier_of(each.accepted.extra) == BACKGROUND]
        if task.purchase is not None:
            # Only its seller may see the payment again; should the purchase be gone, the desk knows what to say.
            endpoints = [each.endpoint for each in sold if each.name == task.purchase]
            return _Source(task.purchase, endpoints[0] if endpoints else "")
        now_s = int(self._desk.clock())
        fit = [
            each
            for each in sold
            if each.model == task.model
            and offer_of(each).price_units <= task.max_price_units
            and self._has_room(each, busy)
            and self._desk.pool.spendable(each, now_s)
        ]
        best = min(fit, key=lambda each: (offer_of(each).price_units, each.name), default=None)
        return None if best is None else _Source(best.name, best.endpoint)

    def _has_room(self, purchase: Purchase, busy: Counter[str]) -> bool:
        """Tell whether a seller may have room. It keeps one slot free of such work: then the last of ours waits there.

        So the next is at the door when one ends. A seller that is behind with those who pay in full is left alone.
        """
        now_s = self._desk.clock()
        queues = self._desk.router.queues
        # Twice, as if there were a choice: only then is the seller asked how it is doing.
        queues.chosen_among([purchase, purchase], now_s)
        facts = queues.facts(purchase, now_s)
        most = AT_ONCE_UNTOLD if facts is None else facts.slots
        is_crowded = facts is not None and facts.waiting > facts.slots
        return busy[purchase.endpoint] < most and not is_crowded

    async def _buy(self, task: Task, purchase: str) -> None:
        """Present a task's payment, once, and write down what came of it."""
        reply = Reply()
        body = _body(task, purchase)
        await ask_inside(self._desk, _headers(task), body, reply)
        receipt = await self._desk.in_store(lambda: self._desk.pool.receipt_of(named_key(CHAT, task.key)))
        paid_units = await cost_units(self._desk, receipt)
        if reply.status == 200 and reply.is_whole and receipt is not None:
            text = reply.text()
            await self._end(task, paid_units, text, None if text is not None else "the answer has no text")
            return
        reason = str(reply.error()["message"])[:_REASON_LENGTH_MAX]
        if _is_unpaid(receipt) and reply.status not in _BAD_REQUESTS:
            await self._put_off(task, reason, is_unpaid=True)
        elif reply.status in LATER or not reply.is_whole:
            await self._put_off(task, reason, is_unpaid=False)
        else:
            await self._end(task, 0 if _is_unpaid(receipt) else paid_units, None, reason)

    async def _end(self, task: Task, paid_units: int, text: str | None, reason: str | None) -> None:
        result = None if text is None else text[:RESULT_LENGTH_MAX]
        await self._backlog.end(task, now_ms=self._now_ms, paid_units=paid_units, result=result, reason=reason)

    async def _put_off(self, task: Task, reason: str, *, is_unpaid: bool) -> None:
        pause_s = min(PUT_OFF_S * 2 ** min(task.put_off, 10), PUT_OFF_S_MAX)
        await self._backlog.put_off(task, self._now_ms + round(pause_s * 1000), is_unpaid=is_unpaid, reason=reason)

    async def _pause(self) -> None:
        """Wait until a call ends or it is time to look again. Raises what ended a call that should not have ended."""
        if not self._calls:
            await asyncio.sleep(LOOK_EVERY_S)
            return
        done, _ = await asyncio.wait(self._calls, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        for call in done:
            del self._calls[call]
            call.result()

    async def _stop(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=STOP_S)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._calls.clear()

    @property
    def _now_ms(self) -> int:
        return round(self._desk.clock() * 1000)


def _is_unpaid(receipt: Receipt | None) -> bool:
    return receipt is None or receipt.state in _NEVER_PAID


def _body(task: Task, purchase: str) -> bytes:
    """Return the request. The same attempt has the same bytes for ever; others are refused under its key."""
    return json.dumps({"model": f"{PAID_PREFIX}{task.model}@{purchase}", **json.loads(task.request)}).encode()


def _headers(task: Task) -> Headers:
    return [
        (b"content-type", b"application/json"),
        (b"x-farebox-request-id", task.key.encode()),
        (b"x-farebox-priority", b"background"),
    ]

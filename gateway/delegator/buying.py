"""Buys one answer at the gateway's own desk, under a key that the pool makes at most one payment for.

Whoever asks again under the same key, in this process or after it died, presents the same payment for the same request
and gets the answer that was bought. What a call cost is read from the pool, which is told nothing by a worker's answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from buyer.budgets import shown_units
from buyer.client_keys import ClientKey
from buyer.purchase import Purchase
from buyer.receipts import Receipt
from contracts.errors import RequestInProgress, SellerUnreachable
from contracts.tiers import BACKGROUND, tier_of
from gateway.delegator.calls import Answer, NodeFailed, NodeUnknown
from gateway.delegator.journal import Attempt
from gateway.delegator.limits import ASK_PAUSE_S, ASK_PAUSE_S_MAX, ASKS_MAX, LEFT_BEHIND_S, RESULT_LENGTH_MAX
from gateway.delegator.ways import Priced, Wish, model_of
from gateway.desk import Desk
from gateway.envelope import Headers
from gateway.inside import CHAT, LATER, Reply, ask_inside, cost_units
from gateway.limits import CALL_TIMEOUT_S
from gateway.models import PAID_PREFIX
from gateway.requests import named_key
from gateway.routing import offer_of

__all__ = ["Asked", "Buying", "request_key"]

_REASON_LENGTH_MAX = 300
# Between two presentations of one payment that has no answer yet.
_PAUSES_S = [min(ASK_PAUSE_S * 2**number, ASK_PAUSE_S_MAX) for number in range(ASKS_MAX - 1)]


class Asked(NamedTuple):
    """What a request says besides its prompt: how long the answer may be, and the JSON schema it should have.

    It must be the same whenever an attempt is made again.
    """

    tokens: int
    schema: Mapping[str, Any] | None = None


class Buying:
    """Buys for the workers of one process. `client_key` is on whose budgets and models they buy."""

    def __init__(self, desk: Desk, client_key: ClientKey | None = None) -> None:
        self._desk = desk
        self._client_key = client_key
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def tenant(self) -> str:
        """On whose account it buys: the client key's name, or "" without one."""
        return "" if self._client_key is None else self._client_key.name

    @property
    def is_busy(self) -> bool:
        """Whether calls are on their way."""
        return bool(self._calls)

    async def offers(self) -> Sequence[Priced]:
        """Return what can be bought now; of a background tier only where nothing else of that model was bought.

        Raises `StoreUnavailable`.
        """
        return await self._desk.in_store(self._offers)

    def _offers(self) -> Sequence[Priced]:
        self._desk.shelf.reload()
        now_s, market = int(self._desk.clock()), self._desk.router.bidder.market
        allowed = None if self._client_key is None else self._client_key.models
        found = [
            purchase
            for purchase in self._desk.router.offered(self._desk.shelf.purchases)
            if (allowed is None or purchase.model in allowed) and self._desk.pool.spendable(purchase, now_s)
        ]
        steady = [purchase for purchase in found if not _is_background(purchase)]
        models = {purchase.model for purchase in steady}
        steady += [purchase for purchase in found if purchase.model not in models]
        offers = [(purchase, offer_of(purchase)) for purchase in steady]
        return [Priced(each.model, each.name, offer.price_units, market.pace_of(offer)) for each, offer in offers]

    async def buy(self, attempt: Attempt, asked: Asked, wish: Wish) -> Answer:
        """Return what the attempt's prompt was answered. Raises `NodeFailed` or `NodeUnknown`, as `CallNode`."""
        body = _body(attempt, asked)
        headers = _headers(attempt, replace(wish, avoid=wish.avoid | self._passed_over(model_of(attempt.offer))))
        reply, receipt = Reply(), None
        for pause_s in (*_PAUSES_S, None):
            reply = await self._ask(headers, body)
            receipt = await self.receipt_of(attempt.key)
            paid_units = await cost_units(self._desk, receipt)
            is_free = receipt is None and "x-farebox-receipt" not in reply.headers
            if reply.status == 200 and reply.is_whole and (receipt is not None or is_free):
                return Answer(_text(reply, paid_units), paid_units)
            if receipt is None and (reply.status not in LATER or reply.error()["code"] == SellerUnreachable.code):
                raise NodeFailed(_reason(reply))
            if receipt is not None and _is_final(reply):
                # Its seller holds our payment. It may say that it charged nothing, and only the chain can prove it:
                # until then the money counts as gone, so that the budget holds whatever the seller does.
                raise NodeFailed(_reason(reply), paid_units=paid_units)
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        if receipt is None and not _is_in_progress(reply):
            raise NodeFailed(_reason(reply))
        if receipt is None:
            raise NodeUnknown(f"another process is paying for it: {_reason(reply)}")
        raise NodeUnknown(f"{receipt.purchase} was paid and has not answered: {_reason(reply)}")

    def _passed_over(self, model: str) -> frozenset[str]:
        """Return the purchases of slots that others may take away: not for work that somebody waits for."""
        sold = self._desk.shelf.purchases
        return frozenset(each.name for each in sold if each.model == model and _is_background(each))

    async def receipt_of(self, key: str) -> Receipt | None:
        """Return the receipt of an attempt; None when nothing ever left for it. Raises `StoreUnavailable`."""
        return await self._desk.in_store(lambda: self._desk.pool.receipt_of(request_key(key)))

    async def close(self) -> None:
        """Wait a while for calls whose worker was stopped: what was paid for is recorded when it comes."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=LEFT_BEHIND_S)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _ask(self, headers: Headers, body: bytes) -> Reply:
        """Make one call. A worker that is stopped leaves it to end by itself: its payment may be on its way.

        While a worker before this one is still being answered, that is what is waited for.
        """
        until_s = time.monotonic() + CALL_TIMEOUT_S
        while True:
            reply = Reply()
            call = asyncio.create_task(ask_inside(self._desk, headers, body, reply, self._client_key))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            await asyncio.shield(call)
            if not _is_in_progress(reply) or time.monotonic() > until_s:
                return reply
            await asyncio.sleep(ASK_PAUSE_S)


def _is_background(purchase: Purchase) -> bool:
    return tier_of(purchase.accepted.extra) == BACKGROUND


def request_key(attempt_key: str) -> str:
    """Return the pool's name of an attempt's payment."""
    return named_key(CHAT, attempt_key)


def _body(attempt: Attempt, asked: Asked) -> bytes:
    """Return the request. The same attempt has the same bytes for ever; others are refused under its key."""
    document: dict[str, Any] = {
        "model": PAID_PREFIX + model_of(attempt.offer),
        "messages": [{"role": "user", "content": attempt.prompt}],
        "max_tokens": asked.tokens,
    }
    if asked.schema is not None:
        document["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "plan", "strict": True, "schema": asked.schema},
        }
    return json.dumps(document, ensure_ascii=False).encode()


def _headers(attempt: Attempt, wish: Wish) -> Headers:
    """Return the worker's bid: at most its slice of the budget, by when, and whether everybody waits for it."""
    headers = [
        (b"content-type", b"application/json"),
        (b"x-farebox-request-id", attempt.key.encode()),
        (b"x-farebox-max-price", shown_units(attempt.price_units).encode()),
        (b"x-farebox-deadline-ms", b"%d" % max(round(wish.deadline_s * 1000), 1)),
        (b"x-farebox-priority", b"urgent" if wish.is_urgent else b"normal"),
    ]
    return [*headers, (b"x-farebox-avoid", ",".join(sorted(wish.avoid)).encode())] if wish.avoid else headers


def _text(reply: Reply, paid_units: int) -> str:
    """Return the answer's text. Raises `NodeFailed` when there is none: it is paid for all the same."""
    text = reply.text()
    if text is None:
        raise NodeFailed("the answer has no text", paid_units=paid_units)
    return text[:RESULT_LENGTH_MAX]


def _is_in_progress(reply: Reply) -> bool:
    return reply.status == RequestInProgress.http_status and reply.error()["code"] == RequestInProgress.code


def _is_final(reply: Reply) -> bool:
    """Tell whether asking once more under the same key would bring nothing else."""
    if not reply.is_whole:
        return False
    return reply.headers.get("x-farebox-charged") in ("false", "true") or reply.status not in LATER


def _reason(reply: Reply) -> str:
    return str(reply.error()["message"])[:_REASON_LENGTH_MAX]

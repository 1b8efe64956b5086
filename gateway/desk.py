"""Answers one call for a model: recognise a repetition, choose a purchase, pay, pass the answer on.

The order is the safety of it. Nothing is claimed before the request is known to be new, well-formed and affordable;
the pool writes the claim before a byte leaves; and once a payment has left, the answer is read to its end whether or
not the client waits for it, so that it is there when the client asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from cachetools import TTLCache

from buyer.budgets import budget_units
from buyer.client_keys import ClientKey
from buyer.flow import Outcome, Outgoing, PaymentFlow, pay_when_asked, pay_with_pool
from buyer.pool import Claim, Pool, Spender
from buyer.purchase import Purchase
from buyer.receipts import Receipt
from contracts.errors import (
    AuthorizationsExhausted,
    BudgetExceeded,
    FareboxError,
    NameUnknown,
    OutcomeUnknown,
    RequestAlreadyPaid,
    RequestChanged,
    RequestInProgress,
    SellerUnreachable,
)
from contracts.storage import StoreBusy
from contracts.stream_receipts import STREAM_RECEIPT
from gateway.attempts import Attempt, Attempts, Broken, Record
from gateway.bidder.service import Bidder
from gateway.bidder.task import Outcome as Ended
from gateway.client import Client
from gateway.config import GatewayConfig
from gateway.deadlines import Deadlines
from gateway.envelope import Headers, Problem, Refused
from gateway.fallback import fall_back
from gateway.forward import drive
from gateway.gate import key_given, key_known
from gateway.limits import ASK_FIRST_S, BREAKERS_MAX, CALL_TIMEOUT_S
from gateway.metrics import Metrics
from gateway.relay import CHARGED_NO, CHARGED_UNKNOWN, Relay, sold_by_usage
from gateway.requests import Call
from gateway.routing import Routed, Router
from gateway.shelf import Shelf
from gateway.upstream import Answer, Upstream

__all__ = ["Desk"]

T = TypeVar("T")

log = logging.getLogger("farebox.gateway")

# A client that disconnects is noticed within a few turns of the event loop; its repetition may arrive in the same turn.
_TURNS_TO_NOTICE = 4
# Refusals that say nothing about a purchase or its seller.
_NOT_THE_SELLERS = (BudgetExceeded, RequestAlreadyPaid, RequestChanged, RequestInProgress)
_REPLAYED = (b"x-farebox-replayed", b"true")


class _Order(msgspec.Struct, frozen=True):
    """What to buy, and under which name of the logical request the pool books it."""

    request_key: str
    fingerprint: str
    routed: Routed
    # The key was just drawn, so nobody can have asked under it.
    is_new: bool = False


class Desk:
    """Serves calls out of one pool. `clock` is unix seconds. `stopping` is set once no new call should be sent here."""

    def __init__(
        self,
        config: GatewayConfig,
        pool: Pool,
        upstream: Upstream,
        *,
        bidder: Bidder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.pool = pool
        self.clock = clock
        self.stopping = False
        self.shelf = Shelf(pool)
        self.attempts = Attempts()
        self.metrics = Metrics(self.shelf.counts)
        self.router = Router(config.routing, bidder or Bidder())
        self._upstream = upstream
        self._deadlines = Deadlines()
        self._needs_keys = config.needs_keys
        self._fallback_key = config.fallback_key()
        self._spender: Spender = pool.spender()
        # Sellers by usage that found a request too large. What they refuse before a payment takes none out of the pool.
        self._asked_first: TTLCache[str, bool] = TTLCache(BREAKERS_MAX, ASK_FIRST_S)
        pool.database.stay_responsive()

    def close(self) -> None:
        """Give the unclaimed authorizations of this process back to the pool."""
        self._spender.close()

    async def serve(self, call: Call, client: Client) -> None:
        """Answer `call`. Raises `Refused` or `FareboxError` when nothing was sent to the client yet."""
        if self.config.fallback and not call.model.paid:
            _check_model(call, [call.model.name])
            await self._fall_back(call, client, self.config.fallback)
            return
        if call.has_id and self.attempts.digest_of(call.key) not in (None, call.digest):
            raise _id_reused()
        if (record := self.attempts.kept(call.key)) is not None:
            await self._replay(call, client, record)
        elif (attempt := await self._attempt_to_join(call)) is not None:
            await self._join(call, client, attempt)
        else:
            await self._buy(call, client, await self.in_store(lambda: self._order(call)))

    async def caller(self, headers: Headers) -> ClientKey | None:
        """Return the client key a request came with. Raises `Refused` (401) or `StoreUnavailable`."""
        text = key_given(headers, required=self._needs_keys)
        return None if text is None else await self.in_store(lambda: key_known(self.pool, text))

    async def in_store(self, work: Callable[[], T], *, writes: bool = False) -> T:
        """Run `work`, which asks the store: at once where that takes microseconds, else in a thread.

        With `writes`, it may have to wait for other writers.
        """
        database = self.pool.database
        at_once = database.is_free if writes else database.is_local
        return work() if at_once else await asyncio.to_thread(work)

    async def _attempt_to_join(self, call: Call) -> Attempt | None:
        """Return an attempt at the same request that lost its client. Raises `RequestInProgress` for a live one."""
        if not self.attempts.is_running(call.key):
            return None
        for _ in range(_TURNS_TO_NOTICE):
            await asyncio.sleep(0)
        attempt = self.attempts.abandoned(call.key)
        if attempt is None and call.has_id and self.attempts.is_running(call.key):
            self.metrics.repeated.labels("in_progress").inc()
            raise RequestInProgress("x-farebox-request-id: this request is being answered on another connection")
        return attempt

    async def _replay(self, call: Call, client: Client, record: Record) -> None:
        self.metrics.repeated.labels("replayed").inc()
        await client.start(record.status, [*record.headers, _REPLAYED])
        for chunk in record.chunks:
            await client.body(chunk)
        await client.end()
        await self._note_delivery(call, client, record)

    async def _join(self, call: Call, client: Client, attempt: Attempt) -> None:
        self.metrics.repeated.labels("joined").inc()
        attempt.client_gone = lambda: client.gone
        try:
            await attempt.record.started()
            await client.start(attempt.record.status, [*attempt.record.headers, _REPLAYED])
            async for chunk in attempt.record.follow():
                await client.body(chunk)
        except Broken:
            if not client.started:
                raise Refused(Problem(502, "answer_lost", "the answer this request waited for broke off")) from None
            return
        await client.end()
        await self._note_delivery(call, client, attempt.record)

    async def _note_delivery(self, call: Call, client: Client, record: Record) -> None:
        """Remember that a client has the whole answer, if so: without an id, asking again is a new purchase then."""
        if not client.delivered:
            return
        record.has_arrived = True
        if record.claim is not None:
            await self._end(record.claim, delivered=True, to_repetition=True)
        if not call.has_id:
            # Only now: until the books say so, asking again would be told that the request was paid already.
            self.attempts.forget(call.key)

    async def _end(self, claim: Claim, *, delivered: bool, to_repetition: bool = False) -> None:
        """Tell the pool whether an answer reached a client; one that the store does not note is asked for again."""

        def end() -> None:
            if delivered:
                self._spender.delivered(claim, int(self.clock()), to_repetition=to_repetition)
            else:
                self._spender.undelivered(claim)

        with contextlib.suppress(FareboxError):
            await self.in_store(end, writes=True)

    def _order(self, call: Call) -> _Order:
        """Decide what to buy for `call`. Raises `Refused` or a `FareboxError` when that is nothing."""
        request_key = call.key if call.has_id else self._spender.unanswered(call.key, int(self.clock()))
        if request_key is not None and (earlier := self.pool.receipt_of(request_key)) is not None:
            if call.has_id and earlier.fingerprint != _own_id(call):
                raise _id_reused()
            if earlier.state in ("unknown", "spent"):
                # Only the seller that saw the payment may see it again, and only it may have kept the answer.
                self.metrics.repeated.labels("presented_again").inc()
                return _Order(request_key, _own_id(call), Routed([self._seller_of(earlier)]))
        ranked = self.shelf.find(call.model.name, call.seller)
        _check_model(call, [purchase.model for purchase in ranked])
        caps = {"x-farebox-max-price": call.max_price, "max_price in gateway.yaml": self.config.max_price}
        affordable = self.shelf.affordable(ranked, {name: text for name, text in caps.items() if text is not None})
        candidates = self.shelf.open_for_business(affordable, self.clock())
        routed = self.router.route(call, candidates, self.clock())
        if call.has_id:
            return _Order(call.key, _own_id(call), routed)
        # Keys in the order of time come to lie side by side in the pool's index.
        drawn = f"new:{time.time_ns():016x}{secrets.token_hex(8)}"
        return _Order(drawn, call.key, routed, is_new=True)

    def _seller_of(self, earlier: Receipt) -> Purchase:
        try:
            return self.pool.purchase(earlier.purchase)
        except NameUnknown:
            if earlier.state == "spent":
                raise RequestAlreadyPaid("this request was paid and answered, and its seller was removed") from None
            raise OutcomeUnknown("this request was paid for, and its seller was removed") from None

    async def _buy(self, call: Call, client: Client, order: _Order) -> None:
        attempt = self.attempts.begin(call.key, call.digest, lambda: client.gone)
        served = False
        try:
            with self._deadlines.within(CALL_TIMEOUT_S):
                served = await self._pay_and_pass_on(call, client, attempt, order)
        except TimeoutError:
            problem = Problem(
                504, "call_timed_out", f"no whole answer in {CALL_TIMEOUT_S:.0f} s", headers=[CHARGED_UNKNOWN]
            )
            raise Refused(problem) from None
        finally:
            has_arrived = served and (client.delivered or attempt.record.has_arrived)
            self.attempts.end(attempt, keep=served and (call.has_id or not has_arrived))
            if attempt.record.claim is not None:
                await self._end(attempt.record.claim, delivered=has_arrived)

    async def _pay_and_pass_on(self, call: Call, client: Client, attempt: Attempt, order: _Order) -> bool:
        relay = Relay(call, client, attempt.record, extra=_decision_headers(order.routed))
        started_s = self.clock()
        purchase, outcome, answer = await self._pay(call, order)
        if answer is None:
            self._note_end(order.routed, purchase, outcome, started_s, is_ok=False)
            if isinstance(outcome.error, RequestAlreadyPaid) and outcome.claim is not None:
                self.metrics.repeated.labels("already_paid").inc()
                if not call.has_id:
                    # It is told once; after that, asking the same is a new request.
                    await self._end(outcome.claim, delivered=True)
            await relay.failure(outcome)
            return False
        attempt.record.claim = outcome.claim
        try:
            self._note_success(purchase, outcome)
            whole = await relay.answer(outcome, answer)
            if not relay.was_left:
                charged_atomic = relay.charged_atomic
                self._note_end(order.routed, purchase, outcome, started_s, is_ok=whole, charged_atomic=charged_atomic)
            await self._note_charge(purchase, relay, attempt)
            return whole
        finally:
            answer.close()

    def _note_end(
        self,
        routed: Routed,
        purchase: Purchase,
        outcome: Outcome,
        started_s: float,
        *,
        is_ok: bool,
        charged_atomic: int | None = None,
    ) -> None:
        """Tell the bidder how long a call took and what it cost, as far as anybody knows."""
        claim, now_s = outcome.claim, self.clock()
        if claim is None or claim.spent:
            return
        amount_atomic = claim.authorization.value_atomic if charged_atomic is None else charged_atomic
        settlement = "unknown" if outcome.receipt is None else "stated"
        if not is_ok and (outcome.kind == "refused" or _charged_nothing(outcome)):
            amount_atomic, settlement = 0, "none"
        ended = Ended(max(now_s - started_s, 0.0), is_ok, budget_units(amount_atomic, purchase.offer.asset))
        self.router.ended(routed, purchase, ended, settlement, now_s)

    async def _note_charge(self, purchase: Purchase, relay: Relay, attempt: Attempt) -> None:
        """Note what a call by usage was charged, and that a stream whose client left is over for good."""
        claim, charged_atomic = attempt.record.claim, relay.charged_atomic
        if claim is None or not sold_by_usage(purchase):
            return
        if not claim.spent:
            cost_atomic = claim.authorization.value_atomic if charged_atomic is None else charged_atomic
            self.metrics.spent.labels(purchase.name).inc(cost_atomic)
        if charged_atomic is not None and relay.charged_late:
            with contextlib.suppress(FareboxError):
                await self.in_store(lambda: self._spender.charged(claim, charged_atomic), writes=True)
        if relay.was_left:
            attempt.record.claim = None
            await self._end(claim, delivered=True)

    async def _pay(self, call: Call, order: _Order) -> tuple[Purchase, Outcome, Answer | None]:
        """Pay the first candidate that can be paid. Only while nothing has left the machine is the next one asked."""
        failure: FareboxError | None = None
        for purchase in order.routed.purchases:
            self.router.placed(order.routed, purchase, order.request_key, self.clock())
            headers = call.seller_headers()
            if sold_by_usage(purchase):
                headers.append((STREAM_RECEIPT, "1"))
            request = Outgoing("POST", purchase.endpoint + call.route, headers, call.body_for(purchase.model))
            started = time.perf_counter()
            flow = self._flow(request, purchase, call, order, is_new=order.is_new)
            outcome, answer = await drive(flow, self._upstream, blocking=lambda: not self.pool.database.is_free)
            if outcome.claim is None and isinstance(outcome.error, StoreBusy):
                # Nothing has left. Others had the turn to write for longer than everybody here can wait for this call;
                # by itself it can, as a repetition under the same key.
                flow = self._flow(request, purchase, call, order, is_new=False)
                outcome, answer = await drive(flow, self._upstream, blocking=lambda: True)
            self.metrics.of(self.metrics.calls, purchase.name, outcome.kind).inc()
            self.router.heard(purchase, outcome, self.clock())
            if _was_too_large(outcome):
                self._asked_first[purchase.name] = True
            if answer is not None and answer.status >= 300:
                answer.close()  # refused before a payment; what it said is read
                answer = None
            if outcome.claim is not None:
                self.metrics.of(self.metrics.first_byte, purchase.name).observe(time.perf_counter() - started)
            if outcome.error is not None and not isinstance(outcome.error, _NOT_THE_SELLERS):
                self._note_failure(purchase, outcome.error)
            if outcome.claim is not None or outcome.error is None:
                return purchase, outcome, answer
            if not isinstance(outcome.error, (AuthorizationsExhausted, BudgetExceeded, SellerUnreachable)):
                raise _id_reused() if isinstance(outcome.error, RequestChanged) else outcome.error
            if isinstance(outcome.error, SellerUnreachable):
                self.router.unreachable(purchase, self.clock())
            if failure is None or isinstance(outcome.error, SellerUnreachable):
                failure = outcome.error
        assert failure is not None, "an order names at least one purchase"
        raise Refused(Problem.of(failure, headers=[CHARGED_NO]))

    def _flow(self, request: Outgoing, purchase: Purchase, call: Call, order: _Order, *, is_new: bool) -> PaymentFlow:
        flow = pay_with_pool(
            request,
            self._spender,
            purchase,
            order.request_key,
            self.clock,
            fingerprint=order.fingerprint,
            route=call.path,
            client_key="" if call.client_key is None else call.client_key.name,
            is_new=is_new,
            tells_delivery=True,
        )
        return pay_when_asked(request, flow) if purchase.name in self._asked_first else flow

    def _note_success(self, purchase: Purchase, outcome: Outcome) -> None:
        self.shelf.note_success(purchase)
        if outcome.claim is not None and not outcome.claim.spent and not sold_by_usage(purchase):
            self.metrics.of(self.metrics.spent, purchase.name).inc(outcome.claim.authorization.value_atomic)
        if outcome.claim is not None and outcome.receipt is None:
            self.metrics.no_receipt.labels(purchase.name).inc()

    def _note_failure(self, purchase: Purchase, error: FareboxError) -> None:
        is_news = self.shelf.note_trouble(purchase, error, self.clock())
        if is_news or not isinstance(error, (AuthorizationsExhausted, SellerUnreachable)):
            log.warning("purchase %s: %s: %s", purchase.name, error.code, error.message)

    async def _fall_back(self, call: Call, client: Client, base_url: str) -> None:
        outcome = "failed"
        try:
            with self._deadlines.within(CALL_TIMEOUT_S):
                status = await fall_back(call, client, self._upstream, base_url, self._fallback_key)
            outcome = f"{status // 100}xx"
        except TimeoutError:
            raise Refused(Problem(504, "call_timed_out", "the fallback gave no whole answer in time")) from None
        finally:
            self.metrics.fallback.labels(outcome).inc()


def _decision_headers(routed: Routed) -> Headers:
    return [] if routed.decision_id is None else [(b"x-farebox-decision", routed.decision_id.encode())]


def _charged_nothing(outcome: Outcome) -> bool:
    return outcome.incoming is not None and outcome.incoming.headers.get("x-farebox-charged") == "false"


def _was_too_large(outcome: Outcome) -> bool:
    incoming = outcome.incoming
    return incoming is not None and incoming.status == 400 and b'"above_ceiling"' in incoming.body


def _check_model(call: Call, models: list[str]) -> None:
    """Refuse (403) a model that the caller's key does not name. Purchases of one name are of one model."""
    key = call.client_key
    if key is not None and key.models is not None and any(model not in key.models for model in models):
        message = f"model: the key {key.name} may not call {call.model.name[:100]!r}"
        raise Refused(Problem(403, "model_not_allowed", message))


def _own_id(call: Call) -> str:
    """Return what the pool keeps to recognise the request by; under an id of its own, a body that must not change."""
    return f"digest:{call.digest}" if call.has_id else call.key


def _id_reused() -> Refused:
    return Refused(Problem(400, "request_id_reused", "x-farebox-request-id: this id was used for another request"))

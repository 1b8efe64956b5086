"""Stands between the application and the client of one paid request, and lets nothing out before its time.

The start message is held until the answer is known to be good and its money is where the claim's mode wants it; the
chunks that follow are passed on as they come, and written down as they pass. An answer that is not 2xx, or that dies
before its first body byte, is not charged. A client that leaves changes nothing: the work goes on, and what it bought
is there when it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from contracts.crash import checkpoint
from contracts.errors import FareboxError, UpstreamFailed
from contracts.stream_receipts import receipt_comment
from seller.answers import NOT_CHARGED, RawHeaders
from seller.body import Busy
from seller.claims import Claim
from seller.hygiene import for_client
from seller.limits import HELD_BODY_BYTES_MAX, QUEUED_LIFE_S
from seller.metering import Meter
from seller.policy import Mode
from seller.pricebook import Quote
from seller.receipts import receipt, receipt_headers
from seller.recorder import Recorder
from seller.service import Seller
from seller.spool import Beginning, State, is_event_stream
from seller.watch import ClientWatch

__all__ = ["Responder"]

Message = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]

_log = logging.getLogger("farebox.seller")

_CREDIT = (b"x-farebox-credit", b"true")


class Withheld(OSError):
    """Raised at an application that goes on sending after its answer was refused; servers raise OSError here, too."""


class Responder:
    """Runs the application for one claim. `run` returns when the client has its answer."""

    def __init__(
        self,
        seller: Seller,
        claim: Claim,
        quote: Quote,
        send: Send,
        watch: ClientWatch,
        *,
        meter: Meter | None = None,
        tells_charge: bool = False,
    ) -> None:
        """`meter` counts what is sold by usage; `tells_charge` ends a metered stream with a comment that says so."""
        self._seller = seller
        self._claim = claim
        self._quote = quote
        self._send = send
        self._watch = watch
        self._meter = meter
        self._tells_charge = tells_charge
        self._charged_atomic = claim.charged_atomic
        self._is_stream = False
        self._tail = b""
        self._time_is_up: asyncio.TimerHandle | None = None
        self._start: Message | None = None
        self._start_headers: RawHeaders = []
        self._held: list[Message] = []
        self._held_bytes = 0
        self._released = False
        self._closed = False
        self._transaction = claim.transaction_hash
        self._recorder: Recorder | None = None

    async def run(self, application: Callable[[Callable[[], Awaitable[Any]], Send], Awaitable[None]]) -> None:
        """Run `application(receive, send)` and see its answer and its money to their end."""
        try:
            await self._before_work()
        except FareboxError as error:
            await self._answer_refusal(error)
            return
        try:
            await self._run(application)
        finally:
            if self._time_is_up is not None:
                self._time_is_up.cancel()

    async def _run(self, application: Callable[[Callable[[], Awaitable[Any]], Send], Awaitable[None]]) -> None:
        try:
            await application(self._watch.receive, self.send)
        except Exception as error:
            await self._end_recording()
            if self._released:
                raise
            if isinstance(error, Busy) and not self._closed:
                await self.refuse(error)
            elif not self._closed:
                _log.exception("the application failed before its first byte")
        except BaseException:
            await self._end_recording()
            await self._end_without_goods("cancelled")
            raise
        await self._end_recording()
        if not self._released and not self._closed:
            await self.refuse(UpstreamFailed("the model server ended without an answer"))

    async def _before_work(self) -> None:
        claim = self._claim
        if claim.mode is Mode.BEFORE and not claim.credit:
            self._transaction = await self._seller.settle(claim)
        if claim.mode is not Mode.ASYNC and not claim.credit:
            await self._seller.ledger.begin(claim)
        checkpoint("seller.begun")

    async def send(self, message: Message) -> None:
        """Take one message of the application's answer."""
        if self._closed:
            raise Withheld("the answer was refused")
        if message["type"] == "http.response.start" and not self._released:
            self._begin(message)
        elif self._released:
            await self._pass(self._metered(message))
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._hold(self._metered(message))

    def _begin(self, message: Message) -> None:
        self._start = message
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", [])]
        self._is_stream = is_event_stream(headers)
        if self._meter is not None and self._is_stream:
            # An event may be taken out of it.
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        self._start_headers = headers

    def _metered(self, message: Message) -> Message:
        """Count what passes of a stream, and take out of it what its client did not ask for."""
        if self._meter is None or not self._is_stream or not self._is_good or message["type"] != "http.response.body":
            return message
        body = self._meter.pass_on(message.get("body", b""), last=not message.get("more_body", False))
        self._tail = (self._tail + body)[-4:]
        return {**message, "body": body}

    @property
    def _is_good(self) -> bool:
        return self._start is not None and 200 <= self._start["status"] < 300

    @property
    def _is_one_piece(self) -> bool:
        """Whether the answer leaves only when all of it is there."""
        return self._claim.mode is Mode.AFTER or (self._meter is not None and not self._is_stream)

    async def _hold(self, message: Message) -> None:
        assert self._start is not None
        more = message.get("more_body", False)
        self._held.append(message)
        self._held_bytes += len(message.get("body", b""))
        if not self._is_good:
            await self._pass_failure()
        elif self._is_one_piece:
            if self._held_bytes > HELD_BODY_BYTES_MAX:
                await self.refuse(UpstreamFailed(f"the answer is larger than {HELD_BODY_BYTES_MAX} bytes"))
            elif not more:
                await self._deliver()
        elif self._held_bytes or not more:
            await self._deliver()

    async def _deliver(self) -> None:
        """The answer is good: get the money right, durably, write down what leaves, then let it go."""
        claim, seller = self._claim, self._seller
        assert self._start is not None
        checkpoint("seller.first_byte_held")
        headers = for_client(self._start_headers)
        body = b"".join(message.get("body", b"") for message in self._held)
        answer = Beginning(self._start["status"], headers, body, self._is_whole())
        if self._meter is not None and answer.whole:
            self._read_charge(self._meter, body)
        try:
            kept = await self._note(answer)
        except FareboxError as error:
            await self._answer_refusal(error)
            return
        checkpoint("seller.delivered")
        seller.metrics.served(self._quote.route, "credit" if claim.credit else "paid")
        if self._is_charged_later(answer):
            self._recorder = Recorder(seller.ledger, claim, keeps=kept, meter=self._meter)
            # What it makes for nobody would be charged.
            self._watch.give_up()
            self._limit_time()
        elif not kept:
            self._watch.give_up()
        elif not answer.whole:
            self._recorder = Recorder(seller.ledger, claim)
            self._watch.start()
        await self._release(headers + self._receipts() + ([_CREDIT] if claim.credit else []))

    async def _note(self, answer: Beginning) -> bool:
        """Get the money where the claim's mode wants it, and the delivery on disk; tell whether the answer is kept."""
        claim, ledger = self._claim, self._seller.ledger
        if claim.mode is Mode.ASYNC and not claim.credit:
            if self._meter is not None and self._is_charged_later(answer):
                return await ledger.deliver_metered(claim, answer, self._meter.charge_atomic(whole=False))
            kept = await ledger.owe(claim, answer, charged_atomic=self._charged_atomic)
            self._seller.counter.announce()
            return kept
        if claim.mode in (Mode.FIRST_BYTE, Mode.AFTER) and not claim.credit:
            self._transaction = await self._seller.settle(claim, charged_atomic=self._charged_atomic)
            checkpoint("seller.settled")
        return await ledger.delivered(claim, answer)

    def _is_charged_later(self, answer: Beginning) -> bool:
        """Whether the charge is known only when the rest of the answer has passed."""
        return self._meter is not None and not answer.whole and not self._claim.credit

    def _read_charge(self, meter: Meter, document: bytes = b"", *, whole: bool = True) -> None:
        """Take from the meter what the answer costs, now that it is at its end."""
        if document and not self._is_stream:
            meter.read_document(document)
        if whole and not meter.was_told:
            _log.warning(
                "%s: the model server reports no usage, so payment %d is charged the minimum",
                self._quote.route,
                self._claim.id,
            )
        if not self._claim.credit:
            self._charged_atomic = meter.charge_atomic(whole=whole)

    def _limit_time(self) -> None:
        """Stop an answer while what its payer signed can still be settled."""
        life_s = self._claim.payment.authorization.valid_before_s - time.time()
        loop = asyncio.get_running_loop()
        self._time_is_up = loop.call_later(max(0.0, life_s - QUEUED_LIFE_S), self._watch.stop)

    def _is_whole(self) -> bool:
        """Whether all of the answer is held."""
        if not self._held[-1].get("more_body", False):
            return True
        lengths = [value for name, value in self._start_headers if name == b"content-length"]
        return lengths == [b"%d" % self._held_bytes]

    async def _pass(self, message: Message) -> None:
        """Pass on what follows the first bytes; the client's end of it cannot stop it any more."""
        recorder = self._recorder
        if recorder is not None:
            recorder.add(message.get("body", b""))
            if not message.get("more_body", False):
                await self._finish(recorder, State.WHOLE)
                message = {**message, "body": message.get("body", b"") + self._closing_comment()}
            elif not recorder.is_keeping:
                self._watch.give_up()
        await self._to_client(message)

    async def _finish(self, recorder: Recorder, state: State) -> None:
        """Write down how the answer ended and, sold by usage, what is due for it."""
        await recorder.finish(state)
        if self._meter is not None:
            self._read_charge(self._meter, whole=state is State.WHOLE)
            self._seller.counter.announce()

    def _closing_comment(self) -> bytes:
        """Return what tells the client of a metered stream its charge, where it asked for that."""
        if self._meter is None or not self._tells_charge:
            return b""
        end = b"" if self._tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        return end + receipt_comment(receipt(self._claim, self._transaction, charged_atomic=self._charged_atomic))

    async def _to_client(self, message: Message) -> None:
        if self._recorder is None:
            await self._send(message)
        elif not self._watch.client_is_gone:
            # With an OSError servers say that the client has left. What is written down goes on without it.
            with contextlib.suppress(OSError):
                await self._send(message)

    async def _end_recording(self) -> None:
        """The application ended before its answer did."""
        if self._recorder is not None and not self._recorder.is_finished:
            useless = self._watch.is_given_up and not is_event_stream(self._start_headers)
            await self._finish(self._recorder, State.DROPPED if useless else State.BROKEN)

    async def _pass_failure(self) -> None:
        """The upstream said no: its answer goes through as it is, and nothing is charged for it."""
        headers = for_client(self._start_headers)
        await self._end_without_goods(UpstreamFailed.code)
        self._seller.metrics.served(self._quote.route, "not_charged")
        await self._release(headers + self._failure_headers())

    async def refuse(self, error: FareboxError) -> None:
        """Answer `error` in place of goods, and charge nothing: there is nothing that could be delivered."""
        self._closed = True
        await self._end_without_goods(error.code)
        self._seller.metrics.served(self._quote.route, "not_charged")
        answer = self._seller.answers.refused(error, self._quote.path, self._quote, extra=self._failure_headers())
        await answer.send(self._send)

    async def _answer_refusal(self, error: FareboxError) -> None:
        """The settlement failed, or the store did: nothing of the work leaves."""
        self._closed = True
        claim = self._claim
        await self._end_without_goods(error.code)
        self._seller.metrics.refused(self._quote.route, error.code)
        extra = receipt_headers(claim, "", error) if error.http_status == 402 else []
        await self._seller.answers.refused(error, self._quote.path, self._quote, extra=extra).send(self._send)

    async def _end_without_goods(self, reason: str) -> None:
        """End the claim. When the store fails here, too, the claim ends with this process."""
        try:
            await self._seller.ledger.give_up(self._claim, reason)
            checkpoint("seller.given_up")
        except FareboxError as error:
            _log.warning("payment %d stays claimed: %s", self._claim.id, error.message)

    def _failure_headers(self) -> RawHeaders:
        """Money that moved before the failure is a credit for the same request."""
        if not self._transaction and not self._claim.credit:
            return [NOT_CHARGED]
        return [*self._receipts(), _CREDIT]

    def _receipts(self) -> RawHeaders:
        return receipt_headers(self._claim, self._transaction, charged_atomic=self._charged_atomic)

    async def _release(self, headers: RawHeaders) -> None:
        assert self._start is not None
        self._released = True
        await self._to_client({**self._start, "headers": headers})
        checkpoint("seller.started")
        for message in self._held:
            await self._to_client(message)
        self._held.clear()

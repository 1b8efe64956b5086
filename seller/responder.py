"""Stands between the application and the client of one paid request, and lets nothing out before its time.

The start message is held until the answer is known to be good and its money is where the claim's mode wants it; the
chunks that follow are passed on as they come, and written down as they pass. An answer that is not 2xx, or that dies
before its first body byte, is not charged. A client that leaves changes nothing: the work goes on, and what it bought
is there when it comes back.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from contracts.crash import checkpoint
from contracts.errors import FareboxError, UpstreamFailed
from seller.answers import RawHeaders, receipt_headers
from seller.claims import Claim
from seller.hygiene import for_client
from seller.limits import HELD_BODY_BYTES_MAX
from seller.policy import Mode
from seller.pricebook import Quote
from seller.receipts import receipt
from seller.recorder import Recorder
from seller.service import Seller
from seller.spool import Beginning, State, is_event_stream
from seller.watch import ClientWatch

__all__ = ["Responder"]

Message = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]

_log = logging.getLogger("farebox.seller")

_NOT_CHARGED = (b"x-farebox-charged", b"false")
_CREDIT = (b"x-farebox-credit", b"true")


class Withheld(OSError):
    """Raised at an application that goes on sending after its answer was refused; servers raise OSError here, too."""


class Responder:
    """Runs the application for one claim. `run` returns when the client has its answer."""

    def __init__(self, seller: Seller, claim: Claim, quote: Quote, send: Send, watch: ClientWatch) -> None:
        self._seller = seller
        self._claim = claim
        self._quote = quote
        self._send = send
        self._watch = watch
        self._start: Message | None = None
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
            await application(self._watch.receive, self.send)
        except Exception:
            await self._end_recording()
            if self._released:
                raise
            if not self._closed:
                _log.exception("the application failed before its first byte")
        except BaseException:
            await self._end_recording()
            await self._end_without_goods("cancelled")
            raise
        await self._end_recording()
        if not self._released and not self._closed:
            await self._refuse(UpstreamFailed("the model server ended without an answer"))

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
        if self._released:
            await self._pass(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and self._start is not None:
            await self._hold(message)

    async def _hold(self, message: Message) -> None:
        assert self._start is not None
        more = message.get("more_body", False)
        self._held.append(message)
        self._held_bytes += len(message.get("body", b""))
        if not 200 <= self._start["status"] < 300:
            await self._pass_failure()
        elif self._claim.mode is Mode.AFTER:
            if self._held_bytes > HELD_BODY_BYTES_MAX:
                await self._refuse(UpstreamFailed(f"the answer is larger than {HELD_BODY_BYTES_MAX} bytes"))
            elif not more:
                await self._deliver()
        elif self._held_bytes or not more:
            await self._deliver()

    async def _deliver(self) -> None:
        """The answer is good: get the money right, durably, write down what leaves, then let it go."""
        claim, seller = self._claim, self._seller
        assert self._start is not None
        checkpoint("seller.first_byte_held")
        headers = for_client(self._start_headers())
        body = b"".join(message.get("body", b"") for message in self._held)
        answer = Beginning(self._start["status"], headers, body, self._is_whole())
        try:
            if claim.mode is Mode.ASYNC and not claim.credit:
                kept = await seller.ledger.owe(claim, answer)
                seller.counter.announce()
            else:
                if claim.mode in (Mode.FIRST_BYTE, Mode.AFTER) and not claim.credit:
                    self._transaction = await seller.settle(claim)
                    checkpoint("seller.settled")
                kept = await seller.ledger.delivered(claim, answer)
        except FareboxError as error:
            await self._answer_refusal(error)
            return
        checkpoint("seller.delivered")
        seller.metrics.served(self._quote.route, "credit" if claim.credit else "paid")
        if not kept:
            self._watch.give_up()
        elif not answer.whole:
            self._recorder = Recorder(seller.ledger, claim.id)
        receipts = receipt_headers(receipt(claim, self._transaction), claim.payment.x402_version)
        await self._release(headers + receipts + ([_CREDIT] if claim.credit else []))

    def _is_whole(self) -> bool:
        """Whether all of the answer is held."""
        if not self._held[-1].get("more_body", False):
            return True
        lengths = [value for name, value in self._start_headers() if name == b"content-length"]
        return lengths == [b"%d" % self._held_bytes]

    async def _pass(self, message: Message) -> None:
        """Pass on what follows the first bytes; the client's end of it cannot stop it any more."""
        recorder = self._recorder
        if recorder is not None:
            recorder.add(message.get("body", b""))
            if not message.get("more_body", False):
                await recorder.finish(State.WHOLE)
            elif not recorder.is_keeping:
                self._watch.give_up()
        await self._to_client(message)

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
            useless = self._watch.is_given_up and not is_event_stream(self._start_headers())
            await self._recorder.finish(State.DROPPED if useless else State.BROKEN)

    async def _pass_failure(self) -> None:
        """The upstream said no: its answer goes through as it is, and nothing is charged for it."""
        headers = for_client(self._start_headers())
        await self._end_without_goods(UpstreamFailed.code)
        self._seller.metrics.served(self._quote.route, "not_charged")
        await self._release(headers + self._failure_headers())

    async def _refuse(self, error: FareboxError) -> None:
        """The application gave nothing that could be delivered."""
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
        failed = receipt(claim, "", error)
        extra = receipt_headers(failed, claim.payment.x402_version) if error.http_status == 402 else []
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
            return [_NOT_CHARGED]
        paid = receipt(self._claim, self._transaction)
        return [*receipt_headers(paid, self._claim.payment.x402_version), _CREDIT]

    def _start_headers(self) -> RawHeaders:
        assert self._start is not None
        return [(bytes(name).lower(), bytes(value)) for name, value in self._start.get("headers", [])]

    async def _release(self, headers: RawHeaders) -> None:
        assert self._start is not None
        self._released = True
        await self._to_client({**self._start, "headers": headers})
        checkpoint("seller.started")
        for message in self._held:
            await self._to_client(message)
        self._held.clear()

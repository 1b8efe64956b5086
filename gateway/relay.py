"""Passes one paid answer on: to the client while it listens, and to the record for whoever asks again.

The status line is held until the first byte of the body is there, so that an answer that dies before it is told as an
error and not as a broken success.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from urllib.parse import quote

import msgspec

from buyer.flow import Lost, Outcome
from buyer.pool import Claim
from buyer.purchase import Purchase
from contracts.crash import checkpoint
from contracts.errors import FareboxError, OutcomeUnknown, RequestAlreadyPaid
from contracts.headers import PAYMENT_RESPONSE, X_PAYMENT_RESPONSE, encode_header
from contracts.wire import SettlementResponse
from gateway.attempts import Record
from gateway.client import Client, problem_answer
from gateway.envelope import Headers, Problem, error_body, error_event
from gateway.requests import Call
from gateway.stream_charge import StreamCharge
from gateway.upstream import Answer, passed_on

__all__ = ["CHARGED_NO", "CHARGED_UNKNOWN", "Relay", "sold_by_usage"]

# Besides letters, digits and "-._~": what may stand in a header of ours as it is.
_HEADER_SAFE = "/:@,;+=!*()[]"
_MODELS_CACHED = 256
CHARGED_UNKNOWN = (b"x-farebox-charged", b"unknown")
CHARGED_NO = (b"x-farebox-charged", b"false")
_CHARGED_BEFORE = (b"x-farebox-charged", b"true")
_REPLAYED = (b"x-farebox-replayed", b"true")
# The one success whose length would be that of another answer.
_NO_CONTENT = 204
# A paid answer is for the one who paid it.
_NO_STORE = (b"cache-control", b"no-store")
_NO_RETRY = (b"x-should-retry", b"false")


def sold_by_usage(purchase: Purchase) -> bool:
    """Tell whether a seller charges what a call used, of the amount that was signed."""
    return purchase.offer.scheme == "upto"


class Relay:
    """Carries the answer of one call."""

    def __init__(self, call: Call, client: Client, record: Record, *, extra: Headers | None = None) -> None:
        self._call, self._client, self._record = call, client, record
        self._extra = extra or []
        # What the seller says it charged by usage, once it has said so, and whether it did so after its headers.
        self.charged_atomic: int | None = None
        self.charged_late = False
        # Whether a stream by usage was stopped because its client has left.
        self.was_left = False
        self._last = b""

    async def answer(self, outcome: Outcome, answer: Answer) -> bool:
        """Pass a paid answer on chunk by chunk, a stream with its receipt at the end. Tell whether it is whole."""
        headers = [*passed_on(answer.headers), _NO_STORE, *_receipt_headers(outcome), *self._extra]
        if answer.headers.get("x-farebox-replayed") == "true":
            headers.append(_REPLAYED)
        length = answer.headers.get("content-length")
        if length is not None and not answer.is_event_stream and answer.status != _NO_CONTENT:
            headers.append((b"content-length", length.encode("latin-1")))
        self._record.start(answer.status, headers)
        metered, self.charged_atomic = self._meter(outcome, answer), _charged_in_head(outcome)
        body = answer if metered is None else _Unmarked(metered, answer)
        try:
            while chunk := await body.read(self._pass_on):
                self._note(chunk)
                if not self._client.started:
                    await self._client.start(answer.status, headers)
                    checkpoint("gateway.started")
                await self._client.body(chunk)
        except Lost as error:
            self.was_left = metered is not None and self._client.gone
            await self._broke_off(outcome, answer, error)
            return False
        if not self._client.started:
            await self._client.start(answer.status, headers)
        if metered is not None and metered.charged_atomic is not None:
            self.charged_atomic, self.charged_late = metered.charged_atomic, True
        closing = _receipt_comment(outcome, self._last, self.charged_atomic) if answer.is_event_stream else b""
        checkpoint("gateway.whole")
        if closing:
            self._record.add(closing)
        self._record.finish()
        await self._client.end(closing)
        checkpoint("gateway.answered")
        return True

    def _pass_on(self, chunk: bytes) -> bool:
        """Take a part of the body as it arrives: a stream's pieces cost no turn of the event loop each."""
        if not self._client.started or not self._client.body_at_once(chunk):
            return False
        self._note(chunk)
        return True

    def _note(self, chunk: bytes) -> None:
        self._record.add(chunk)
        self._last = chunk

    def _meter(self, outcome: Outcome, answer: Answer) -> StreamCharge | None:
        """Return how to read the charge of a stream by usage, which costs for as long as it goes on: it is stopped as
        soon as its client leaves.
        """
        if outcome.claim is None or not sold_by_usage(outcome.claim.purchase) or not answer.is_event_stream:
            return None
        self._client.when_gone(answer.close)
        return StreamCharge(outcome.claim.authorization.value_atomic)

    async def _broke_off(self, outcome: Outcome, answer: Answer, error: Lost) -> None:
        """Tell the client that it paid and did not get everything. A repetition asks for what its seller has kept."""
        self._record.fail()
        problem = Problem(
            502,
            "answer_broke_off",
            f"the seller's answer broke off: {error}; it counts as paid, and asking again does not pay again",
            headers=[*_receipt_headers(outcome), CHARGED_UNKNOWN],
        )
        if not self._client.started:
            await self._client.problem(self._call.path, problem)
        elif answer.is_event_stream:
            await self._client.end(error_event(self._call.path, problem))

    async def failure(self, outcome: Outcome) -> None:
        """Pass a seller's own error on as it is; tell everything about the payment in our words."""
        path, incoming, charged = self._call.path, outcome.incoming, _charged(outcome)
        sellers_own = outcome.kind in ("unknown", "free")
        if sellers_own and incoming is not None and incoming.status >= 400 and incoming.status != 402:
            headers = [*passed_on(incoming.headers), _NO_STORE, charged, *_purchase_headers(outcome.claim)]
            if incoming.body:
                await self._say(incoming.status, headers, incoming.body)
                return
            problem = Problem(incoming.status, "upstream_error", "the seller sent an error without a body")
            headers = [header for header in headers if header[0] not in (b"content-type", b"content-encoding")]
            await self._say(
                incoming.status, [*headers, (b"content-type", b"application/json")], error_body(path, problem)
            )
            return
        error: FareboxError = outcome.error or OutcomeUnknown("the seller gave no usable answer")
        headers = [charged, _NO_RETRY] if isinstance(error, RequestAlreadyPaid) else [charged]
        await self._say(*problem_answer(path, Problem.of(error, headers=headers)))

    async def _say(self, status: int, headers: Headers, body: bytes) -> None:
        self._record.start(status, headers)
        self._record.add(body)
        self._record.finish()
        await self._client.answer(status, headers, body)


class _Unmarked:
    """The body of a stream without the seller's own last word in it."""

    def __init__(self, metered: StreamCharge, answer: Answer) -> None:
        self._metered, self._answer = metered, answer
        self._is_over = False

    async def read(self, _take: Callable[[bytes], bool]) -> bytes:
        """Return the next part that may go on, nothing at the end. Raises `Lost`.

        Nothing is taken as it arrives: what a chunk says is not known before all that came with it is read.
        """
        while not self._is_over:
            chunk = await self._answer.read()
            self._is_over = not chunk
            if shown := self._metered.pass_on(chunk) if chunk else self._metered.rest():
                return shown
        return b""


def _charged(outcome: Outcome) -> tuple[bytes, bytes]:
    """Return what is known about the money of a failed call. "false" is then the seller's own word."""
    incoming = outcome.incoming
    if outcome.kind == "free":
        return CHARGED_NO
    if outcome.claim is not None and outcome.claim.spent:
        return _CHARGED_BEFORE
    return CHARGED_NO if incoming and incoming.headers.get("x-farebox-charged") == "false" else CHARGED_UNKNOWN


def _purchase_headers(claim: Claim | None) -> Headers:
    """By usage, the price is the most that the call can cost."""
    if claim is None:
        return []
    return [
        (b"x-farebox-purchase", claim.purchase.name.encode()),
        (b"x-farebox-model", _quoted(claim.purchase.model)),
        (b"x-farebox-price-atomic", b"%d" % claim.authorization.value_atomic),
        (b"x-farebox-receipt", claim.receipt_id.encode()),
    ]


@lru_cache(_MODELS_CACHED)
def _quoted(model: str) -> bytes:
    return quote(model, safe=_HEADER_SAFE).encode()


def _receipt_headers(outcome: Outcome) -> Headers:
    headers = _purchase_headers(outcome.claim)
    if outcome.receipt is not None and outcome.claim is not None:
        # Written anew from what was read in it: a seller's own bytes do not get through.
        name = PAYMENT_RESPONSE if outcome.claim.purchase.x402_version == 2 else X_PAYMENT_RESPONSE
        headers.append((name.lower().encode(), encode_header(outcome.receipt).encode()))
    if (charged_atomic := _charged_in_head(outcome)) is not None:
        headers.append((b"x-farebox-charged-atomic", b"%d" % charged_atomic))
    if transaction := _transaction(outcome.receipt):
        headers.append((b"x-farebox-transaction", transaction.encode()))
    return headers


def _charged_in_head(outcome: Outcome) -> int | None:
    """Return what a seller by usage says in its receipt that it charged; it was checked against the signature there."""
    claim, receipt = outcome.claim, outcome.receipt
    if claim is None or receipt is None or receipt.amount is None or not sold_by_usage(claim.purchase):
        return None
    return int(receipt.amount)


def _receipt_comment(outcome: Outcome, last_chunk: bytes, charged_atomic: int | None) -> bytes:
    """Return the receipt as a comment of the event stream, which clients that do not look for it skip."""
    claim = outcome.claim
    if claim is None:
        return b""
    told = {
        "receipt": claim.receipt_id,
        "purchase": claim.purchase.name,
        "price_atomic": str(claim.authorization.value_atomic),
    }
    if charged_atomic is not None:
        told["charged_atomic"] = str(charged_atomic)
    if transaction := _transaction(outcome.receipt):
        told["transaction"] = transaction
    separator = b"" if last_chunk.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
    return separator + b": farebox " + msgspec.json.encode(told) + b"\n\n"


def _transaction(receipt: SettlementResponse | None) -> str | None:
    """Return the transaction hash in a receipt, if it is one: a seller's words do not go into a header unread."""
    text = receipt.transaction if receipt is not None else ""
    return text if 0 < len(text) <= 128 and text.isascii() and text.isalnum() else None

"""The payment middleware: pure ASGI, in front of any application.

Whatever is not listed in the price book is refused, whatever is free passes untouched, and whatever has a price runs
only for a payment that is verified and durably reserved.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from contracts.errors import FareboxError
from contracts.stream_receipts import STREAM_RECEIPT
from contracts.tiers import QUEUE_STATUS_PATH
from seller.answers import NOT_CHARGED, Answer
from seller.body import BodyBudget, BodyReader, Busy, ClientGone, model_of
from seller.bounds import BoundedRequest, bound_request
from seller.claims import Replay
from seller.config import SellerConfig, read_config
from seller.hygiene import for_application, has_overrides, without_overrides, without_payment_headers
from seller.metering import Meter
from seller.payers import TooManyStrangers
from seller.pricebook import Quote, Route
from seller.replay import send_replay
from seller.responder import Responder
from seller.service import Seller
from seller.tiered import asked_now, in_its_turn, meant_by, queue_answer, telling, tier_paid
from seller.usage import DIALECTS
from seller.verify import payment_in
from seller.watch import ClientWatch

__all__ = ["PaymentMiddleware"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

_log = logging.getLogger("farebox.seller")

_POLICY_VIOLATION = 1008
_STREAM_RECEIPT = STREAM_RECEIPT.encode()
_OF_ANOTHER_BODY = (b"content-length", b"content-type", b"content-encoding", b"accept-encoding")


class PaymentMiddleware:
    """Sells the routes of `app` that a `seller.yaml` lists.

    `app.add_middleware(PaymentMiddleware, config="seller.yaml")`, or without `config` where a server takes only a class
    (vLLM's `--middleware seller.PaymentMiddleware`); then `FAREBOX_SELLER_CONFIG` names the file. Construction raises
    `ConfigInvalid` for settings that do not hold.

    With a `chain` settler the middleware opens no gas key: run `farebox settle` beside it. With a `facilitator` it
    settles itself.
    """

    def __init__(
        self, app: App, config: SellerConfig | Path | str | None = None, *, seller: Seller | None = None
    ) -> None:
        self.app = app
        self.seller = seller or Seller(read_config(config))
        self.bodies = BodyBudget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            # A websocket cannot be asked for payment; closing it before it is accepted answers 403.
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})

    async def close(self) -> None:
        """Close the seller's parts, where no lifespan does it."""
        await self.seller.close()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_open() -> Any:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.seller.open()
            return message

        async def close_and_send(message: Any) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.seller.close()
            await send(message)

        await self.app(scope, receive_and_open, close_and_send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.seller.book.find(scope)
        if route is None:
            await self._unlisted_answer(scope).send(send, head=scope["method"] == "HEAD")
        elif route.free:
            await self._free(scope, receive, send)
        else:
            await self._priced(route, scope, receive, send)

    async def _free(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_payment(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", [])]
                message = {**message, "headers": without_payment_headers(headers)}
            await send(message)

        if has_overrides(scope["headers"]):
            scope = {**scope, "headers": without_overrides(list(scope["headers"]))}
        await self.app(scope, receive, send_without_payment)

    def _unlisted_answer(self, scope: Scope) -> Answer:
        """Return what a seller says where nothing is listed: how long its queue is, if it has one, or 404."""
        admission = self.seller.admission
        if admission is not None and (scope["method"], scope["path"]) == ("GET", QUEUE_STATUS_PATH):
            return queue_answer(admission)
        return self._not_listed(scope)

    def _not_listed(self, scope: Scope) -> Answer:
        book, path = self.seller.book, scope["path"]
        exact = scope.get("raw_path") is None or scope["raw_path"].partition(b"?")[0] == path.encode(errors="replace")
        return self.seller.answers.not_listed(scope["method"], path, methods=book.methods(path) if exact else [])

    async def _priced(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        reader = BodyReader(self.bodies)
        try:
            await self._read_and_serve(reader, route, scope, receive, send)
        finally:
            reader.close()

    async def _read_and_serve(
        self, reader: BodyReader, route: Route, scope: Scope, receive: Receive, send: Send
    ) -> None:
        listed: Quote | None = None
        headers, admission = scope["headers"], self.seller.admission
        if admission is not None:
            send = telling(send, admission)
        try:
            # HEAD yields no goods, so a payment that comes with it is left alone.
            payment = None if scope["method"] == "HEAD" else payment_in(headers)
            body = await reader.read(receive, headers) if payment or route.reads_body else b""
            quote = route.quote_for(model_of(headers, body) if route.by_model else None)
            listed = quote
            if admission is not None:
                listed = asked_now(quote, admission)
                quote = listed if payment is None else meant_by(payment, quote, admission)
            bounded = _bounded(quote, body) if payment or body else None
            if payment is None:
                self.seller.metrics.served(route.match, "unpaid")
                await self.seller.answers.unpaid(quote).send(send, head=scope["method"] == "HEAD")
                return
            if admission is not None:
                admission.check(tier_paid(quote.offer))
            claim = await self.seller.claim(payment, quote, _digest(scope, body))
        except ClientGone:
            return
        except FareboxError as error:
            await self._refuse(error, route, listed, send)
            return
        if isinstance(claim, Replay):
            await self._replay(claim, route, quote, send)
            return
        inner = _inner_scope(scope, bounded)
        async with ClientWatch(receive, body if bounded is None else bounded.body) as watch:
            meter = _meter(quote, bounded)
            tells_charge = meter is not None and any(
                name == _STREAM_RECEIPT and value == b"1" for name, value in headers
            )
            responder = Responder(self.seller, claim, quote, send, watch, meter=meter, tells_charge=tells_charge)

            def application(receive: Receive, guarded: Send) -> Awaitable[None]:
                return self.app(inner, receive, guarded)

            if admission is None:
                await responder.run(application)
            else:
                await in_its_turn(admission, claim, responder, watch, application)

    async def _replay(self, replay: Replay, route: Route, quote: Quote, send: Send) -> None:
        try:
            await send_replay(self.seller.ledger, replay, quote.path, send)
        except FareboxError as error:
            await self._refuse(error, route, quote, send)
            return
        self.seller.metrics.served(route.match, "replayed")

    async def _refuse(self, error: FareboxError, route: Route, quote: Quote | None, send: Send) -> None:
        self.seller.metrics.refused(route.match, error.code)
        if error.http_status >= 500:
            _log.warning("%s: %s: %s (%s)", route.match, error.code, error.message, error.advice)
        path = route.match.partition(" ")[2]
        extra = [NOT_CHARGED] if isinstance(error, (Busy, TooManyStrangers)) else None
        await self.seller.answers.refused(error, path, quote, extra=extra).send(send)


def _bounded(quote: Quote, body: bytes) -> BoundedRequest | None:
    """Return what goes on to a model that is sold by usage. Raises `AboveCeiling` or `MalformedMessage` (400)."""
    return None if quote.usage is None else bound_request(body, DIALECTS[quote.path], quote.usage)


def _meter(quote: Quote, bounded: BoundedRequest | None) -> Meter | None:
    if quote.usage is None or bounded is None:
        return None
    return Meter(DIALECTS[quote.path], quote.usage, bounded)


def _inner_scope(scope: Scope, bounded: BoundedRequest | None) -> Scope:
    """Return the scope the application sees: without the payment, and without shortcuts round our `send`."""
    extensions = {
        name: value for name, value in (scope.get("extensions") or {}).items() if not name.startswith("http.response.")
    }
    headers = for_application(scope["headers"])
    if bounded is not None:
        # The body is written anew, as JSON, whatever it was called; an answer that is compressed shows no usage.
        headers = [header for header in headers if header[0] not in _OF_ANOTHER_BODY]
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(bounded.body))]
    return {**scope, "headers": headers, "extensions": extensions}


def _digest(scope: Scope, body: bytes) -> bytes:
    """Return what makes two requests the same one: method, path, query and body."""
    parts = (
        scope["method"].encode(), scope["path"].encode(), scope.get("query_string", b""), hashlib.sha256(body).digest()
    )  # fmt: skip
    return hashlib.sha256(b"".join([len(part).to_bytes(8, "big") + part for part in parts])).digest()

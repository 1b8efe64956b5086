"""What the seller says in its own name: 402 with offers, refusals, and failures.

A 402 speaks to three readers at once: x402 v2 clients read the `PAYMENT-REQUIRED` header, v1 clients the body's
`x402Version` and `accepts`, and OpenAI (or Anthropic) clients show `error.message` to a person. The answer to an
unpaid request never changes, so its bytes are made once per price.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from contracts.errors import (
    FareboxError,
    MalformedMessage,
    NameUnknown,
    PaymentRefused,
    SettlementUnavailable,
    UpstreamFailed,
)
from contracts.headers import PAYMENT_REQUIRED, encode_header
from contracts.money import format_amount
from contracts.offers import requirements, requirements_v1
from contracts.wire import PaymentRequired, ResourceInfo
from seller.body import Busy
from seller.pricebook import PriceBook, Quote

__all__ = [
    "NOT_CHARGED",
    "Answer",
    "Answers",
    "error_document",
    "failure_answer",
    "json_answer",
    "price_text",
]

RawHeaders = list[tuple[bytes, bytes]]

NOT_CHARGED = (b"x-farebox-charged", b"false")

_MIME = "application/json"
_DESCRIPTION = "one call"
_VARY = b"PAYMENT-SIGNATURE, X-PAYMENT"
# Clients of model APIs want an error object, v1 of x402 wants text. Elsewhere nobody wants the object.
_MODEL_API_PREFIX = "/v1/"
_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    402: "billing_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI_TYPES = {402: "payment_required", 429: "rate_limit_error"}
# Statuses that carry our offers: 412 says that the payer's approval is missing, not another payment.
_OFFERING = (402, 412)
# Ours to fix, whatever the error's own status: a client that pays again would pay for our failure.
_OUR_FAILURE_STATUS = 503
_OUR_FAILURE_RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer. `headers` are lower-case ASGI pairs."""

    status: int
    headers: RawHeaders
    body: bytes

    async def send(self, send: Any, *, head: bool = False) -> None:
        """Send it over ASGI; without the body to a HEAD request."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"" if head else self.body})


class Answers:
    """Makes the answers of one seller."""

    def __init__(self, book: PriceBook, base_url: str) -> None:
        self._base_url = base_url
        self._unpaid: dict[tuple[str, str | None, int], Answer] = {}
        for listed in (quote for route in book.routes for quote in route.quotes):
            for quote in listed.steps or (listed,):
                line = _price_line(quote, base_url)
                answer = self._payment_answer(quote, line, "payment_required", "Payment required", [])
                self._unpaid[quote.route, quote.model, quote.step] = answer

    def unpaid(self, quote: Quote) -> Answer:
        """Return the 402 for a request that carries no payment."""
        return self._unpaid[quote.route, quote.model, quote.step]

    def refused(
        self, error: FareboxError, path: str, quote: Quote | None, *, extra: RawHeaders | None = None
    ) -> Answer:
        """Return the answer to `error`: 402 with fresh offers for a refused payment, else its own status.

        A failure of ours is 503 with `Retry-After`, never 402.
        """
        if isinstance(error, PaymentRefused) and error.http_status in _OFFERING and quote is not None:
            answer = self._payment_answer(quote, _sentence(error), error.code, error.x402_reason, extra or [])
            return replace(answer, status=error.http_status)
        return failure_answer(error, path, extra)

    def not_listed(self, method: str, path: str, *, methods: list[str]) -> Answer:
        """Return the 404 for what is not listed, or the 405 where another method is."""
        if methods and method == "OPTIONS":
            # Also the answer to a browser's preflight: it names no origin, so no foreign page may read anything.
            return Answer(
                204, [(b"allow", ", ".join([*methods, "OPTIONS"]).encode()), (b"cache-control", b"no-store")], b""
            )
        if methods:
            message = f"{path} takes {', '.join(methods)}, not {method}"
            document = error_document(path, 405, "method_not_allowed", message)
            return json_answer(405, msgspec.json.encode(document), [(b"allow", ", ".join(methods).encode())])
        message = f"{method} {path[:120]} is not offered here"
        return json_answer(404, msgspec.json.encode(error_document(path, 404, "not_found", message)), [])

    def _payment_answer(self, quote: Quote, message: str, code: str, reason: str, extra: RawHeaders) -> Answer:
        resource = ResourceInfo(url=self._base_url + quote.path, description=_DESCRIPTION, mime_type=_MIME)
        accepts = [requirements(offer) for offer in quote.offers]
        header = PaymentRequired(
            x402_version=2, error=reason, resource=resource, accepts=accepts, extensions=quote.extensions or None
        )
        document: dict[str, Any] = {"x402Version": 2, "accepts": accepts, "resource": resource}
        legacies = [requirements_v1(offer, resource.url, _DESCRIPTION, _MIME) for offer in quote.offers]
        legacy = next((each for each in legacies if each is not None), None)
        if legacy is not None:
            # v2 clients take the header first, so the body may speak to v1 clients, which read nothing else.
            document |= {"x402Version": 1, "accepts": [legacy]}
        document |= error_document(quote.path, 402, code, message)
        if legacy is not None and not quote.path.startswith(_MODEL_API_PREFIX):
            document["error"] = message
        headers = [(PAYMENT_REQUIRED.lower().encode(), encode_header(header).encode()), (b"vary", _VARY), *extra]
        return json_answer(402, msgspec.json.encode(document), headers)


def failure_answer(error: FareboxError, path: str, extra: RawHeaders | None = None) -> Answer:
    """Return the answer to an error that asks for no payment, in the envelope that clients of `path` read."""
    status, retry_after_s = error.http_status, error.retry_after_s
    theirs = isinstance(error, (PaymentRefused, MalformedMessage, NameUnknown, UpstreamFailed))
    sentence = _sentence(error)
    if not theirs and (status >= 500 or status == 402):
        status, retry_after_s = _OUR_FAILURE_STATUS, retry_after_s or _OUR_FAILURE_RETRY_AFTER_S
        sentence = _our_failure(error)
    headers = list(extra or [])
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    return json_answer(status, msgspec.json.encode(error_document(path, status, error.code, sentence)), headers)


def json_answer(status: int, body: bytes, headers: RawHeaders) -> Answer:
    """Return a JSON document as an answer that nobody caches."""
    fixed = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    return Answer(status, fixed + headers, body)


def error_document(path: str, status: int, code: str, message: str) -> dict[str, Any]:
    """Return an error as clients of `path` read it: OpenAI's envelope, or Anthropic's on its route."""
    if path == _ANTHROPIC_PATH:
        kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message, "code": code}}
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def price_text(quote: Quote) -> str:
    """Return a price as a person reads it: `0.001 USDC`, or the most of it and what tokens cost."""
    offer, usage = quote.offer, quote.usage
    amount = format_amount(offer.amount_atomic, offer.asset)
    if usage is None:
        return amount
    parts = {
        "a call": usage.per_call_atomic,
        "a million input tokens": usage.per_million_input_atomic,
        "a million output tokens": usage.per_million_output_atomic,
    }
    listed = [f"{format_amount(atomic, offer.asset, symbol=False)} {what}" for what, atomic in parts.items() if atomic]
    return f"up to {amount} ({', '.join(listed)})"


def _price_line(quote: Quote, base_url: str) -> str:
    offer = quote.offer
    price = price_text(quote)
    others = [f"{price_text(tier)} {name}" for name, tier in list(quote.tiers.items())[1:]]
    if others:
        price += f" ({', '.join(others)})"
    number = format_amount(offer.amount_atomic, offer.asset, symbol=False)
    return (
        f"{price} on {offer.network.label} for one call. Pay with any x402 client, or sign ahead for many: "
        f"farebox buy NAME --endpoint {base_url} --model {quote.model or 'MODEL'} --count 100 --max-price {number}"
    )


def _our_failure(error: FareboxError) -> str:
    """Say what a client may know: hosts, files and accounts of ours are for the log."""
    told = isinstance(error, SettlementUnavailable | Busy)
    message = error.message if told else "payments cannot be taken now"
    advice = error.advice
    if not isinstance(error, Busy) and advice == type(error).remedy:
        advice = "send the same request with the same payment again in a moment; it is not charged twice"
    return f"{message}. To do: {advice}"


def _sentence(error: FareboxError) -> str:
    return f"{error.message}. To do: {error.advice}" if error.advice else error.message

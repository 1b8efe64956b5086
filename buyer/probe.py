"""Probe: ask without paying, and read what the seller wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from buyer.asked import PaymentAsked, read_payment_asked
from buyer.endpoint import origin_of
from buyer.flow import Incoming, Lost, NeverLeft, Outgoing
from buyer.http import open_client, send
from buyer.limits import PROBE_TIMEOUT_S
from contracts.errors import MalformedMessage, NotForSale, SellerUnreachable
from contracts.limits import BODY_402_BYTES_MAX
from contracts.routes import INFERENCE_PATHS
from contracts.wire import decode_json

__all__ = ["Probe", "probe_base", "probe_request", "probe_url"]

# Answers with which a server says that a route is not there.
_NO_SUCH_ROUTE = (404, 405)


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer of a seller: `asked` at `url`, requested by `method`."""

    method: str
    url: str
    asked: PaymentAsked


def probe_url(url: str, model: str | None = None) -> Probe:
    """Ask at a base URL, a `/v1` URL or an inference route by POST, and at any other URL by GET.

    Raises `SellerUnreachable` for a dead endpoint, `NotForSale` for a free one, `MalformedMessage` for nonsense.
    """
    path = urlsplit(url).path.rstrip("/")
    if path in ("", "/v1") or path.endswith("/v1"):
        return probe_base(url.rstrip("/").removesuffix("/v1"), model)
    if path.endswith(INFERENCE_PATHS):
        return probe_request(_inference_request(url, model))
    return probe_request(Outgoing("GET", url))


def probe_base(endpoint: str, model: str | None = None) -> Probe:
    """Ask at the inference routes below a base URL, until one of them is there. Raises as `probe_url`."""
    missing: list[str] = []
    for path in INFERENCE_PATHS:
        try:
            return probe_request(_inference_request(endpoint + path, model))
        except _RouteMissing as error:
            missing.append(str(error))
    hint = "name a model it sells with --model" if model is None else "check the URL and --model"
    raise NotForSale(f"{origin_of(endpoint)}: no inference route is sold ({'; '.join(missing)})", remedy=hint)


def probe_request(request: Outgoing) -> Probe:
    """Send one unpaid request and read the 402. Raises as `probe_url`."""
    incoming = _send(request)
    origin = origin_of(request.url)
    if incoming.status == 402:
        try:
            return Probe(request.method, request.url, read_payment_asked(incoming.headers, incoming.body))
        except MalformedMessage as error:
            raise MalformedMessage(f"{origin}: {error.message}", remedy="the seller must correct its 402") from None
    if 300 <= incoming.status < 400:
        target = _printable(incoming.headers.get("location") or "nowhere")
        raise NotForSale(
            f"{origin}: answers with a redirect to {target}, which is not followed",
            remedy="name the final URL yourself",
        )
    if incoming.status in _NO_SUCH_ROUTE and request.method == "POST":
        raise _RouteMissing(f"{incoming.status} at {urlsplit(request.url).path}{_error_message(incoming)}")
    if 200 <= incoming.status < 300:
        raise NotForSale(f"{origin}: answers {incoming.status} without asking for payment: it is free")
    if incoming.status >= 500:
        raise SellerUnreachable(f"{origin}: answers {incoming.status}{_error_message(incoming)}")
    raise NotForSale(f"{origin}: answers {incoming.status} instead of asking for payment{_error_message(incoming)}")


class _RouteMissing(NotForSale):
    """This route is not there; another one of the same server may be."""


def _send(request: Outgoing) -> Incoming:
    origin = origin_of(request.url)
    try:
        with open_client(PROBE_TIMEOUT_S) as client:
            # The header wins over the body, so a body that is too long to read is only a problem without it.
            return send(client, request, BODY_402_BYTES_MAX, strict=False)
    except NeverLeft as problem:
        raise SellerUnreachable(f"{origin}: no connection ({problem})") from None
    except Lost as problem:
        raise SellerUnreachable(f"{origin}: no answer ({problem})") from None


def _inference_request(url: str, model: str | None) -> Outgoing:
    """Return the smallest request that is well formed for each of the inference routes."""
    body = {
        "model": model or "default",
        "messages": [{"role": "user", "content": "."}],
        "input": ".",
        "prompt": ".",
        "max_tokens": 1,
    }
    wanted = ["model"]
    path = urlsplit(url).path
    if path.endswith(("/chat/completions", "/messages")):
        wanted += ["messages", "max_tokens"]
    elif path.endswith(("/embeddings", "/responses")):
        wanted += ["input"]
    else:
        wanted += ["prompt", "max_tokens"]
    content = msgspec.json.encode({name: body[name] for name in wanted})
    return Outgoing("POST", url, [("content-type", "application/json")], content)


def _error_message(incoming: Incoming) -> str:
    """Return the text of an OpenAI-shaped error, shortened and made printable."""
    try:
        message = decode_json(incoming.body, dict[str, Any], "body")["error"]["message"]
    except (MalformedMessage, TypeError, KeyError):
        return ""
    return f": {_printable(str(message))}"


def _printable(text: str) -> str:
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in text[:160])

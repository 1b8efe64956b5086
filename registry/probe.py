"""Probing: one unpaid request to an endpoint that a registration names, and what its 402 asks. Never pays.

Sources: x402 specification (402 with `PAYMENT-REQUIRED`, or version 1 in the body), OpenAI API (smallest requests).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from urllib.parse import urlsplit

import msgspec

from contracts.asked import read_asked
from contracts.errors import FareboxError, NotForSale
from contracts.limits import BODY_402_BYTES_MAX
from contracts.offers import Offer, offer_from_wire
from contracts.routes import INFERENCE_PATHS
from registry.card import Card, host_of
from registry.documents import read_json
from registry.fetch import Answer, Fetcher, Unfetched
from registry.limits import MODELS_BYTES_MAX, MODELS_MAX, PROBE_ENDPOINTS_MAX, PROBE_TIMEOUT_S, WORD_CHARS_MAX
from registry.text import clean

__all__ = ["Probe", "cheapest", "endpoints_of", "probe", "read_models", "read_probe"]

# Names of services are free; these speak protocols of their own, or none at all.
_NOT_PROBED = ("mcp", "a2a", "oasf", "ens", "did", "email")
# And these promise most, in this order.
_FIRST = ("x402", "openai", "inference", "llm", "api")
_NO_SUCH_ROUTE = (404, 405)
_BODY = msgspec.json.encode(
    {"model": "default", "messages": [{"role": "user", "content": "."}], "input": ".", "prompt": ".", "max_tokens": 1}
)


@dataclass(frozen=True, slots=True)
class Probe:
    """What an endpoint did when it was asked without payment.

    `state`: `payable` (a 402 with at least one offer that can be read), `unreadable` (a 402 without one), `free`,
    `refused` (any other answer), `dead` (no answer). `url` is the route that answered, `offers` what it asks there.
    `models` are what an inference endpoint lists, which is somebody else's text.
    """

    endpoint: str
    url: str
    state: str
    offers: tuple[Offer, ...] = ()
    status: int | None = None
    latency_ms: int | None = None
    error: str | None = None
    models: tuple[str, ...] = ()


def endpoints_of(card: Card) -> tuple[str, ...]:
    """Return the endpoints of a card that may be for sale over HTTP, those that say so first."""
    named = [
        (_FIRST.index(name) if name in _FIRST else len(_FIRST), service.endpoint)
        for service in card.services
        if (name := service.name.lower()) not in _NOT_PROBED and host_of(service.endpoint) is not None
    ]
    in_order = (endpoint for _, endpoint in sorted(named, key=lambda pair: pair[0]))
    return tuple(dict.fromkeys(in_order))[:PROBE_ENDPOINTS_MAX]


async def probe(endpoint: str, fetcher: Fetcher, model: str | None = None) -> Probe:
    """Ask `endpoint` without paying, or where it is a base URL the inference routes below it until one is there."""
    base = _base_of(endpoint)
    models: tuple[str, ...] = ()
    try:
        if base is None:
            return read_probe(endpoint, await _unpaid(endpoint, fetcher, model))
        listing = await fetcher.ask("GET", base + "/v1/models", body_max=MODELS_BYTES_MAX)
        models = read_models(listing)
        wanted = model or (models[0] if models else None)
        for path in INFERENCE_PATHS:
            answer = await _unpaid(base + path, fetcher, wanted)
            if answer.status not in _NO_SUCH_ROUTE:
                break
        else:
            answer = await _unpaid(endpoint, fetcher, wanted)
        return replace(read_probe(endpoint, answer), models=models)
    except Unfetched as problem:
        return Probe(endpoint, endpoint, "dead", error=problem.code, models=models)


def read_models(listing: Answer) -> tuple[str, ...]:
    """Return the model ids of an answer to `GET /v1/models`; none for anything else. Pure; never raises."""
    document, _ = read_json(listing.body, MODELS_BYTES_MAX) if listing.status == 200 else (None, ())
    listed = document.get("data") if isinstance(document, dict) else None
    ids = (entry.get("id") for entry in listed if isinstance(entry, dict)) if isinstance(listed, list) else ()
    # An id that cleaning would change could not be asked for as it stands.
    return tuple(name for name in ids if isinstance(name, str) and name and clean(name, WORD_CHARS_MAX) == name)[
        :MODELS_MAX
    ]


def read_probe(endpoint: str, answer: Answer) -> Probe:
    """Return what the answer to an unpaid request says. Pure; never raises."""
    status, latency_ms = answer.status, answer.latency_ms
    if status != 402:
        state = "free" if 200 <= status < 300 else "refused"
        return Probe(endpoint, answer.url, state, (), status, latency_ms, f"status_{status}")
    try:
        asked = read_asked(answer.headers, answer.body)
    except NotForSale:
        return Probe(endpoint, answer.url, "unreadable", (), status, latency_ms, "no_x402_terms")
    except FareboxError as error:
        return Probe(endpoint, answer.url, "unreadable", (), status, latency_ms, error.code)
    offers = []
    for index in range(len(asked.accepts)):
        try:
            offers.append(offer_from_wire(asked.requirements(index), field=asked.field(index)))
        except FareboxError:
            continue  # another chain family, or nonsense: the other offers stand
    if not offers:
        return Probe(endpoint, answer.url, "unreadable", (), status, latency_ms, "no_readable_offer")
    return Probe(endpoint, answer.url, "payable", tuple(offers), status, latency_ms)


def cheapest(offers: Iterable[Offer]) -> Offer | None:
    """Return the cheapest offer; tokens that are not dollars come last, since their price cannot be compared."""
    return min(
        offers,
        key=lambda offer: (not offer.asset.is_dollar, Fraction(offer.amount_atomic, 10**offer.asset.decimals)),
        default=None,
    )


def _base_of(endpoint: str) -> str | None:
    """Return the base URL below which inference routes are looked for, or None where the endpoint is a route itself."""
    try:
        path = urlsplit(endpoint).path.rstrip("/")
    except ValueError:
        return None
    if path and not path.endswith("/v1"):
        return None
    return endpoint.partition("?")[0].rstrip("/").removesuffix("/v1")


async def _unpaid(url: str, fetcher: Fetcher, model: str | None) -> Answer:
    """Ask for one thing without paying: an inference route by POST, anything else by GET. Raises `Unfetched`."""
    is_inference = url.partition("?")[0].rstrip("/").endswith(INFERENCE_PATHS)
    return await fetcher.ask(
        "POST" if is_inference else "GET",
        url,
        headers=[("content-type", "application/json")] if is_inference else [("accept", "*/*")],
        body=_body(model) if is_inference else b"",
        body_max=BODY_402_BYTES_MAX,
        timeout_s=PROBE_TIMEOUT_S,
    )


def _body(model: str | None) -> bytes:
    return _BODY if model is None else _BODY.replace(b'"default"', msgspec.json.encode(model))

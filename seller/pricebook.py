"""The price book: which request costs what. Pure: no I/O, no clock.

Decisions are taken on ASGI's `scope["path"]`, the path the application routes by, and only an exact match is known;
whatever is not listed is not sold and not given away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contracts.errors import MalformedMessage, NameUnknown
from contracts.money import Asset, parse_amount
from contracts.offers import Offer
from contracts.typed_data import Domain
from seller.config import RouteSettings, SellerConfig
from seller.limits import OFFER_TIMEOUT_S

__all__ = ["PriceBook", "Quote", "Route"]


@dataclass(frozen=True, slots=True)
class Quote:
    """One thing for sale at one price. `model` is None where the model does not decide the price."""

    route: str
    path: str
    model: str | None
    offer: Offer

    @property
    def price_atomic(self) -> int:
        """The price in atomic units of the offer's asset."""
        return self.offer.amount_atomic


@dataclass(frozen=True, slots=True)
class Route:
    """A listed method and path: free, at one price for all, or priced by model."""

    match: str
    free: bool
    quote: Quote | None
    by_model: dict[str, Quote]

    def quote_for(self, model: str | None) -> Quote:
        """Return the price for `model`. Raises `NameUnknown` (404) for a model that is not sold here."""
        found = self.by_model.get(model) if model is not None else None
        found = found or self.quote
        if found is not None:
            return found
        if model is None:
            raise MalformedMessage("model: is missing, and the price depends on it")
        raise NameUnknown(f"model: {model[:80]!r} is not sold here", remedy="GET /v1/models lists what is")

    @property
    def quotes(self) -> list[Quote]:
        """Every price of the route."""
        return ([self.quote] if self.quote else []) + list(self.by_model.values())


class PriceBook:
    """All routes of a seller."""

    def __init__(self, config: SellerConfig) -> None:
        asset = config.token
        self.domain = Domain(asset.name, asset.version, config.chain.chain_id, asset.address)
        self._routes: dict[tuple[str, str], Route] = {}
        self.routes: list[Route] = []
        for settings in config.routes:
            route = _route(settings, config)
            self.routes.append(route)
            self._routes[settings.method, settings.path] = route

    def find(self, scope: Mapping[str, Any]) -> Route | None:
        """Return the route of an ASGI `http` scope, or None where nothing is listed.

        HEAD is GET. A path that was spelled in any other form than the listed one (encoded letters, doubled slashes,
        dots) is not listed, so that no other router can read it as a listed one.
        """
        path: str = scope["path"]
        raw_path: bytes | None = scope.get("raw_path")
        if raw_path is not None and raw_path.partition(b"?")[0] != path.encode("utf-8", "surrogateescape"):
            return None
        method: str = scope["method"]
        return self._routes.get(("GET" if method == "HEAD" else method, path))

    def methods(self, path: str) -> list[str]:
        """Return the methods listed for `path`."""
        return [method for method, listed in self._routes if listed == path]


def _route(settings: RouteSettings, config: SellerConfig) -> Route:
    asset = config.token

    def quote(price: str, model: str | None) -> Quote:
        return Quote(settings.match, settings.path, model, _offer(price, asset, config))

    return Route(
        match=settings.match,
        free=settings.free,
        quote=quote(settings.price, None) if settings.price is not None else None,
        by_model={model: quote(price, model) for model, price in (settings.models or {}).items()},
    )


def _offer(price: str, asset: Asset, config: SellerConfig) -> Offer:
    return Offer(
        scheme="exact",
        network=config.chain,
        asset=asset,
        amount_atomic=parse_amount(price, asset, "price"),
        pay_to=config.payee,
        max_timeout_s=OFFER_TIMEOUT_S,
    )

"""The price book: which request costs what. Pure: no I/O, no clock.

Decisions are taken on ASGI's `scope["path"]`, the path the application routes by, and only an exact match is known;
whatever is not listed is not sold and not given away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Any

from contracts.address import Address, address_text
from contracts.errors import ConfigInvalid, MalformedMessage, NameUnknown
from contracts.offers import PERMIT2, Offer
from contracts.tiers import FULL_BP, NORMAL, TIERS
from contracts.typed_data import Domain
from seller.config import RouteSettings, SellerConfig
from seller.extensions import declared
from seller.limits import METERED_OFFER_TIMEOUT_S, OFFER_TIMEOUT_S
from seller.load_price import LoadPrice
from seller.price_settings import PriceSettings
from seller.pricing import UsagePrice
from seller.tier_settings import TierSettings

__all__ = ["PriceBook", "Quote", "Route"]


@dataclass(frozen=True, slots=True)
class Quote:
    """One thing for sale at one price. `model` is None where the model does not decide the price.

    `offers` are the ways to pay it, preferred first. Priced by `usage`, their amount is the ceiling of one call.

    Sold in service classes, it is the first of them, and `offers` has those of the others after its own; `tiers` has
    each for itself. Where the price moves with load, `steps` has it at every step, and it is itself the first.
    """

    route: str
    path: str
    model: str | None
    offers: tuple[Offer, ...]
    usage: UsagePrice | None = None
    extensions: dict[str, Any] = field(default_factory=dict, hash=False)
    tiers: Mapping[str, Quote] = field(default_factory=dict, hash=False)
    step: int = 0
    steps: tuple[Quote, ...] = field(default=(), hash=False)

    @property
    def offer(self) -> Offer:
        """The preferred way to pay."""
        return self.offers[0]

    @property
    def price_atomic(self) -> int:
        """The price in atomic units of the offer's asset; by usage, the most it can be."""
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
    def reads_body(self) -> bool:
        """Whether what a request says of itself decides what it costs."""
        return any(quote.model is not None or quote.usage is not None for quote in self.quotes)

    @property
    def quotes(self) -> list[Quote]:
        """Every price of the route."""
        return ([self.quote] if self.quote else []) + list(self.by_model.values())


class PriceBook:
    """All routes of a seller. What is sold by usage is settled by `facilitator`, whom the settings name else."""

    def __init__(self, config: SellerConfig, facilitator: Address | None = None) -> None:
        """Raises `ConfigInvalid` where prices by usage have nobody to settle them."""
        asset = config.token
        facilitator = facilitator or config.upto_facilitator
        if config.sells_by_usage and facilitator is None:
            raise ConfigInvalid(
                "upto.facilitator: prices by usage name the one account that settles them, and this process does not "
                "open the settler's key",
                remedy="write `upto: {facilitator: …}`, the settling account's address",
            )
        self.domain = Domain(asset.name, asset.version, config.chain.chain_id, asset.address)
        self._routes: dict[tuple[str, str], Route] = {}
        self.routes: list[Route] = []
        for settings in config.routes:
            route = _route(settings, config, facilitator)
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

    @property
    def offers(self) -> list[Offer]:
        """Every way to pay anything."""
        return [offer for route in self.routes for quote in route.quotes for offer in quote.offers]

    def methods(self, path: str) -> list[str]:
        """Return the methods listed for `path`."""
        return [method for method, listed in self._routes if listed == path]


def _route(settings: RouteSettings, config: SellerConfig, facilitator: Address | None) -> Route:
    def quote(price: PriceSettings, model: str | None) -> Quote:
        return _Listed(settings, config, facilitator, price, model).quote()

    return Route(
        match=settings.match,
        free=settings.free,
        quote=quote(settings.price, None) if settings.price is not None else None,
        by_model={model: quote(price, model) for model, price in (settings.models or {}).items()},
    )


@dataclass(frozen=True, slots=True)
class _Listed:
    """One line of the price list, from which its quotes are made: one for each step of load and each tier."""

    settings: RouteSettings
    config: SellerConfig
    facilitator: Address | None
    price: PriceSettings
    model: str | None

    def quote(self) -> Quote:
        capacity = self.config.capacity
        if capacity is None or capacity.load_price is None:
            return self._at_step(0, None)
        steps = tuple(self._at_step(step, bp) for step, bp in enumerate(LoadPrice(capacity.load_price).factors_bp))
        return replace(steps[0], steps=steps)

    def _at_step(self, step: int, load_bp: int | None) -> Quote:
        load = {} if load_bp is None else {"loadBp": load_bp}
        factor = Fraction(load_bp or FULL_BP, FULL_BP)
        tiers = {
            name: self._at(factor * Fraction(tier.price_bp, FULL_BP), {"tier": name, **load}, step)
            for name, tier in self._tiers()
        }
        if not tiers:
            return self._at(factor, load, step)
        first = next(iter(tiers.values()))
        return replace(first, offers=tuple(offer for each in tiers.values() for offer in each.offers), tiers=tiers)

    def _tiers(self) -> list[tuple[str, TierSettings]]:
        """Return the tiers, first what those get who ask for none: most clients pay the first offer they can."""
        stated = self.config.tiers or {}
        return [(name, stated[name]) for name in dict.fromkeys((NORMAL, *TIERS)) if name in stated]

    def _at(self, factor: Fraction, extra: dict[str, Any], step: int) -> Quote:
        config, path = self.config, self.settings.path
        usage = self.price.usage_price(config.token)
        if usage is None:
            amount_atomic = ceil(self.price.per_call_atomic(config.token) * factor)
            offers = tuple(_offer(config, amount_atomic, method, extra) for method in config.transfer_methods)
        else:
            assert self.facilitator is not None, "checked before"
            usage = usage.times(factor)
            offers = (_offer_by_usage(config, usage.ceiling_atomic, self.facilitator, extra),)
        # A facilitator is not told of token permits.
        extensions = declared(path, self.model, offers, sponsors=config.settler.kind == "chain")
        return Quote(self.settings.match, path, self.model, offers, usage, extensions, step=step)


def _offer(config: SellerConfig, amount_atomic: int, method: str, extra: dict[str, Any]) -> Offer:
    return Offer(
        scheme="exact",
        network=config.chain,
        asset=config.token,
        amount_atomic=amount_atomic,
        pay_to=config.payee,
        max_timeout_s=OFFER_TIMEOUT_S,
        method=method,
        extra=extra,
    )


def _offer_by_usage(config: SellerConfig, ceiling_atomic: int, facilitator: Address, extra: dict[str, Any]) -> Offer:
    return Offer(
        scheme="upto",
        network=config.chain,
        asset=config.token,
        amount_atomic=ceiling_atomic,
        pay_to=config.payee,
        max_timeout_s=METERED_OFFER_TIMEOUT_S,
        method=PERMIT2,
        extra={"facilitatorAddress": address_text(facilitator), **extra},
    )

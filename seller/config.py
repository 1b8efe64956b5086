"""`seller.yaml`: what is sold, for how much, to whom the money goes, and how it is settled.

Every mistake in it stops the start, with file, line and what was expected: a price that does not parse must never
become a price of nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import pydantic

from contracts.address import ZERO, Address, parse_address
from contracts.errors import ConfigInvalid, FareboxError
from contracts.host_port import parse_host_port
from contracts.money import Asset, parse_amount
from contracts.networks import Network, default_asset, parse_network
from contracts.offers import EIP3009, PERMIT2
from contracts.registration_settings import RegistrationSettings
from contracts.settings import SettingInvalid, StrictModel, load_settings
from contracts.storage import check_store_url, rooted_store_url
from seller.limits import FACILITATORS_MAX
from seller.price_settings import PriceSettings
from seller.tier_settings import CapacitySettings, TierSettings, check_tiers
from seller.usage import DIALECTS

__all__ = [
    "CONFIG_VARIABLE",
    "AssetSettings",
    "RouteSettings",
    "SellerConfig",
    "SettlerSettings",
    "WalletSettings",
    "asset_for",
    "read_config",
    "split_host_port",
]

CONFIG_VARIABLE = "FAREBOX_SELLER_CONFIG"

_MATCH = re.compile(r"(GET|POST|PUT|PATCH|DELETE) (/[A-Za-z0-9._~/-]*)", re.ASCII)
_HTTP_URL = re.compile(r"https?://[^/\s?#@]+(?:/[^\s?#]*)?", re.ASCII)


class AssetSettings(StrictModel):
    """A token that Farebox does not know: address, EIP-712 name and version, decimals, symbol.

    `permit` says that it has EIP-2612, by which a payer can approve Permit2 without a transaction.
    """

    address: str
    name: str
    version: str
    decimals: int = pydantic.Field(ge=0, le=36)
    symbol: str = pydantic.Field(min_length=1, max_length=12)
    permit: bool = False


class SettlerSettings(StrictModel):
    """Who puts payments on chain: our own gas key (`chain`), or a facilitator.

    `max_fee_wei` is the most that is offered for a unit of gas.
    """

    kind: Literal["chain", "facilitator"]
    key_file: str | None = None
    max_fee_wei: int | None = pydantic.Field(None, gt=0)
    url: str | list[str] | None = None

    @property
    def urls(self) -> list[str]:
        """The facilitators, in the order in which they are asked."""
        return [self.url] if isinstance(self.url, str) else list(self.url or [])

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Self:
        wanted, unwanted = ("key_file", "url") if self.kind == "chain" else ("url", "key_file")
        if getattr(self, wanted) is None:
            raise ValueError(f"kind {self.kind} needs `{wanted}`")
        if getattr(self, unwanted) is not None:
            raise SettingInvalid((unwanted,), f"kind {self.kind} takes no `{unwanted}`")
        if self.kind == "facilitator" and self.max_fee_wei is not None:
            raise SettingInvalid(("max_fee_wei",), "kind facilitator takes no `max_fee_wei`")
        if self.kind == "facilitator" and not 0 < len(self.urls) <= FACILITATORS_MAX:
            raise SettingInvalid(("url",), f"expected one facilitator, or a list of up to {FACILITATORS_MAX}")
        for url in self.urls:
            if not _HTTP_URL.fullmatch(url):
                raise SettingInvalid(("url",), "expected http:// or https:// and a host")
        return self


class ExposureSettings(StrictModel):
    """How much served but unsettled money is borne, per payer and in total, in the asset's units."""

    per_payer: str = "1.00"
    total: str = "100.00"


class RouteSettings(StrictModel):
    """One method and path. Priced by `price`, or by the request's `model`; given away only with `free: true`."""

    match: str
    price: PriceSettings | None = None
    models: dict[str, PriceSettings] | None = None
    free: bool = False

    @property
    def prices(self) -> dict[tuple[str, ...], PriceSettings]:
        """Every price of the route, by its place in the settings."""
        own: dict[tuple[str, ...], PriceSettings] = {("price",): self.price} if self.price is not None else {}
        return {**own, **{("models", model): price for model, price in (self.models or {}).items()}}

    @property
    def method(self) -> str:
        """The HTTP method, upper case."""
        return self.match.split(" ", 1)[0]

    @property
    def path(self) -> str:
        """The exact path, as ASGI's `scope["path"]` has it."""
        return self.match.split(" ", 1)[1]

    @pydantic.model_validator(mode="after")
    def _priced_or_free(self) -> Self:
        if not _MATCH.fullmatch(self.match) or "//" in self.match or "/." in self.match:
            raise SettingInvalid(("match",), 'expected a method and an exact path, as "POST /v1/chat/completions"')
        if self.models is not None and not self.models:
            raise SettingInvalid(("models",), "expected at least one model and its price")
        if self.free and (self.price is not None or self.models is not None):
            raise SettingInvalid(("free",), "a free route has no price")
        if not self.free and self.price is None and self.models is None:
            raise ValueError("needs a `price`, `models` with prices, or `free: true`")
        for location, price in self.prices.items():
            self._check_usage(location, price)
        return self

    def _check_usage(self, location: tuple[str, ...], price: PriceSettings) -> None:
        dialect = DIALECTS.get(self.path) if self.method == "POST" else None
        if price.by_usage and dialect is None:
            routes = ", ".join(DIALECTS)
            raise SettingInvalid(location, f"usage is only known of POST {routes}; set a price per call")
        if price.per_million_output_tokens is not None and dialect is not None and not dialect.output_fields:
            raise SettingInvalid((*location, "per_million_output_tokens"), f"{self.path} generates no tokens")


class WalletSettings(StrictModel):
    """Contract wallets: the factories that may deploy one that pays before it exists (ERC-6492). None by default."""

    erc6492_factories: list[str] = pydantic.Field(default_factory=list)

    @property
    def factories(self) -> frozenset[Address]:
        """The factories' addresses."""
        return frozenset(
            parse_address(text, f"wallets.erc6492_factories[{index}]")
            for index, text in enumerate(self.erc6492_factories)
        )


class UptoSettings(StrictModel):
    """Who settles prices by usage: the one account that a buyer's signature names."""

    facilitator: str | None = None


class SellerConfig(StrictModel):
    """All settings of a seller, checked against each other. `read_config` reads it from a file."""

    upstream: str | None = None
    listen: str = "127.0.0.1:8402"
    public_url: str | None = None
    network: str
    rpc: list[str] = pydantic.Field(default_factory=list)
    asset: AssetSettings | None = None
    pay_to: str
    settle: Literal["auto", "before", "after", "async"] = "auto"
    settler: SettlerSettings
    methods: list[Literal["eip3009", "permit2"]] | None = pydantic.Field(default=None, min_length=1)
    wallets: WalletSettings = WalletSettings()
    upto: UptoSettings = UptoSettings()
    exposure: ExposureSettings = ExposureSettings()
    capacity: CapacitySettings | None = None
    tiers: dict[str, TierSettings] | None = None
    store: str = "sqlite:///seller.db"
    routes: list[RouteSettings] = pydantic.Field(min_length=1)
    default: Literal["deny"] = "deny"
    registration: RegistrationSettings = RegistrationSettings()

    @property
    def chain(self) -> Network:
        """The network money moves on."""
        return parse_network(self.network)

    @property
    def token(self) -> Asset:
        """The asset prices are in: the one given, else the network's default."""
        return asset_for(self.chain, self.asset)

    @property
    def transfer_methods(self) -> tuple[str, ...]:
        """The ways in which a price per call is paid, preferred first."""
        if self.methods is None:
            return (EIP3009 if self.token.has_eip3009 else PERMIT2,)
        return tuple(dict.fromkeys(self.methods))

    @property
    def wallet_factories(self) -> frozenset[Address]:
        """The factories whose wallets may pay before they exist."""
        return self.wallets.factories

    @property
    def payee(self) -> Address:
        """The address that earns."""
        return parse_address(self.pay_to, "pay_to")

    @property
    def sells_by_usage(self) -> bool:
        """Whether any price depends on what a call uses."""
        return any(price.by_usage for route in self.routes for price in route.prices.values())

    @property
    def upto_facilitator(self) -> Address | None:
        """The account that settles prices by usage, where the settings name it."""
        stated = self.upto.facilitator
        return None if stated is None else parse_address(stated, "upto.facilitator")

    @property
    def base_url(self) -> str:
        """What buyers see as our address, without a trailing slash."""
        return (self.public_url or f"http://{self.listen}").rstrip("/")

    @property
    def exposure_atomic(self) -> tuple[int, int]:
        """The caps on unsettled money: (per payer, total)."""
        asset = self.token
        return (
            parse_amount(self.exposure.per_payer, asset, zero_allowed=True),
            parse_amount(self.exposure.total, asset, zero_allowed=True),
        )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_addresses()
        self._check_urls()
        check_tiers(self.tiers, self.capacity)
        asset = self.token
        for name in ("per_payer", "total"):
            _check_amount(getattr(self.exposure, name), asset, ("exposure", name), zero_allowed=True)
        if all(route.free for route in self.routes):
            raise SettingInvalid(("routes",), "no route has a price, so nothing is sold")
        seen: set[str] = set()
        for index, route in enumerate(self.routes):
            if route.match in seen:
                raise SettingInvalid(("routes", index, "match"), f"{route.match} is listed twice")
            seen.add(route.match)
            for location, price in route.prices.items():
                for name, text in price.amounts().items():
                    _check_amount(text, asset, ("routes", index, *location, *((name,) if price.by_usage else ())))
        self._check_upto()
        return self

    def _check_upto(self) -> None:
        if self.upto.facilitator is not None:
            _checked(("upto", "facilitator"), lambda: self.upto_facilitator)
        if not self.sells_by_usage:
            return
        if self.settle == "before":
            raise SettingInvalid(("settle",), "a price by usage is known only after the work; use auto, after or async")
        if self.settler.kind == "facilitator" and self.upto.facilitator is None:
            raise SettingInvalid(
                ("settler",),
                "prices by usage need `upto: {facilitator: …}`, the facilitatorAddress that its /supported states",
            )

    def _check_addresses(self) -> None:
        _checked(("network",), lambda: self.chain)
        _checked(("pay_to",), lambda: self.payee)
        _checked(("wallets", "erc6492_factories"), lambda: self.wallet_factories)
        _checked(("asset",) if self.asset is None else ("asset", "address"), lambda: self.token)
        if self.payee == ZERO:
            raise SettingInvalid(("pay_to",), "the zero address earns nothing")
        if self.payee == self.token.address:
            raise SettingInvalid(("pay_to",), "is the token itself; money sent there is lost")

    def _check_urls(self) -> None:
        for name in ("upstream", "public_url"):
            url = getattr(self, name)
            if url is not None and not _HTTP_URL.fullmatch(url):
                raise SettingInvalid((name,), "expected http(s):// and a host, without user, query or fragment")
        _checked(("listen",), lambda: split_host_port(self.listen, "listen"))
        for index, url in enumerate(self.rpc):
            if not url.startswith(("http://", "https://")):
                raise SettingInvalid(("rpc", index), "expected http:// or https:// and a host")
        if not self.rpc:
            # A facilitator's word alone earns nothing, and work before settlement wants to know the payer.
            raise SettingInvalid(("rpc",), "name an endpoint: a seller reads the chain, whoever settles")
        _checked(("store",), lambda: check_store_url(self.store))


def read_config(config: SellerConfig | Path | str | None = None) -> SellerConfig:
    """Return the settings given, or those in the file given, or in the file `FAREBOX_SELLER_CONFIG` names.

    In a file, a relative `store` and `settler.key_file` are relative to the file's folder. Raises `ConfigInvalid`.
    """
    if isinstance(config, SellerConfig):
        return config
    if config is None:
        config = os.environ.get(CONFIG_VARIABLE)
        if not config:
            raise ConfigInvalid(f"no seller configuration: pass config=…, or set {CONFIG_VARIABLE} to a seller.yaml")
    path = Path(config).expanduser()
    settings = load_settings(path, SellerConfig)
    folder = path.resolve().parent
    settler = settings.settler
    if settler.key_file is not None:
        settler = settler.model_copy(update={"key_file": str(folder / Path(settler.key_file).expanduser())})
    return settings.model_copy(update={"settler": settler, "store": rooted_store_url(settings.store, folder)})


def asset_for(network: Network, given: AssetSettings | None) -> Asset:
    """Return the asset given, else the default one of `network`. Raises `ConfigInvalid` where there is none."""
    if given is not None:
        address = parse_address(given.address, "asset.address")
        return Asset(address, given.name, given.version, given.decimals, given.symbol, has_permit=given.permit)
    known = default_asset(network)
    if known is None:
        raise ConfigInvalid(f"asset: none is known on {network.caip2}; name one")
    return known


def split_host_port(text: str, field: str) -> tuple[str, int]:
    """Return host and port of `127.0.0.1:8402`; port 0 lets the system choose. Raises `ConfigInvalid`."""
    try:
        return parse_host_port(text)
    except ValueError as error:
        raise ConfigInvalid(f"{field}: {error}") from None


def _check_amount(text: str, asset: Asset, location: tuple[str | int, ...], *, zero_allowed: bool = False) -> None:
    _checked(location, lambda: parse_amount(text, asset, "", zero_allowed=zero_allowed))


def _checked(location: tuple[str | int, ...], parse: Callable[[], object]) -> None:
    try:
        parse()
    except FareboxError as error:
        message = error.message.removeprefix(".".join(str(part) for part in location)).removeprefix(": ")
        raise SettingInvalid(location, message) from None

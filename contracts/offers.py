"""Offers: a seller's terms as integers and bytes, and their two wire spellings.

A seller builds offers from its price book; a buyer reads them from a 402. Both compare parsed values, never text, so
that the case of an address decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.address import Address, address_text
from contracts.errors import FareboxError, MalformedMessage, NoMatchingOffer
from contracts.fields import wire_address, wire_uint256
from contracts.money import Asset
from contracts.networks import Network, find_asset, parse_network
from contracts.typed_data import Domain
from contracts.wire import Requirements, RequirementsV1

__all__ = [
    "EIP3009",
    "PERMIT2",
    "Offer",
    "match_offer",
    "offer_from_wire",
    "requirements",
    "requirements_v1",
]

EIP3009 = "eip3009"
PERMIT2 = "permit2"

# What a 402 leaves unsaid: x402 tokens without a known entry are taken to have the decimals the user or seller states.
_DECIMALS_UNSTATED = 6


@dataclass(frozen=True, slots=True)
class Offer:
    """Terms of one payment: `amount_atomic` of `asset` on `network` to `pay_to`, by `scheme` and `method`.

    `extra` is what the 402 carried besides the domain; `max_timeout_s` is the longest the seller takes to answer.
    `domain` is the EIP-712 domain of the token, and `spelled` how we write the offer ourselves: read both, change none.
    """

    scheme: str
    network: Network
    asset: Asset
    amount_atomic: int
    pay_to: Address
    max_timeout_s: int
    method: str = EIP3009
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    domain: Domain = field(init=False, repr=False, compare=False)
    spelled: Requirements = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        asset = self.asset
        domain = Domain(asset.name, asset.version, self.network.chain_id, asset.address)
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "spelled", requirements(self))


def requirements(offer: Offer) -> Requirements:
    """Return the v2 spelling of `offer`, as it stands in `accepts`."""
    return Requirements(
        scheme=offer.scheme,
        network=offer.network.caip2,
        amount=str(offer.amount_atomic),
        asset=address_text(offer.asset.address),
        pay_to=address_text(offer.pay_to),
        max_timeout_seconds=offer.max_timeout_s,
        extra=_extra(offer),
    )


def _extra(offer: Offer) -> dict[str, Any]:
    asset = offer.asset
    # A seller of a token that only Permit2 moves need not state the token's domain.
    domain = {"name": asset.name, "version": asset.version} if asset.name or offer.method == EIP3009 else {}
    method = {} if offer.method == EIP3009 else {"assetTransferMethod": offer.method}
    return domain | method | offer.extra


def requirements_v1(offer: Offer, resource_url: str, description: str, mime_type: str) -> RequirementsV1 | None:
    """Return the v1 spelling, or None where v1 has no name for the network or no such transfer method."""
    if offer.method != EIP3009 or offer.network.legacy_name is None:
        return None
    return RequirementsV1(
        scheme=offer.scheme,
        network=offer.network.legacy_name,
        max_amount_required=str(offer.amount_atomic),
        resource=resource_url,
        description=description,
        mime_type=mime_type,
        pay_to=address_text(offer.pay_to),
        max_timeout_seconds=offer.max_timeout_s,
        asset=address_text(offer.asset.address),
        extra={"name": offer.asset.name, "version": offer.asset.version},
    )


def offer_from_wire(
    terms: Requirements | RequirementsV1, *, field: str = "accepts[0]", decimals: int | None = None
) -> Offer:
    """Return the offer a 402 states.

    Name, version and decimals of a known token come from Farebox's own table; else from `extra` and `decimals`
    (6 when unstated, which `farebox buy` checks on chain before it signs). Raises `MalformedMessage` or `UsageError`
    naming `field` for other chain families and for anything that does not parse.
    """
    amount_text = terms.amount if isinstance(terms, Requirements) else terms.max_amount_required
    network = parse_network(terms.network, f"{field}.network")
    address = wire_address(terms.asset, f"{field}.asset")
    extra = dict(terms.extra or {})
    stated_name, stated_version = extra.pop("name", None), extra.pop("version", None)
    # `upto` exists over Permit2 only, whether the offer says so or not.
    method = extra.pop("assetTransferMethod", PERMIT2 if terms.scheme == "upto" else EIP3009)
    if not isinstance(method, str):
        raise MalformedMessage(f"{field}.extra.assetTransferMethod: expected text")
    asset = find_asset(network, address)
    if asset is None:
        if method == PERMIT2 and stated_name is None and stated_version is None:
            stated_name = stated_version = ""
        if not isinstance(stated_name, str) or not isinstance(stated_version, str):
            raise MalformedMessage(f"{field}.extra: the token is not a known one and carries no name and version")
        shown_decimals = _DECIMALS_UNSTATED if decimals is None else decimals
        asset = Asset(address, stated_name, stated_version, shown_decimals, _symbol(stated_name))
    if not 0 < terms.max_timeout_seconds <= 10**9:
        raise MalformedMessage(f"{field}.maxTimeoutSeconds: expected a positive number of seconds")
    return Offer(
        scheme=terms.scheme,
        network=network,
        asset=asset,
        amount_atomic=wire_uint256(amount_text, f"{field}.amount"),
        pay_to=wire_address(terms.pay_to, f"{field}.payTo"),
        max_timeout_s=terms.max_timeout_seconds,
        method=method,
        extra=extra,
    )


def match_offer(accepted: Requirements, offers: Sequence[Offer]) -> Offer:
    """Return ours of `offers` that the payment's echo means.

    Scheme, network, asset, payee, amount, method and token domain must all be equal as values; the terms used from
    here on are ours, never the echo. Raises `NoMatchingOffer` naming the field in which the nearest offer differs.
    """
    # Clients echo our own words, and those need no reading.
    for offer in offers:
        if accepted == offer.spelled:
            return offer
    try:
        echo = offer_from_wire(accepted, field="accepted")
    except FareboxError as error:
        raise NoMatchingOffer(error.message) from None
    nearest = "none of the offers is of this scheme, network and asset"
    for offer in offers:
        differing = _first_difference(echo, offer)
        if differing is None:
            return offer
        nearest = differing if differing not in ("scheme", "network", "asset") else nearest
    raise NoMatchingOffer(f"accepted: {nearest} does not equal ours" if " " not in nearest else f"accepted: {nearest}")


def _first_difference(echo: Offer, offer: Offer) -> str | None:
    if echo.scheme != offer.scheme:
        return "scheme"
    if echo.network != offer.network:
        return "network"
    if echo.asset.address != offer.asset.address:
        return "asset"
    if echo.method != offer.method:
        return "extra.assetTransferMethod"
    if echo.pay_to != offer.pay_to:
        return "payTo"
    if echo.amount_atomic != offer.amount_atomic:
        return "amount"
    if echo.domain != offer.domain:
        return "extra.name or extra.version"
    return None


def _symbol(name: str) -> str:
    """Return a short printable label for an unknown token; its own word is not trusted further than that."""
    printable = "".join(character for character in name if character.isascii() and character.isalnum())
    return printable[:12] or "TOKEN"

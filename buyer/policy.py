"""Policy: which of a seller's offers may be paid, and which of those is. Pure: no clock, socket or store.

Never simply the first: the cheapest acceptable one whose asset the wallet holds. Every other option is explained.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from urllib.parse import urlsplit

from buyer.asked import Option, PaymentAsked
from buyer.fresh import facilitator_of
from buyer.limits import SELLER_TIMEOUT_S_MAX, VALIDITY_S_DEFAULT
from buyer.purchase import Terms
from contracts.address import Address, address_text, parse_address
from contracts.errors import (
    FareboxError,
    InsufficientBalance,
    MalformedMessage,
    PriceAboveCap,
    TermsNotAllowed,
    UsageError,
)
from contracts.money import Asset, format_amount, parse_amount
from contracts.networks import DEVNET_CHAIN_ID, find_asset, parse_network
from contracts.offers import Offer
from contracts.schemes.rails import proxy_of
from contracts.tiers import NORMAL, TIERS, tier_of

__all__ = ["Choice", "Holdings", "Rejection", "SpendPolicy", "acceptable", "choose", "describe"]

# Atomic balance by chain id and token.
Holdings = Mapping[tuple[int, Address], int]

_SCHEMES = ("exact", "upto")


@dataclass(frozen=True, kw_only=True)
class SpendPolicy:
    """What may be paid without asking anybody.

    - `max_price` (`"0.01"`, in the offer's own asset) or `max_price_atomic`: the most one request may cost. One of them
      is required, unless `accept_quote` says that any price will do. A client that asks no chain takes only the latter
      for a token that Farebox does not know: nobody told it the decimals.
    - `max_total` or `max_total_atomic`: the most a client may ever sign for, in each asset.
    - `allowed_hosts`: `host` or `host:port`; None allows the hosts a caller names in its own requests.
    - `allowed_networks`: CAIP-2 ids or names; None allows every network Farebox knows a token of, and the local devnet.
    - `allowed_assets`: token addresses; None allows the tokens in Farebox's own table and, on the local devnet, any.
      An unknown token may be worth anything, whatever it calls itself.
    - `max_validity_s`: the longest window a payment is signed for.
    - `schemes`: `exact` pays the price that was asked. `upto` lets the seller charge by usage, up to what it asked, so
      that the price cap bounds the ceiling; nobody is charged that way who did not say so.
    - `tier`: the service class to pay for, where a seller has several: urgent, normal or background. None takes the
      normal one; the cheapest offer would be work that waits for all other work.
    - `allow_v1`: whether to pay a seller that asks in x402 version 1, whose offer stands in the body alone.
    """

    max_price: str | None = None
    max_price_atomic: int | None = None
    max_total: str | None = None
    max_total_atomic: int | None = None
    allowed_hosts: Collection[str] | None = None
    allowed_networks: Collection[str] | None = None
    allowed_assets: Collection[str] | None = None
    max_validity_s: int = VALIDITY_S_DEFAULT
    accept_quote: bool = False
    allow_v1: bool = False
    schemes: Collection[str] = ("exact",)
    tier: str | None = None

    def __post_init__(self) -> None:
        """Refuse, with `UsageError`, a policy without a price cap, with two of one kind, or with unreadable members."""
        for name in ("max_price", "max_total"):
            text, atomic = getattr(self, name), getattr(self, f"{name}_atomic")
            if text is not None and atomic is not None:
                raise UsageError(f"{name}: give it as text or in atomic units, not both")
            if atomic is not None and (isinstance(atomic, bool) or not isinstance(atomic, int) or atomic <= 0):
                raise UsageError(f"{name}_atomic: expected a positive integer, got {atomic!r}")
        if self.max_price is None and self.max_price_atomic is None and not self.accept_quote:
            raise UsageError("max_price: a price cap is required", remedy='set max_price="0.01", or accept_quote=True')
        if isinstance(self.allowed_hosts, str):
            raise UsageError("allowed_hosts: expected a list of hosts")
        for address in self.allowed_assets or ():
            try:
                parse_address(address, "allowed_assets")
            except MalformedMessage as error:
                raise UsageError(error.message) from None
        for network in self.allowed_networks or ():
            parse_network(network, "allowed_networks")
        for scheme in self.schemes:
            if scheme not in _SCHEMES:
                raise UsageError(f"scheme: expected {' or '.join(_SCHEMES)}, got {scheme[:40]!r}")
        if self.tier is not None and self.tier not in TIERS:
            raise UsageError(f"tier: expected one of {', '.join(TIERS)}, got {self.tier[:40]!r}")
        if self.max_validity_s <= 0:
            raise UsageError("max_validity_s: expected a positive number of seconds")

    def price_cap_atomic(self, asset: Asset) -> int | None:
        """Return the most one request may cost in `asset`, or None when any quote is accepted."""
        return _cap(self.max_price, self.max_price_atomic, asset, "max_price")

    def total_cap_atomic(self, asset: Asset) -> int | None:
        """Return the most that may ever be signed in `asset`, or None."""
        return _cap(self.max_total, self.max_total_atomic, asset, "max_total")

    def allows_host(self, url: str) -> bool:
        """Tell whether the host that is really connected to may be paid."""
        if self.allowed_hosts is None:
            return True
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        allowed = {entry.lower() for entry in self.allowed_hosts}
        return host in allowed or f"{host}:{port}" in allowed


@dataclass(frozen=True, slots=True)
class Rejection:
    """An option that is not paid, and why, in words that need no protocol knowledge."""

    option: Option
    error: FareboxError


@dataclass(frozen=True, slots=True)
class Choice:
    """The option to pay, and why not the others."""

    option: Option
    terms: Terms
    rejected: list[Rejection]


def acceptable(asked: PaymentAsked, policy: SpendPolicy, url: str) -> tuple[list[Option], list[Rejection]]:
    """Split the options of a 402 from `url` by policy alone; balances are not looked at."""
    accepted, rejected = [], []
    for option in asked.options:
        problem = option.problem if option.terms is None else _problem(option.terms, policy, url)
        if problem is None:
            accepted.append(option)
        else:
            rejected.append(Rejection(option, problem))
    return accepted, rejected


def choose(
    asked: PaymentAsked,
    policy: SpendPolicy,
    url: str,
    holdings: Holdings | None = None,
    allowances: Holdings | None = None,
) -> Choice:
    """Return the cheapest acceptable option whose asset the wallet holds.

    `holdings` are the wallet's balances, `allowances` what of them Permit2 may move; None means that they are not known
    here, and are not looked at. An option that could be paid after an approval comes after all that can be paid now.
    Raises the refusal of the option that came nearest, with all of them in its message.
    """
    accepted, rejected = acceptable(asked, policy, url)
    accepted, others = _of_tier(accepted, policy.tier)
    rejected += others
    if holdings is not None:
        rejected += [Rejection(option, short) for option in accepted if (short := _short(option, holdings)) is not None]
        refused = {rejection.option.index for rejection in rejected}
        accepted = [option for option in accepted if option.index not in refused]
    if not accepted:
        raise _nearest(rejected)
    best = min(accepted, key=lambda option: (_needs_approval(option, allowances), *_cost(option)))
    dearer = [Rejection(option, _dearer(option, best)) for option in accepted if option is not best]
    assert best.terms is not None
    return Choice(best, best.terms, sorted(rejected + dearer, key=lambda rejection: rejection.option.index))


def describe(offer: Offer) -> str:
    """Return one line for a person; every word of it is ours or checked, none the seller's."""
    bound = "up to " if offer.scheme == "upto" else ""
    price = format_amount(offer.amount_atomic, offer.asset)
    tier = tier_of(offer.extra)
    return (
        f"{bound}{price} on {offer.network.label} to {address_text(offer.pay_to)} "
        f"({offer.scheme}, {offer.method}, token {offer.asset.address_text}{f', {tier} tier' if tier else ''})"
    )


def _of_tier(options: list[Option], wanted: str | None) -> tuple[list[Option], list[Rejection]]:
    """Split options by service class. Without a wish it is the normal one, where a seller has one by that name."""
    tiers = {option.index: tier_of(option.terms.offer.extra) for option in options if option.terms is not None}
    if wanted is None:
        if NORMAL not in tiers.values():
            return options, []
        wanted = NORMAL
    kept = [option for option in options if tiers.get(option.index) == wanted]
    return kept, [
        Rejection(option, _other_tier(tiers.get(option.index), wanted)) for option in options if option not in kept
    ]


def _other_tier(tier: str | None, wanted: str) -> TermsNotAllowed:
    if tier is None:
        return TermsNotAllowed(f"it is of no tier, and {wanted} is wanted", remedy="leave out --tier")
    return TermsNotAllowed(f"it is of the {tier} tier, and {wanted} is wanted", remedy=f"choose it with --tier {tier}")


def _problem(terms: Terms, policy: SpendPolicy, url: str) -> FareboxError | None:
    """Return the first reason against an offer; the order is from what can never be to what a user may change."""
    offer = terms.offer
    try:
        facilitator_of(offer)
    except FareboxError as error:
        return TermsNotAllowed(f"it is not supported: {error.message}")
    if offer.scheme not in policy.schemes:
        return TermsNotAllowed(
            f"scheme {offer.scheme} is not an allowed scheme"
            + ("; it charges by usage, up to the price" if offer.scheme == "upto" else ""),
            remedy=f"allow it with --scheme {offer.scheme}",
        )
    if terms.x402_version == 1 and not policy.allow_v1:
        return TermsNotAllowed(
            "it is asked for in x402 version 1, which is paid only where you say so", remedy="allow it with --allow-v1"
        )
    if not policy.allows_host(url):
        return TermsNotAllowed(f"host {urlsplit(url).hostname} is not an allowed host")
    networks = policy.allowed_networks
    if networks is not None and offer.network not in {parse_network(network) for network in networks}:
        return TermsNotAllowed(f"network {offer.network.caip2} is not an allowed network")
    if not _asset_allowed(offer, policy.allowed_assets):
        return TermsNotAllowed(
            f"asset {offer.asset.address_text} on {offer.network.caip2} is not an allowed token",
            remedy="if you know this token, allow its address with --asset",
        )
    if offer.amount_atomic == 0:
        return TermsNotAllowed("the price is zero, so there is nothing to sign")
    longest_s = min(policy.max_validity_s, SELLER_TIMEOUT_S_MAX)
    if offer.max_timeout_s > longest_s:
        return TermsNotAllowed(
            f"validity of {offer.max_timeout_s} s is asked for; the longest allowed is {longest_s} s"
        )
    try:
        cap_atomic = policy.price_cap_atomic(offer.asset)
    except UsageError as error:
        return error
    if cap_atomic is not None and offer.amount_atomic > cap_atomic:
        price, cap = (format_amount(amount, offer.asset) for amount in (offer.amount_atomic, cap_atomic))
        return PriceAboveCap(f"the price is {price}, the cap {cap}")
    return None


def _asset_allowed(offer: Offer, allowed: Collection[str] | None) -> bool:
    if allowed is not None:
        return offer.asset.address in {parse_address(address) for address in allowed}
    return offer.network.chain_id == DEVNET_CHAIN_ID or find_asset(offer.network, offer.asset.address) is not None


def _short(option: Option, holdings: Holdings) -> FareboxError | None:
    assert option.terms is not None
    offer = option.terms.offer
    balance_atomic = holdings.get((offer.network.chain_id, offer.asset.address))
    if balance_atomic is None:
        return TermsNotAllowed(
            f"no RPC endpoint of {offer.network.caip2} is known, so nothing can be checked there",
            remedy=f"name one of {offer.network.label} with --rpc",
        )
    if balance_atomic >= offer.amount_atomic:
        return None
    return InsufficientBalance(
        f"the wallet holds {format_amount(balance_atomic, offer.asset)} on {offer.network.label}, "
        f"one call costs {format_amount(offer.amount_atomic, offer.asset)}"
    )


def _cost(option: Option) -> tuple[bool, Fraction, int]:
    """Order by price; tokens that are not dollars come last, because their price cannot be compared."""
    assert option.terms is not None
    offer = option.terms.offer
    return (not offer.asset.is_dollar, Fraction(offer.amount_atomic, 10**offer.asset.decimals), option.index)


def _needs_approval(option: Option, allowances: Holdings | None) -> bool:
    assert option.terms is not None
    offer = option.terms.offer
    if allowances is None or proxy_of(offer) is None:
        return False
    return allowances.get((offer.network.chain_id, offer.asset.address), 0) < offer.amount_atomic


def _dearer(option: Option, best: Option) -> FareboxError:
    assert option.terms is not None
    assert best.terms is not None
    price, lower = (format_amount(terms.offer.amount_atomic, terms.offer.asset) for terms in (option.terms, best.terms))
    return TermsNotAllowed(f"acceptable at {price}, but option {best.index} at {lower} was chosen")


def _nearest(rejected: Iterable[Rejection]) -> FareboxError:
    """Return the error of the option that failed last in the order of checks, telling of all of them."""
    order: list[type[FareboxError]] = [TermsNotAllowed, PriceAboveCap, InsufficientBalance]
    ranked = sorted(
        rejected, key=lambda rejection: order.index(type(rejection.error)) if type(rejection.error) in order else -1
    )
    best = ranked[-1].error
    if len(ranked) == 1:
        return best
    each = "; ".join(f"option {rejection.option.index}: {rejection.error.message}" for rejection in ranked)
    return type(best)(f"none of {len(ranked)} options can be paid: {each}", remedy=best.advice)


def _cap(text: str | None, atomic: int | None, asset: Asset, field: str) -> int | None:
    return parse_amount(text, asset, field) if text is not None else atomic

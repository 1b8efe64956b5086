"""Ranking: text x liveness x verification x reputation x price fit, each between 0 and 1, and each shown. Pure.

A product, so that no term can be bought with another: the best description does not lift a dead or unproven seller.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from contracts.address import Address
from contracts.networks import DEVNET_CHAIN_ID, find_asset, parse_network
from registry.limits import PROBE_HALF_LIFE_S

__all__ = ["Facts", "Offered", "Terms", "median_price", "price_of", "terms_of"]

_STATE_WEIGHTS = {"payable": 1.0, "free": 0.15, "unreadable": 0.1, "refused": 0.1, "dead": 0.02, "unprobed": 0.2}
_VERDICT_WEIGHTS = {"verified": 1.0, "unproven": 0.35, "blocked": 0.01, "unknown": 0.2}
# Unrated stands between well and badly rated: a newcomer is neither.
_UNRATED = 0.6
# Far above what others ask for the like, a price is a trap or a mistake; it sinks in proportion, to here.
_PRICE_FIT_MIN = 0.02
# Tokens that results name; a search sees few.
_TOKENS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Offered:
    """The offer a buyer would take, as the index keeps it; all None where no price is known."""

    network: str | None
    asset: bytes | None
    price_atomic: str | None
    decimals: int | None
    symbol: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one result. `price` is in whole units of a dollar token, None where none is comparable.

    `text` is the match relative to the best of the same search; `rating` is 0 to 1, or None for unrated; `age_s` is the
    age of the last probe; of `probed` probes, `answered` named a price.
    """

    text: float
    state: str
    verdict: str
    age_s: float = 0.0
    answered: int = 0
    probed: int = 0
    rating: float | None = None
    price: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """The factors of a score."""

    text: float
    liveness: float
    verification: float
    reputation: float
    price: float

    @property
    def score(self) -> float:
        """The product."""
        return self.text * self.liveness * self.verification * self.reputation * self.price


def terms_of(facts: Facts, median: Fraction | None) -> Terms:
    """Return the factors of one result; `median` is the middle price of what the same search found."""
    freshness = 0.5 + 0.5 * 0.5 ** (max(facts.age_s, 0.0) / PROBE_HALF_LIFE_S)
    # One more good and one more bad probe than there were: a single answer is no record.
    steadiness = (facts.answered + 1) / (facts.probed + 2)
    liveness = _STATE_WEIGHTS.get(facts.state, 0.1)
    if facts.state == "payable":
        liveness *= freshness * (0.5 + 0.5 * steadiness)
    price_fit = 1.0
    if facts.price is not None and median is not None and facts.price > median:
        price_fit = max(_PRICE_FIT_MIN, float(median / facts.price))
    return Terms(
        text=facts.text,
        liveness=liveness,
        verification=_VERDICT_WEIGHTS.get(facts.verdict, 0.2),
        reputation=_UNRATED if facts.rating is None else 0.1 + 0.9 * facts.rating,
        price=price_fit,
    )


def median_price(prices: Iterable[Fraction | None]) -> Fraction | None:
    """Return the middle of the prices that are known, or None."""
    known = [price for price in prices if price is not None]
    return statistics.median_low(known) if known else None


def price_of(offered: Offered) -> Fraction | None:
    """Return a price in whole units where the token is a dollar we know: a stranger's may call itself anything."""
    if offered.network is None or offered.price_atomic is None or offered.decimals is None:
        return None
    is_dollar = _is_dollar(offered.network, offered.asset)
    return Fraction(int(offered.price_atomic), 10**offered.decimals) if is_dollar else None


@lru_cache(_TOKENS_MAX)
def _is_dollar(network: str, asset: bytes | None) -> bool:
    chain = parse_network(network)
    known = find_asset(chain, Address(asset or b""))
    return known.is_dollar if known is not None else chain.chain_id == DEVNET_CHAIN_ID

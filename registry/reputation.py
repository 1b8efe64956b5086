"""Reputation: per tag, never mixed; only what somebody paid for, or somebody the user trusts said. Pure.

One's own paid calls come first. Ratings of others count when their reviewer is on the user's allow-list, or when a
payment of the reviewer to the agent is proven on chain: each transaction once, a few ratings a reviewer, and the older
the less. Otherwise an agent is unrated, whatever the registry's own mean says: units are only in the tag, a mean over
tags means nothing, and nothing there stops an agent's wallet or a former owner from rating it. Source: ERC-8004,
"Reputation Registry".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from contracts.address import Address
from registry.limits import RATING_HALF_LIFE_S, RATINGS_PER_REVIEWER

__all__ = ["Experience", "PaidCall", "Rating", "Reputation", "TagScore", "experience_of", "judge_ratings"]

# Tags whose unit is a share of a hundred, and so a score as it stands. Every other tag is shown and not scored.
_PERCENT_TAGS = ("starred", "uptime", "successRate", "reachable", "ownerVerified")
# Those that are 0 or 1 by the specification.
_FLAG_TAGS = ("reachable", "ownerVerified")


@dataclass(frozen=True, slots=True)
class PaidCall:
    """One paid call of one's own, as the buyer's receipts have it: who was paid where, and whether it was served."""

    network: str
    payee: Address
    is_served: bool
    at_s: int
    latency_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Experience:
    """One's own paid calls to an agent. `latency_ms` is the middle one of those served."""

    calls: int
    served: int
    latency_ms: int | None = None

    @property
    def score(self) -> float:
        """Success from 0 to 1, drawn to the middle while there are few calls."""
        return (self.served + 1) / (self.calls + 2)


@dataclass(frozen=True, slots=True)
class Rating:
    """One rating on chain that was not revoked. `paid_by` is the transaction that proves its payment, or None."""

    client: Address
    index: int
    value: int
    decimals: int
    tag: str
    time_s: int
    paid_by: bytes | None = None


@dataclass(frozen=True, slots=True)
class TagScore:
    """Ratings under one tag: all of them, those of strangers to the agent, those that count; and their mean."""

    tag: str
    raw: int
    filtered: int
    paid: int
    mean: float | None


@dataclass(frozen=True, slots=True)
class Reputation:
    """What is known of how an agent serves. `score` is 0 to 1, or None: unrated."""

    own: Experience | None
    tags: tuple[TagScore, ...] = ()
    reviewers: int = 0
    related: int = 0

    @property
    def score(self) -> float | None:
        """One's own experience where there is some, else the mean of the stars that count, else None."""
        if self.own is not None:
            return self.own.score
        stars = next((tag.mean for tag in self.tags if tag.tag == "starred"), None)
        return None if stars is None else min(1.0, max(0.0, stars / 100))


def experience_of(calls: Iterable[PaidCall], network: str, payees: Collection[Address]) -> Experience | None:
    """Return one's own calls that paid one of `payees` on `network`, or None when there were none."""
    mine = [call for call in calls if call.network == network and call.payee in payees]
    if not mine:
        return None
    latencies = sorted(call.latency_ms for call in mine if call.is_served and call.latency_ms is not None)
    middle = latencies[len(latencies) // 2] if latencies else None
    return Experience(len(mine), sum(call.is_served for call in mine), middle)


def judge_ratings(
    ratings: Sequence[Rating],
    *,
    related: Collection[Address],
    trusted: Collection[Address],
    own: Experience | None,
    now_s: int,
) -> Reputation:
    """Return the reputation that `ratings` make.

    `related` are the addresses whose word about the agent is its own: owners and wallets, former ones included, and
    operators. `trusted` is the user's allow-list.
    """
    used: set[bytes] = set()
    by_tag: defaultdict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        by_tag[rating.tag].append(rating)

    def counts(rating: Rating) -> bool:
        if rating.client in trusted:
            return True
        if rating.paid_by is None or rating.paid_by in used:
            return False
        used.add(rating.paid_by)
        return True

    tags = []
    for tag in sorted(by_tag):
        strangers = [rating for rating in by_tag[tag] if rating.client not in related]
        counted = _heard(strangers, counts)
        tags.append(TagScore(tag, len(by_tag[tag]), len(strangers), len(counted), _mean(tag, counted, now_s)))
    reviewers = {rating.client for rating in ratings}
    return Reputation(own, tuple(tags), len(reviewers), len(reviewers & set(related)))


def _heard(ratings: Iterable[Rating], counts: Callable[[Rating], bool]) -> list[Rating]:
    """Return the ratings that count, of each reviewer the newest few: what it says last is what it thinks now."""
    taken: Counter[Address] = Counter()
    heard = []
    for rating in sorted(ratings, key=lambda each: (-each.time_s, each.client, -each.index)):
        if taken[rating.client] < RATINGS_PER_REVIEWER and counts(rating):
            taken[rating.client] += 1
            heard.append(rating)
    return heard


def _mean(tag: str, ratings: Sequence[Rating], now_s: int) -> float | None:
    if tag not in _PERCENT_TAGS or not ratings:
        return None
    weights = [0.5 ** (max(0, now_s - rating.time_s) / RATING_HALF_LIFE_S) for rating in ratings]
    total = sum(weights)
    # A rating so old that it weighs nothing says nothing.
    weighted = sum(weight * _percent(rating) for weight, rating in zip(weights, ratings, strict=True))
    return weighted / total if total > 0 else None


def _percent(rating: Rating) -> float:
    value: float = rating.value / 10**rating.decimals
    if rating.tag in _FLAG_TAGS:
        value *= 100
    return min(100.0, max(0.0, value))

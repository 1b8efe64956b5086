"""RPC endpoints that differ in what they allow, fall behind, fail and lie: one at a time, each with what we learned.

Every answer is tied to one endpoint (no fail-over inside a request), so that a liar can be named.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Rpc, RpcRefused
from registry.limits import ENDPOINT_REST_S, ENDPOINT_REST_S_MAX, GROW_AFTER_ANSWERS, WINDOW_BLOCKS, WINDOW_BLOCKS_MAX

__all__ = ["Endpoint", "NoWayOn", "Pool", "Refusal", "endpoint_name", "refusal_of"]


class NoWayOn(ChainUnavailable):
    """No endpoint is left that could get a sync further."""


class Refusal(enum.Enum):
    """Why an endpoint said no to a request for logs."""

    RANGE = "range"  # too many blocks: it will say so again
    SIZE = "size"  # too much in these blocks
    RATE = "rate"  # too many requests from us
    BEHIND = "behind"  # it does not have these blocks yet
    UNKNOWN = "unknown"  # fewer blocks may help


# As providers write it. The number a provider names, where it does, is the most it allows.
_RANGE = re.compile(
    r"block range|blocks range|max(?:imum)? (?:block )?range|range (?:is )?too (?:large|wide|big)|range limit"
    r"|ranges? over|exceeds? (?:the )?(?:max|limit)|limited to|up to an? [0-9,_]+ block|too many blocks"
    r"|more than [0-9,_]+ blocks|distance.*(?:limit|exceed)",
    re.IGNORECASE,
)
_SIZE = re.compile(
    r"more than [0-9,_]+ (?:results|logs)|too many (?:results|logs)|(?:response|result|payload).{0,20}"
    r"(?:size|too (?:large|big))|time(?:d)? ?out|deadline|took too long|limit exceeded",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"rate limit|rate-limit|too many requests|requests? (?:count|limit)|compute units|capacity|quota|throttl|credits",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"block not found|unknown block|header not found|beyond (?:current )?head|after last accepted|not yet|future block"
    r"|greater than latest",
    re.IGNORECASE,
)
_BLOCKS = re.compile(r"(?<![0-9a-fx])([0-9][0-9,_]*)(k)?(?: blocks?|-block| block range)?", re.IGNORECASE)
_RATE_CODES = (429, -32029, -32097)
# A number in a message is the allowed range only if it looks like one.
_HINT_MIN, _HINT_MAX = 10, 1_000_000


def refusal_of(error: RpcRefused) -> tuple[Refusal, int | None]:
    """Return why a request for logs was refused and, where the endpoint names it, how many blocks it allows."""
    text = error.message
    if error.rpc_code in _RATE_CODES or _RATE.search(text):
        return Refusal.RATE, None
    if _BEHIND.search(text):
        return Refusal.BEHIND, None
    if _RANGE.search(text):
        return Refusal.RANGE, _hint(text)
    if _SIZE.search(text):
        return Refusal.SIZE, None
    return Refusal.UNKNOWN, None


def _hint(text: str) -> int | None:
    numbers = [
        int(digits.replace(",", "").replace("_", "")) * (1000 if thousands else 1)
        for digits, thousands in _BLOCKS.findall(text)
    ]
    allowed = [number for number in numbers if _HINT_MIN <= number <= _HINT_MAX]
    # "you asked for 10001 blocks, the maximum is 10000"
    return min(allowed, default=None)


def endpoint_name(url: str) -> str:
    """Return a name for an endpoint that shows its host only, and differs where the URLs do."""
    return f"{httpx.URL(url).host}#{hashlib.sha256(url.encode()).hexdigest()[:8]}"


@dataclass(slots=True, eq=False)
class Endpoint:
    """One RPC endpoint. `window_max` is the most blocks it ever allowed, once it said no; None before."""

    name: str
    rpc: Rpc
    window_blocks: int = WINDOW_BLOCKS
    window_max: int | None = None
    lies: int = 0
    failures: int = field(default=0)
    rests_until_s: float = 0.0
    answers: int = GROW_AFTER_ANSWERS

    def grow(self) -> None:
        """After an answer: ask for twice as many blocks next time; after a refusal, not at once."""
        self.failures = 0
        self.answers += 1
        if self.answers > GROW_AFTER_ANSWERS:
            self.window_blocks = min(2 * self.window_blocks, self.window_max or WINDOW_BLOCKS_MAX)

    def shrink(self, asked_blocks: int, refusal: Refusal, hint: int | None = None) -> None:
        """After a refusal: ask for half, or for what the endpoint allows. What range it refuses is remembered."""
        self.failures += 1
        self.answers = 0
        smaller = max(1, asked_blocks // 2)
        if refusal is Refusal.RANGE:
            self.window_max = smaller if hint is None or hint >= asked_blocks else hint
            smaller = self.window_max
        self.window_blocks = smaller

    def rest(self, now_s: float) -> None:
        """After a failure: leave it alone, twice as long each time."""
        self.failures += 1
        self.rests_until_s = now_s + self.rest_s

    @property
    def rest_s(self) -> float:
        """How long it rests after so many failures in a row."""
        return min(ENDPOINT_REST_S * 2.0 ** (self.failures - 1), ENDPOINT_REST_S_MAX)


class Pool:
    """The endpoints of one chain, those that never lied first. `clock` counts seconds for their rests."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Callable[[], float]) -> None:
        self.endpoints = sorted(endpoints, key=lambda endpoint: endpoint.lies)
        self._clock = clock

    def pick(self) -> tuple[Endpoint, float]:
        """Return the first endpoint that does not rest, or the one that rests shortest, and how long it still does."""
        if not self.endpoints:
            raise NoWayOn("every RPC endpoint contradicts the chain, or serves another one")
        now_s = self._clock()
        for endpoint in self.endpoints:
            if endpoint.rests_until_s <= now_s:
                return endpoint, 0.0
        soonest = min(self.endpoints, key=lambda endpoint: endpoint.rests_until_s)
        return soonest, soonest.rests_until_s - now_s

    def rest(self, endpoint: Endpoint) -> None:
        """Leave `endpoint` alone for a while."""
        endpoint.rest(self._clock())

    def drop(self, endpoint: Endpoint) -> None:
        """Use `endpoint` no more."""
        self.endpoints.remove(endpoint)

"""Whose time counts: the chain's. The clock of this machine may be wrong, and the latest block of a quiet chain is old.

A latest block from our future proves that our clock is behind. One from our past proves nothing: either our clock is
ahead, or the chain had nothing to do. What only one of the two holds valid is therefore in doubt, and in doubt the
chain is asked: such a payment is tried, and settled before any work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from contracts.errors import ChainUnavailable, PaymentExpired, PaymentNotYetValid
from contracts.evm.rpc import Rpc
from contracts.evm.token import read_head
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from seller.limits import CLOCK_TOLERANCE_S, FACTS_TIMEOUT_S, HEAD_TIME_TTL_S
from seller.verify import Payment, VerifiedPayment, verify

__all__ = ["ChainClock", "is_in_doubt", "verify_in_time", "why_not_in_time"]


class ChainClock:
    """The time of the latest block, asked at most once in `HEAD_TIME_TTL_S`: anybody can send expired payments."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._head_s: int | None = None
        self._asked = -HEAD_TIME_TTL_S
        self._turn = asyncio.Lock()

    async def head_s(self) -> int | None:
        """Return the latest block's timestamp in unix seconds, or None while the chain is silent."""
        async with self._turn:
            if time.monotonic() - self._asked >= HEAD_TIME_TTL_S:
                self._head_s = None
                with contextlib.suppress(ChainUnavailable, TimeoutError):
                    async with asyncio.timeout(FACTS_TIMEOUT_S):
                        self._head_s = (await read_head(self._rpc)).timestamp_s
                self._asked = time.monotonic()
            return self._head_s


def is_in_doubt(authorization: Authorization, local_s: int, head_s: int, margin_s: int) -> bool:
    """Tell whether an authorization that one of the two clocks holds valid for `margin_s` is in doubt by the other.

    `local_s` is this machine's time, `head_s` the latest block's, both in unix seconds. Raises `PaymentExpired` or
    `PaymentNotYetValid` where the chain itself would refuse it: no block is older than the one before.
    """
    now_s = max(local_s, head_s) if abs(local_s - head_s) <= CLOCK_TOLERANCE_S else head_s
    if authorization.valid_before_s < now_s + margin_s:
        raise PaymentExpired("payload.authorization.validBefore: is too near by the chain's clock")
    if now_s >= local_s:
        if authorization.valid_after_s > now_s:
            raise PaymentNotYetValid("payload.authorization.validAfter: lies in the future by the chain's clock")
        return False
    return authorization.valid_before_s < local_s + margin_s or authorization.valid_after_s > head_s


def why_not_in_time(
    authorization: Authorization, local_s: int, head_s: int, margin_s: int
) -> PaymentExpired | PaymentNotYetValid | None:
    """Return what was wrong with the time of an authorization in doubt that the chain then refused."""
    if authorization.valid_before_s < local_s + margin_s:
        return PaymentExpired("payload.authorization.validBefore: is over, by our clock and by the chain's")
    if authorization.valid_after_s > head_s:
        return PaymentNotYetValid("payload.authorization.validAfter: lies in the future by the chain's clock")
    return None


async def verify_in_time(
    payment: Payment, offers: Sequence[Offer], life_s: int, ask_head_s: Callable[[], Awaitable[int | None]]
) -> VerifiedPayment:
    """Verify by our clock, and by the chain's where nothing but the time seems to speak against the payment.

    `ask_head_s` returns None while there is only our clock to go by. Raises as `verify` does.
    """
    local_s = int(time.time())
    try:
        return verify(payment, offers, local_s, life_s)
    except (PaymentExpired, PaymentNotYetValid):
        head_s = await ask_head_s()
        if head_s is None or abs(local_s - head_s) <= CLOCK_TOLERANCE_S:
            raise
        return verify(payment, offers, head_s, life_s)

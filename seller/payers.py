"""What the chain says of a payer, asked once in a while: balance, allowance, code, and at which block that was."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cachetools import TTLCache

from contracts.address import Address
from contracts.errors import ChainUnavailable
from contracts.evm.permit2 import Permit2
from contracts.evm.rpc import Reader
from contracts.evm.token import Token, read_head
from contracts.schemes.permit2 import word_and_bit
from seller.bucket import Bucket
from seller.limits import (
    FACTS_TIMEOUT_S,
    PAYER_FACTS_MAX,
    PAYER_FACTS_TTL_S,
    STRANGER_QUESTIONS_MAX,
    STRANGER_QUESTIONS_PER_S,
    STRANGER_RETRY_AFTER_S,
)

__all__ = ["KnownPayer", "Payers", "TooManyStrangers"]


class TooManyStrangers(ChainUnavailable):
    """More new payers at once than the chain is asked about. Known payers are served; nothing was taken."""

    code, http_status, retry_after_s = "too_many_strangers", 429, STRANGER_RETRY_AFTER_S
    remedy = "send the same request with the same payment again in a moment"


@dataclass(frozen=True, slots=True)
class KnownPayer:
    """Facts of one payer as of block `block`, whose timestamp is `chain_time_s`.

    `settled_atomic` is what our ledger had settled for it when the chain was asked: what was settled since has left
    the balance, and the allowance. `words` are those of its Permit2 nonces that were asked with it, as bits.
    """

    balance_atomic: int
    has_code: bool
    block: int
    chain_time_s: int
    settled_atomic: int
    allowance_atomic: int | None = None
    words: dict[int, int] = field(default_factory=dict)

    def has_used(self, nonce: bytes) -> bool:
        """Tell whether a Permit2 nonce was used or revoked by then, where its word was asked."""
        word, bit = word_and_bit(nonce)
        return bool(self.words.get(word, 0) >> bit & 1)


class Payers:
    """A bounded cache of payer facts; concurrent questions about one payer are one question."""

    def __init__(self, chain: Reader, token: Address) -> None:
        self._chain = chain
        self._token = Token(chain, token)
        self._permit2 = Permit2(chain)
        self._known: TTLCache[tuple[Address, bool], KnownPayer] = TTLCache(
            PAYER_FACTS_MAX, PAYER_FACTS_TTL_S, time.monotonic
        )
        self._strangers = Bucket(STRANGER_QUESTIONS_MAX, STRANGER_QUESTIONS_PER_S)
        self._asking: dict[tuple[Address, bool], asyncio.Task[KnownPayer]] = {}

    def remembered(self, payer: Address, *, permit2: bool = False) -> bool:
        """Tell whether the payer's facts are known without asking the chain."""
        return (payer, permit2) in self._known

    async def facts(
        self,
        payer: Address,
        settled_atomic: Callable[[], int],
        *,
        fresh: bool = False,
        permit2_nonce: bytes | None = None,
    ) -> KnownPayer:
        """Return the payer's facts, not older than `PAYER_FACTS_TTL_S`; asked anew when `fresh`.

        With `permit2_nonce` they tell the allowance of Permit2 and, where the chain is asked, the nonce's word.
        `settled_atomic` tells our ledger's figure, and is asked just before the chain is. Raises `ChainUnavailable`,
        and its leaf `TooManyStrangers`.
        """
        key = (payer, permit2_nonce is not None)
        if not fresh:
            with contextlib.suppress(KeyError):
                return self._known[key]
        task = self._asking.get(key)
        if task is None:
            settled = settled_atomic()
            if settled == 0 and not self._strangers.take():
                raise TooManyStrangers("too many payers who never paid here are to be looked up")
            task = asyncio.ensure_future(self._ask(payer, settled, permit2_nonce))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        # One impatient client must not cancel the question for the others.
        return await asyncio.shield(task)

    def _answered(self, key: tuple[Address, bool], task: asyncio.Task[KnownPayer]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, also when everybody who asked has gone

    async def _ask(self, payer: Address, settled_atomic: int, permit2_nonce: bytes | None) -> KnownPayer:
        permit2 = permit2_nonce is not None
        asked = [] if permit2_nonce is None else [word_and_bit(permit2_nonce)[0]]
        try:
            async with asyncio.timeout(FACTS_TIMEOUT_S):
                head, facts, bits = await asyncio.gather(
                    read_head(self._chain),
                    self._token.payer_facts(payer, permit2=permit2),
                    self._words(payer, asked),
                )
        except TimeoutError:
            raise ChainUnavailable(f"no answer about the payer in {FACTS_TIMEOUT_S:.0f} s") from None
        known = KnownPayer(
            facts.balance_atomic,
            facts.has_code,
            head.number,
            head.timestamp_s,
            settled_atomic,
            facts.allowance_atomic,
            dict(zip(asked, bits, strict=True)),
        )
        self._known[payer, permit2] = known
        return known

    async def _words(self, payer: Address, words: list[int]) -> list[int]:
        return await self._permit2.bitmaps(payer, words) if words else []

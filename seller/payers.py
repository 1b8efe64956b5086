"""What the chain says of a payer, asked once in a while: balance, code, and at which block that was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

from contracts.address import Address
from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token, read_head
from seller.limits import FACTS_TIMEOUT_S, PAYER_FACTS_MAX, PAYER_FACTS_TTL_S

__all__ = ["KnownPayer", "Payers"]


@dataclass(frozen=True, slots=True)
class KnownPayer:
    """Facts of one payer as of block `block`, whose timestamp is `chain_time_s`.

    `settled_atomic` is what our ledger had settled for it when the chain was asked: what was settled since has left
    the balance.
    """

    balance_atomic: int
    has_code: bool
    block: int
    chain_time_s: int
    settled_atomic: int


class Payers:
    """A bounded cache of payer facts; concurrent questions about one payer are one question."""

    def __init__(self, rpc: Rpc, token: Address) -> None:
        self._rpc = rpc
        self._token = Token(rpc, token)
        self._known: TTLCache[Address, KnownPayer] = TTLCache(PAYER_FACTS_MAX, PAYER_FACTS_TTL_S, time.monotonic)
        self._asking: dict[Address, asyncio.Task[KnownPayer]] = {}

    async def facts(self, payer: Address, settled_atomic: Callable[[], int], *, fresh: bool = False) -> KnownPayer:
        """Return the payer's facts, not older than `PAYER_FACTS_TTL_S`; asked anew when `fresh`.

        `settled_atomic` tells our ledger's figure, and is asked just before the chain is. Raises `ChainUnavailable`.
        """
        if not fresh and (known := self._known.get(payer)) is not None:
            return known
        task = self._asking.get(payer)
        if task is None:
            task = asyncio.ensure_future(self._ask(payer, settled_atomic()))
            self._asking[payer] = task
            task.add_done_callback(lambda done: self._answered(payer, done))
        # One impatient client must not cancel the question for the others.
        return await asyncio.shield(task)

    def _answered(self, payer: Address, task: asyncio.Task[KnownPayer]) -> None:
        self._asking.pop(payer, None)
        if not task.cancelled():
            task.exception()  # seen, also when everybody who asked has gone

    async def _ask(self, payer: Address, settled_atomic: int) -> KnownPayer:
        try:
            async with asyncio.timeout(FACTS_TIMEOUT_S):
                head, facts = await asyncio.gather(read_head(self._rpc), self._token.payer_facts(payer))
        except TimeoutError:
            raise ChainUnavailable(f"no answer about the payer in {FACTS_TIMEOUT_S:.0f} s") from None
        known = KnownPayer(facts.balance_atomic, facts.has_code, head.number, head.timestamp_s, settled_atomic)
        self._known[payer] = known
        return known

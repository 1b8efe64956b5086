"""The settlement worker: holds the account's lease, looks at the queue, and keeps going.

It may run in the process that serves (`farebox sell`), or in one of its own (`farebox settle`). The store is what the
two have in common; an event only shortens the wait where both are one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Protocol

from contracts.crash import checkpoint
from contracts.errors import (
    AllowanceRequired,
    ChainUnavailable,
    ContractPayer,
    FareboxError,
    InsufficientFunds,
    PaymentExpired,
    PaymentRefused,
    PaymentReplayed,
    PaymentRevoked,
    SettlementFailed,
    SettlementUnavailable,
    TokenPaused,
)
from contracts.lifecycle import Money
from seller.claims import Claim
from seller.ledger import Ledger
from seller.limits import (
    BATCH_MAX,
    FAILURE_PAUSE_S,
    FLUSH_WINDOW_S,
    IDLE_POLL_S,
    LEASE_RENEW_S,
    RECEIPT_POLL_MAX_S,
    RECEIPT_POLL_S,
    REORG_CHECK_S,
    SETTLE_POLL_MAX_S,
    SETTLE_POLL_S,
    SETTLE_WAIT_S,
    STANDBY_POLL_S,
    TROUBLE_GRACE_S,
)
from seller.settlement.finality import Finality
from seller.settlement.outbox import Item, Outbox, now_ms

__all__ = ["REFUSALS", "Counter", "Settler", "Worker"]

_log = logging.getLogger("farebox.seller.settlement")

# What a client is told, by the reason that the books hold.
REFUSALS: dict[str, type[PaymentRefused]] = {
    kind.code: kind
    for kind in (
        AllowanceRequired,
        ContractPayer,
        InsufficientFunds,
        PaymentExpired,
        PaymentReplayed,
        PaymentRevoked,
        SettlementFailed,
        TokenPaused,
    )
}


class Settler(Protocol):
    """Puts items on chain. `account` names what must have one writer at a time."""

    account: str

    def has_room(self) -> bool: ...
    async def submit(self, items: list[Item]) -> list[int]: ...
    async def resolve(self) -> list[int]: ...
    async def push(self) -> bool: ...
    async def close(self) -> None: ...


class Counter:
    """Where requests wait for their own settlement, and where what is owed is announced."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: dict[int, asyncio.Event] = {}
        self.work = asyncio.Event()
        # Why nothing can be settled now, or None. Requests ask it so that they need not wait in vain.
        self.trouble: Callable[[], FareboxError | None] = lambda: None

    def announce(self) -> None:
        """Say that the queue has grown; a worker in this process looks at once."""
        self.work.set()

    def judged(self, payment_ids: list[int]) -> None:
        """Wake the requests that wait for these payments."""
        for payment_id in payment_ids:
            if (event := self._waiting.get(payment_id)) is not None:
                event.set()

    async def settle_now(self, claim: Claim, charged_atomic: int | None = None) -> str:
        """Queue a claim and wait until its money has moved; return the transaction hash.

        `charged_atomic` is what a metered claim came to; zero is settled at once. Raises a `PaymentRefused` leaf
        when its money will not move, and `SettlementUnavailable` after `SETTLE_WAIT_S`: then it may still be on its
        way.
        """
        await self._ledger.owe(claim, charged_atomic=charged_atomic)
        checkpoint("seller.queued")
        event = self._waiting[claim.id] = asyncio.Event()
        self.announce()
        started, poll_s = time.monotonic(), SETTLE_POLL_S
        try:
            while (remaining_s := started + SETTLE_WAIT_S - time.monotonic()) > 0:
                state = self._ledger.state(claim.id)
                if state is None or state.money in (Money.VOID, Money.LOST):
                    kind = REFUSALS.get(state.reason if state else "", SettlementFailed)
                    raise kind("the transfer was refused; nothing was charged")
                if state.money is Money.SETTLED:
                    return state.transaction_hash
                if time.monotonic() - started > TROUBLE_GRACE_S and (trouble := self.trouble()) is not None:
                    raise SettlementUnavailable(f"nothing can be settled now ({trouble.code})")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), min(poll_s, remaining_s))
                event.clear()
                poll_s = min(poll_s * 2, SETTLE_POLL_MAX_S)
        finally:
            del self._waiting[claim.id]
        raise SettlementUnavailable(f"the payment was not settled within {SETTLE_WAIT_S:.0f} s")


class Worker:
    """Settles what is queued until it is told to stop. `problem` is why it stands still, for `/readyz`."""

    def __init__(
        self, ledger: Ledger, outbox: Outbox, settler: Settler, counter: Counter, finality: Finality | None = None
    ) -> None:
        self._ledger = ledger
        self._finality = finality
        self._next_look = 0.0
        self._outbox = outbox
        self._settler = settler
        self._counter = counter
        self._stopping = False
        self._holds = False
        self._next_renewal = 0.0
        self._receipt_poll_s = RECEIPT_POLL_S
        self.problem: FareboxError | None = None

    async def run(self) -> None:
        """Work until `stop`. A failure of chain, facilitator or store pauses the work and never ends it."""
        try:
            while not self._stopping:
                pause_s = await self._guarded_round()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._counter.work.wait(), pause_s)
                if self.problem is not None:
                    await asyncio.sleep(pause_s)
                self._counter.work.clear()
        finally:
            await self._settler.close()
            if self._holds:
                with contextlib.suppress(FareboxError):
                    await self._outbox.release(self._settler.account)

    def stop(self) -> None:
        """Ask the loop to end after its present round."""
        self._stopping = True
        self._counter.announce()

    async def _guarded_round(self) -> float:
        try:
            pause_s = await self.round()
        except FareboxError as error:
            if self.problem is None or self.problem.message != error.message:
                _log.warning("settlement stands still: %s (%s)", error.message, error.advice)
            self.problem = error
            return FAILURE_PAUSE_S
        except Exception as error:  # noqa: BLE001 - a bug must be seen in the log, and must not end settlement
            _log.exception("settlement failed")
            self.problem = ChainUnavailable(f"unexpected {type(error).__name__}")
            return FAILURE_PAUSE_S
        self.problem = None
        return pause_s

    async def round(self) -> float:
        """Do what can be done now, and return how long there will be nothing to do, in seconds."""
        if not await self._hold():
            return STANDBY_POLL_S
        judged = await self._settler.resolve()
        self._counter.judged(judged)
        if self._finality is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + REORG_CHECK_S
            await self._finality.check()
        # After those who wait have been told: what hinders the rest, as an empty gas account, is nothing to them.
        open_ones = await self._settler.push()
        sent = False
        items = self._outbox.due(BATCH_MAX)
        if self._is_ready(items) and self._settler.has_room():
            self._counter.judged(await self._settler.submit(items))
            sent = True
        if sent or judged:
            self._receipt_poll_s = RECEIPT_POLL_S
            return 0.0 if sent else RECEIPT_POLL_S
        if open_ones:
            self._receipt_poll_s = min(self._receipt_poll_s * 2, RECEIPT_POLL_MAX_S)
            return self._receipt_poll_s
        return IDLE_POLL_S

    async def _hold(self) -> bool:
        """Hold the lease; take up what dead processes left whenever it is renewed."""
        if self._holds and time.monotonic() < self._next_renewal:
            return True
        self._holds = await self._outbox.hold(self._settler.account, self._ledger.is_gone)
        self._next_renewal = time.monotonic() + LEASE_RENEW_S
        self._ledger.recover()
        await self._ledger.sweep()
        return self._holds

    def _is_ready(self, items: list[Item]) -> bool:
        if not items:
            return False
        oldest_ms = min(item.created_ms for item in items)
        return items[0].withheld or len(items) == BATCH_MAX or now_ms() - oldest_ms >= FLUSH_WINDOW_S * 1000

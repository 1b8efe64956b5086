"""Writes a streamed answer down while it passes, without holding it up: its bytes, and what it has come to."""

from __future__ import annotations

import asyncio
import logging
import time

from contracts.crash import checkpoint
from contracts.errors import FareboxError
from seller.claims import Claim
from seller.ledger import Ledger
from seller.limits import ANSWER_BYTES_MAX, ANSWER_PIECE_BYTES, ANSWER_PIECE_S
from seller.metering import Meter
from seller.spool import State

__all__ = ["Recorder"]

_log = logging.getLogger("farebox.seller")


class Recorder:
    """Records what follows the beginning of one answer. Use by one task; `finish` ends it.

    `keeps` is whether the beginning was kept. With a `meter`, the charge is written down even where the answer is not.
    """

    def __init__(self, ledger: Ledger, claim: Claim, *, keeps: bool = True, meter: Meter | None = None) -> None:
        self._ledger = ledger
        self._claim = claim
        self._meter = meter
        self._position = 0
        self._pending = bytearray()
        self._total_bytes = 0
        self._written_s = time.monotonic()
        self._writing: asyncio.Task[None] | None = None
        self._dropped = not keeps
        self._finished = False

    @property
    def is_keeping(self) -> bool:
        """Whether the answer can still become whole."""
        return not self._dropped

    @property
    def is_finished(self) -> bool:
        """Whether the answer is at its end."""
        return self._finished

    def add(self, body: bytes) -> None:
        """Take the next bytes. They are written in the background, in pieces."""
        if not self._dropped:
            self._total_bytes += len(body)
            self._pending += body
            if self._total_bytes > ANSWER_BYTES_MAX:
                self._dropped = True
                self._pending.clear()
        if not self._pending and self._meter is None:
            return
        now_s = time.monotonic()
        due = len(self._pending) >= ANSWER_PIECE_BYTES or now_s - self._written_s >= ANSWER_PIECE_S
        if due and (self._writing is None or self._writing.done()):
            self._written_s = now_s
            self._writing = asyncio.ensure_future(self._write(State.OPEN))

    async def finish(self, state: State) -> None:
        """Write what is left, and how the answer ended. A store that fails costs the copy, not the answer."""
        if self._finished:
            return
        self._finished = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._write(state)

    async def _write(self, state: State) -> None:
        body = bytes(self._pending)
        self._pending.clear()
        position = self._position
        self._position += bool(body)
        if self._meter is not None:
            await self._charge(self._meter, state)
        try:
            kept = await self._ledger.record(self._claim.id, position, body, State.DROPPED if self._dropped else state)
            checkpoint("seller.piece_kept")
        except FareboxError as error:
            _log.warning("the answer to payment %d is not kept: %s", self._claim.id, error.message)
            kept = False
        if not kept and state is not State.DROPPED:
            self._dropped = True

    async def _charge(self, meter: Meter, state: State) -> None:
        """Write down what the answer has come to: so far, or for good."""
        due_atomic = meter.charge_atomic(whole=state is State.WHOLE)
        try:
            if state is State.OPEN:
                await self._ledger.meter(self._claim, due_atomic)
            else:
                await self._ledger.charge(self._claim, due_atomic)
                checkpoint("seller.charged")
        except FareboxError as error:
            _log.warning("payment %d: %d atomic units are due: %s", self._claim.id, due_atomic, error.message)

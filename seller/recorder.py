"""Writes a streamed answer down while it passes, without holding it up."""

from __future__ import annotations

import asyncio
import logging
import time

from contracts.crash import checkpoint
from contracts.errors import FareboxError
from seller.ledger import Ledger
from seller.limits import ANSWER_BYTES_MAX, ANSWER_PIECE_BYTES, ANSWER_PIECE_S
from seller.spool import State

__all__ = ["Recorder"]

_log = logging.getLogger("farebox.seller")


class Recorder:
    """Records what follows the beginning of one answer. Use by one task; `finish` ends it."""

    def __init__(self, ledger: Ledger, payment_id: int) -> None:
        self._ledger = ledger
        self._payment_id = payment_id
        self._position = 0
        self._pending = bytearray()
        self._total_bytes = 0
        self._written_s = time.monotonic()
        self._writing: asyncio.Task[None] | None = None
        self._dropped = False
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
        if self._dropped or not body:
            return
        self._total_bytes += len(body)
        if self._total_bytes > ANSWER_BYTES_MAX:
            self._dropped = True
            self._pending.clear()
            return
        self._pending += body
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
        await self._write(State.DROPPED if self._dropped else state)

    async def _write(self, state: State) -> None:
        body = bytes(self._pending)
        self._pending.clear()
        position = self._position
        self._position += bool(body)
        try:
            kept = await self._ledger.record(self._payment_id, position, body, state)
            checkpoint("seller.piece_kept")
        except FareboxError as error:
            _log.warning("the answer to payment %d is not kept: %s", self._payment_id, error.message)
            kept = False
        if not kept and state is not State.DROPPED:
            self._dropped = True

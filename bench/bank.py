"""Stands in for the pool and its sellers, to see whether an executor pays twice: durable, and every payment is counted.

As the pool does, it takes one payment under one key for ever, and whoever asks again under the key is given the answer
that was bought. What it does not do is talk to a seller or a chain: `bench executor --live` does. Which calls fail,
which of those are charged, and which are unknown at first, depends on the key alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.delegator.calls import Answer, NodeFailed, NodeUnknown
from gateway.delegator.journal import Attempt, Run
from gateway.delegator.plan import Node

__all__ = ["Bank", "Payment"]

# Of 256 calls.
_FAIL, _FAIL_CHARGED, _UNKNOWN_AT_FIRST = 8, 16, 24
_WORK_S_MAX = 0.004
_BUSY_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Payment:
    """What was paid under a key. `is_good`: its answer was sold. `changed`: other words came under the same key."""

    key: str
    paid_units: int
    is_good: bool
    changed: int


class Bank:
    """One account, in a file of its own, for any number of processes."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        # What is committed survives the process; nobody cuts the power here.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            """CREATE TABLE IF NOT EXISTS payments (key TEXT PRIMARY KEY, said BLOB NOT NULL, paid TEXT NOT NULL,
                   good INTEGER NOT NULL, asked INTEGER NOT NULL DEFAULT 1, changed INTEGER NOT NULL DEFAULT 0)"""
        )
        self._database.execute("CREATE TABLE IF NOT EXISTS left_behind (intended INTEGER, paid INTEGER)")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    async def __call__(self, node: Node, attempt: Attempt) -> Answer:
        """See `CallNode`. The money is gone before the work begins."""
        luck = hashlib.sha256(attempt.key.encode()).digest()
        fails, is_charged = luck[0] < _FAIL_CHARGED, luck[0] >= _FAIL
        paid = attempt.price_units if is_charged or not fails else 0
        await asyncio.sleep(luck[1] / 255 * _WORK_S_MAX / 4)
        asked = self._pay(attempt, paid, is_good=not fails)
        await asyncio.sleep(luck[2] / 255 * _WORK_S_MAX)
        if fails:
            raise NodeFailed("nonsense", paid_units=paid)
        if luck[0] < _UNKNOWN_AT_FIRST and asked == 1:
            raise NodeUnknown("no answer yet")
        return Answer(f"{node.id}: {luck.hex()[:12]}", paid)

    def _pay(self, attempt: Attempt, paid_units: int, *, is_good: bool) -> int:
        """Pay once, and return how often the key was presented."""
        (asked,) = self._database.execute(
            """INSERT INTO payments (key, said, paid, good) VALUES (?, ?, ?, ?)
               ON CONFLICT (key) DO UPDATE SET asked = asked + 1, changed = changed + (said <> excluded.said)
               RETURNING asked""",
            (attempt.key, hashlib.sha256(attempt.prompt.encode()).digest(), str(paid_units), is_good),
        ).fetchone()
        return int(asked)

    def payments(self) -> Mapping[str, Payment]:
        """Return everything that was paid, by key."""
        rows = self._database.execute("SELECT key, paid, good, changed FROM payments")
        return {key: Payment(key, int(paid), bool(good), changed) for key, paid, good, changed in rows}

    def count(self) -> int:
        """Return how many payments were made."""
        (count,) = self._database.execute("SELECT count(*) FROM payments").fetchone()
        return int(count)

    def note(self, run: Run) -> None:
        """Count what a run that was taken up had left behind: intents without an end, and those of them paid for."""
        intended = [attempt.key for attempt in run.attempts if attempt.state == "intended"]
        marks = ", ".join("?" * len(intended))
        (paid,) = self._database.execute(f"SELECT count(*) FROM payments WHERE key IN ({marks})", intended).fetchone()
        self._database.execute("INSERT INTO left_behind VALUES (?, ?)", (len(intended), paid))

    def left_behind(self) -> tuple[int, int]:
        """Return how many children found a call intended and without an end, and how many found one paid for."""
        intended, paid = self._database.execute("SELECT sum(intended > 0), sum(paid > 0) FROM left_behind").fetchone()
        return intended or 0, paid or 0

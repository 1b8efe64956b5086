"""`claims`: one authorization taken for one request, on disk before the first byte leaves; and what `kill -9` loses."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.harness import Case, Plan, Slice, measure, spread
from bench.kills import Losses
from bench.report import Report, Target, row
from bench.workload import an_offer, presign
from buyer.home import Home
from buyer.pool import Pool
from buyer.purchase import Purchase
from buyer.signers import KeySigner
from contracts.storage import Connection

__all__ = ["run"]

APPEND = "64 bytes appended to a file"
UPDATE = "SQLite WAL: one row updated"
UPDATE_SYNCED = "SQLite WAL: one row updated, synced"
CLAIM = "Farebox: claim"
CLAIM_AND_SENT = "Farebox: claim and sent"

_POOL_SIZE, _POOL_SIZE_QUICK = 20_000, 500
_KILLS, _KILLS_QUICK = 1_000, 5
# The promise is about a thousand kills; a slow machine does what it can in this time and says how many that were.
_KILLS_TIMEOUT_S = 90.0
_SECRET = b"\x01" * 32


def run(plan: Plan) -> Report:
    """Measure claims, then kill."""
    folder = Path(tempfile.mkdtemp(prefix="farebox-bench-"))
    pool = Pool.open(Home.open(folder / "home"))
    table = _Table(folder / "table.db")
    try:
        purchase = presign(pool, an_offer(), KeySigner(_SECRET), _POOL_SIZE_QUICK if plan.quick else _POOL_SIZE)
        with (folder / "appended").open("wb", buffering=0) as file:
            cases: list[Case] = [
                _Steps(APPEND, lambda _: file.write(bytes(64))),
                _Steps(UPDATE, lambda index: table.update(index, synced=False)),
                _Steps(UPDATE_SYNCED, lambda index: table.update(index, synced=True)),
                _Claims(CLAIM, pool, purchase, send=False),
                _Claims(CLAIM_AND_SENT, pool, purchase, send=True),
            ]
            samples = measure(cases, plan)
        kills = _KILLS_QUICK if plan.quick else _KILLS
        losses = _kill(folder / "killed", kills)
    finally:
        table.close()
        pool.close()
        shutil.rmtree(folder)
    rows = [row(name, samples, APPEND, rate=True) for name in samples]
    p50_us = next(each.p50_us for each in rows if each.name == CLAIM_AND_SENT)
    assert p50_us is not None
    killed = f"acknowledged claims lost in {losses.kills:,} kill -9 ({losses.acknowledged:,} acknowledged)"
    notes = [
        "Times are per claim and contain its share of the synced leases. All rows survive kill -9; power loss only",
        "the synced one, and Farebox's, whose last claims are covered by the synced lease.",
    ]
    if losses.kills < kills:
        notes.append(f"Only {losses.kills:,} of {kills:,} kills fitted into {_KILLS_TIMEOUT_S:.0f} s.")
    return Report(
        bench="claims",
        title="one authorization claimed from a pool of pre-signed ones, SQLite",
        rounds=plan.rounds,
        rows=rows,
        targets=[
            Target("claim and sent, 50th percentile", "at most", 5, spread([p50_us]), "us"),
            Target(killed, "at most", 0, spread([float(losses.lost)]), "lost"),
        ],
        notes=notes,
    )


class _Steps:
    """A case whose every call is timed."""

    def __init__(self, name: str, step: Callable[[int], object]) -> None:
        self.name = name
        self._step = step

    def run(self, count: int) -> Slice:
        """Call the step `count` times."""
        return _timed(self._step, count)


class _Claims:
    """Claims by one worker that begins without a lease; afterwards the pool is put back as it was."""

    def __init__(self, name: str, pool: Pool, purchase: Purchase, *, send: bool) -> None:
        self.name = name
        self._pool, self._purchase, self._send = pool, purchase, send

    def run(self, count: int) -> Slice:
        """Claim `count` times, or as often as the pool allows."""
        now_s = int(time.time())
        count = min(count, self._pool.spendable(self._purchase, now_s))
        spender = self._pool.spender()

        def claim(index: int) -> None:
            spender.claim(self._purchase, f"request {index}", now_s)

        def claim_and_send(index: int) -> None:
            spender.sent(spender.claim(self._purchase, f"request {index}", now_s))

        taken = _timed(claim_and_send if self._send else claim, count)
        spender.close()
        expected = "unknown" if self._send else "ready"
        assert getattr(self._pool.counts(self._purchase.name), expected) >= count
        self._pool.database.transact(_refill)
        return taken


class _Table:
    """What a claim would be without a pool: one row of one table, updated by its key in a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("CREATE TABLE claims (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, data BLOB)")
        rows = [(number, os.urandom(300)) for number in range(_POOL_SIZE_QUICK)]
        self._connection.executemany("INSERT INTO claims VALUES (?, 0, ?)", rows)
        self._synced: bool | None = None

    def update(self, index: int, *, synced: bool) -> None:
        """Change a row. An update that changes nothing would not write, and never sync."""
        if self._synced != synced:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._synced = synced
        self._connection.execute("UPDATE claims SET state = state + 1 WHERE id = ?", (index % _POOL_SIZE_QUICK,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _timed(step: Callable[[int], object], count: int) -> Slice:
    latencies_us = []
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for index in range(count):
        before_ns = time.perf_counter_ns()
        step(index)
        latencies_us.append((time.perf_counter_ns() - before_ns) / 1000)
    return Slice(count, time.process_time() - cpu_s, time.perf_counter() - wall_s, latencies_us)


def _refill(connection: Connection) -> None:
    connection.execute(
        "UPDATE authorizations SET state = 'ready', lease = NULL, request_key = NULL, reason = NULL"
        " WHERE state <> 'ready'"
    )


def _kill(folder: Path, kills: int) -> Losses:
    """Run the killings in a process that is small to fork."""
    command = [sys.executable, "-m", "bench.kills", str(folder), str(kills), str(_KILLS_TIMEOUT_S)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=2 * _KILLS_TIMEOUT_S)
    return Losses(**json.loads(done.stdout))

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count as counter
from pathlib import Path

from bench.harness import Case, Plan, Slice, measure, spread
from bench.kills import Losses
from bench.report import Report, Target, row
from bench.stores import postgres
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
NEW = "Farebox, SQLite, leases synced: new request"
KNOWN = "Farebox, SQLite, leases synced: request with an id"
SERVER = "Farebox, PostgreSQL, synced: new request"

_CALLERS, _CALLERS_QUICK = (1, 64, 512), (1, 4)
_POOL_SIZE, _POOL_SIZE_QUICK = 20_000, 200
# A server takes a thousand times as long, so a round needs fewer.
_SERVER_POOL_SIZE = 3_000
_KILLS, _KILLS_QUICK = 1_000, 5
# The promise is about a thousand kills; a slow machine does what it can in this time and says how many that were.
_KILLS_TIMEOUT_S = 60.0
_SECRET = b"\x01" * 32


def run(plan: Plan) -> Report:
    """Measure claims, then kill."""
    folder = Path(tempfile.mkdtemp(prefix="farebox-bench-"))
    try:
        with ExitStack() as open_:
            cases = _cases(folder, open_, quick=plan.quick)
            samples = measure(cases, plan)
        kills = _KILLS_QUICK if plan.quick else _KILLS
        losses = _kill(folder / "killed", kills)
    finally:
        shutil.rmtree(folder)
    rows = [row(name, samples, APPEND, rate=True) for name in samples]
    p50_us = next(each.p50_us for each in rows if each.name == NEW)
    assert p50_us is not None
    killed = f"acknowledged claims lost in {losses.kills:,} kill -9 ({losses.acknowledged:,} acknowledged)"
    return Report(
        bench="claims",
        title="one authorization claimed from a pool of pre-signed ones, marked as sent",
        rounds=plan.rounds,
        rows=rows,
        targets=[
            Target("claim and sent of a new request, 50th percentile", "at most", 5, spread([p50_us]), "us"),
            Target(killed, "at most", 0, spread([float(losses.lost)]), "lost"),
        ],
        notes=_notes(losses, kills),
    )


def _notes(losses: Losses, kills: int) -> list[str]:
    notes = [
        "CPU time and claims per second contain the share of the synced leases, and of entering into the books what",
        "was noted beside them; percentiles are of single calls, most of which do neither. Every row survives kill -9;",
        "the synced ones power loss too, and so does the pool in SQLite, whose last claims its synced lease covers. A",
        "new request is one whose key the gateway has just drawn; an id that a client gave is looked up in the books.",
    ]
    if losses.kills < kills:
        notes.append(f"Only {losses.kills:,} of {kills:,} kills fitted into {_KILLS_TIMEOUT_S:.0f} s.")
    return notes


def _cases(folder: Path, open_: ExitStack, *, quick: bool) -> list[Case]:
    file = open_.enter_context((folder / "appended").open("wb", buffering=0))
    table = open_.enter_context(_table(folder / "table.db"))
    cases: list[Case] = [
        _Steps(APPEND, lambda _: file.write(bytes(64))),
        _Steps(UPDATE, lambda index: table(index, False)),
        _Steps(UPDATE_SYNCED, lambda index: table(index, True)),
    ]
    local = open_.enter_context(_pool(Home.open(folder / "home"), _POOL_SIZE_QUICK if quick else _POOL_SIZE))
    server = open_.enter_context(postgres())
    remote_home = Home.open(folder / "remote", store=server.new_database())
    remote = open_.enter_context(_pool(remote_home, _POOL_SIZE_QUICK if quick else _SERVER_POOL_SIZE))
    for name, pool, is_new in ((NEW, local, True), (KNOWN, local, False), (SERVER, remote, True)):
        cases += [_Claims(name, pool, callers, is_new=is_new) for callers in (_CALLERS_QUICK if quick else _CALLERS)]
    return cases


@contextmanager
def _pool(home: Home, size: int) -> Iterator[tuple[Pool, Purchase]]:
    with Pool.open(home) as pool:
        yield pool, presign(pool, an_offer(), KeySigner(_SECRET), size)


class _Steps:
    """A case whose every call is timed."""

    def __init__(self, name: str, step: Callable[[int], object]) -> None:
        self.name = name
        self._step = step

    def run(self, count: int) -> Slice:
        """Call the step `count` times."""
        latencies_us: list[float] = []
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for index in range(count):
            _time(self._step, index, latencies_us)
        return Slice(count, time.process_time() - cpu_s, time.perf_counter() - wall_s, latencies_us)


class _Claims:
    """Claims by one worker that begins without a lease, for `callers` threads; afterwards the pool is as it was."""

    _numbers = counter()

    def __init__(self, name: str, pool: tuple[Pool, Purchase], callers: int, *, is_new: bool) -> None:
        self.name = name if callers == 1 else f"{name}, {callers} at once"
        self._pool, self._purchase = pool
        self._callers, self._is_new = callers, is_new

    def run(self, count: int) -> Slice:
        """Claim `count` times, or as often as the pool allows."""
        now_s = int(time.time())
        count = min(max(count, self._callers), self._pool.spendable(self._purchase, now_s))
        prefix, latencies_us = f"run {next(self._numbers)}", list[float]()
        spender = self._pool.spender()

        def claim(index: int) -> None:
            claimed = spender.claim(self._purchase, f"{prefix} request {index}", now_s, is_new=self._is_new)
            spender.sent(claimed)

        def call(first: int) -> None:
            for index in range(first, count, self._callers):
                _time(claim, index, latencies_us)

        wall_s, cpu_s = time.perf_counter(), time.process_time()
        if self._callers == 1:
            call(0)
        else:
            with ThreadPoolExecutor(self._callers) as threads:
                list(threads.map(call, range(self._callers)))
        taken = Slice(count, time.process_time() - cpu_s, time.perf_counter() - wall_s, latencies_us)
        assert self._pool.counts(self._purchase.name).sent == count
        spender.close()
        self._pool.database.transact(_refill)
        return taken


@contextmanager
def _table(path: Path) -> Iterator[Callable[[int, bool], None]]:
    """What a claim would be without a pool: one row of one table, updated by its key in a transaction of its own."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE claims (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, data BLOB)")
    rows = [(number, os.urandom(300)) for number in range(_POOL_SIZE_QUICK)]
    connection.executemany("INSERT INTO claims VALUES (?, 0, ?)", rows)
    is_synced: bool | None = None

    def update(index: int, synced: bool) -> None:
        """Change a row. An update that changes nothing would not write, and never sync."""
        nonlocal is_synced
        if is_synced != synced:
            connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            is_synced = synced
        connection.execute("UPDATE claims SET state = state + 1 WHERE id = ?", (index % _POOL_SIZE_QUICK,))

    yield update
    connection.close()


def _time(step: Callable[[int], object], index: int, latencies_us: list[float]) -> None:
    before_ns = time.perf_counter_ns()
    step(index)
    latencies_us.append((time.perf_counter_ns() - before_ns) / 1000)


def _refill(connection: Connection) -> None:
    connection.execute(
        "UPDATE authorizations SET state = 'ready', lease = NULL, request_key = NULL, claimed_s = NULL, reason = NULL"
        " WHERE state <> 'ready'"
    )


def _kill(folder: Path, kills: int) -> Losses:
    """Run the killings in a process that is small to fork."""
    command = [sys.executable, "-m", "bench.kills", str(folder), str(kills), str(_KILLS_TIMEOUT_S)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=2 * _KILLS_TIMEOUT_S)
    return Losses(**json.loads(done.stdout))

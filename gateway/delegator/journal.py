"""The journal of runs: what is written before a call is paid for, and what came of it. SQLite or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from contracts.errors import NameUnknown, RequestInProgress
from contracts.storage import Connection, Database, Life, Row, open_database

__all__ = ["Attempt", "Journal", "Run"]

RunState = Literal["running", "done", "partial", "failed"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a node. `paid_units` and `result` are None until it ended; `key` names its payment in the pool.

    `prompt` is what was asked, and all that may be asked under `key`.
    """

    key: str
    node_id: str
    number: int
    offer: str
    prompt: str = field(repr=False)
    price_units: int
    state: Literal["intended", "answered", "failed"]
    started_ms: int
    paid_units: int | None = None
    reason: str | None = None
    result: str | None = None
    ended_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the journal has it."""

    id: str
    tenant: str
    plan: str = field(repr=False)
    schedule: str = field(repr=False)
    budget_units: int
    deadline_ms: int | None
    started_ms: int
    state: RunState = "running"
    ended_ms: int | None = None
    attempts: Sequence[Attempt] = ()


class Journal:
    """The runs of one store. One process carries out a run at a time, for as long as it lives."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._presence = database.presence()

    @classmethod
    def open(cls, url: str) -> Journal:
        """Open the journal in a store. Raises `StoreUnavailable`."""
        return cls(open_database(url, "gateway.delegator.migrations"))

    def close(self) -> None:
        """Finish the waiting writes and let others resume what runs here."""
        self._presence.close()
        self._database.close()

    def begin(self, run: Run) -> None:
        """Write down a run that is about to start, as this process's. Raises `StoreUnavailable`."""
        values = (
            run.id,
            run.tenant,
            run.plan,
            run.schedule,
            str(run.budget_units),
            run.deadline_ms,
            self._presence.id,
            run.started_ms,
        )
        self._database.transact(
            lambda connection: connection.execute(
                """INSERT INTO runs (id, tenant, plan, schedule, budget_units, deadline_ms, state, owner, started_ms)
                   VALUES (?, ?, ?, ?, ?, ?, 'running', ?, ?)""",
                values,
            )
        )

    def take_over(self, run_id: str) -> Run:
        """Make a run this process's and return it. Raises `NameUnknown`, or `RequestInProgress` for another's."""

        def take(connection: Connection) -> None:
            row = connection.execute("SELECT owner FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise NameUnknown(f"no run is called {run_id[:80]!r}")
            owner = row["owner"]
            if owner not in (None, self._presence.id) and self._database.life_of(owner) is Life.ALIVE:
                raise RequestInProgress(f"run {run_id}: another process carries it out")
            connection.execute("UPDATE runs SET owner = ? WHERE id = ?", (self._presence.id, run_id))

        self._database.transact(take)
        return self.find(run_id)

    def find(self, run_id: str) -> Run:
        """Return a run with all its attempts. Raises `NameUnknown`."""

        def read(connection: Connection) -> Run:
            row = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise NameUnknown(f"no run is called {run_id[:80]!r}")
            attempts = connection.execute(
                "SELECT * FROM attempts WHERE run_id = ? ORDER BY started_ms, node_id, number", (run_id,)
            ).fetchall()
            return _run(row, attempts)

        return self._database.read(read)

    async def intend(self, run_id: str, attempt: Attempt) -> None:
        """Write down, synced, that a call is about to be paid for. Raises `StoreUnavailable`."""
        values = (
            attempt.key,
            run_id,
            attempt.node_id,
            attempt.number,
            attempt.offer,
            attempt.prompt.encode(),
            str(attempt.price_units),
            attempt.started_ms,
        )
        await self._database.write(
            lambda connection: connection.execute(
                """INSERT INTO attempts (key, run_id, node_id, number, offer, prompt, price_units, started_ms,
                       state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'intended')""",
                values,
            )
        )

    async def ended(self, key: str, *, paid_units: int, result: str | None, reason: str | None = None) -> None:
        """Write down what a call cost and gave; `result` None means that it failed. Raises `StoreUnavailable`."""
        data = None if result is None else result.encode()
        state = "failed" if result is None else "answered"
        await self._database.write(
            lambda connection: connection.execute(
                """UPDATE attempts SET state = ?, paid_units = ?, reason = ?, result = ?, ended_ms = ?
                   WHERE key = ? AND state = 'intended'""",
                (state, str(paid_units), reason, data, _now_ms(), key),
            )
        )

    async def finish(self, run_id: str, state: RunState) -> None:
        """Write down how a run ended, and let it go. Raises `StoreUnavailable`."""
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE runs SET state = ?, owner = NULL, ended_ms = ? WHERE id = ?", (state, _now_ms(), run_id)
            )
        )


def _run(row: Row, attempts: Sequence[Row]) -> Run:
    return Run(
        id=row["id"],
        tenant=row["tenant"],
        plan=row["plan"],
        schedule=row["schedule"],
        budget_units=int(row["budget_units"]),
        deadline_ms=row["deadline_ms"],
        state=row["state"],
        started_ms=row["started_ms"],
        ended_ms=row["ended_ms"],
        attempts=[_attempt(each) for each in attempts],
    )


def _attempt(row: Row) -> Attempt:
    return Attempt(
        key=row["key"],
        node_id=row["node_id"],
        number=row["number"],
        offer=row["offer"],
        prompt=bytes(row["prompt"]).decode(),
        price_units=int(row["price_units"]),
        state=row["state"],
        started_ms=row["started_ms"],
        paid_units=None if row["paid_units"] is None else int(row["paid_units"]),
        reason=row["reason"],
        result=None if row["result"] is None else bytes(row["result"]).decode(),
        ended_ms=row["ended_ms"],
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

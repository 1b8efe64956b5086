"""The journal of runs: what is written before a call is paid for, and what came of it. SQLite or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from contracts.errors import FareboxError, NameUnknown, RequestInProgress
from contracts.storage import Connection, Database, Life, Row, open_database
from gateway.delegator.limits import ANSWER_KEPT_S, ANSWERS_KEPT_MAX

__all__ = ["Attempt", "Journal", "Run", "RunLost"]

_BEGIN = """
    INSERT INTO runs (id, tenant, plan, schedule, budget_units, deadline_ms, owner, started_ms, state)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'running') ON CONFLICT (id) DO NOTHING
"""
# Only for whoever has the run: a process that lost it must not begin to pay.
_INTEND = """
    INSERT INTO attempts (key, run_id, node_id, number, offer, prompt, price_units, started_ms, round, state)
    SELECT ?, id, ?, ?, ?, ?, ?, ?, ?, 'intended' FROM runs WHERE id = ? AND owner = ?
"""

RunState = Literal["running", "done", "partial", "failed"]


class RunLost(FareboxError):
    """Another process has taken this run over; nothing more of it is paid here."""

    code = "run_lost"
    http_status = 409
    remedy = "look at it with `farebox delegate show RUN`"


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
    round: int = 0
    paid_units: int | None = None
    reason: str | None = None
    result: str | None = None
    ended_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the journal has it. `round` counts how often it was planned anew; plan and schedule are the last."""

    id: str
    tenant: str
    plan: str = field(repr=False)
    schedule: str = field(repr=False)
    budget_units: int
    deadline_ms: int | None
    started_ms: int
    state: RunState = "running"
    ended_ms: int | None = None
    round: int = 0
    attempts: Sequence[Attempt] = ()


class Journal:
    """The runs of one store. One process carries out a run at a time, for as long as it lives."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._presence = database.presence()
        # What this process carries out: its own second look must not take a run over either.
        self._in_hand: set[str] = set()

    @classmethod
    def open(cls, url: str) -> Journal:
        """Open the journal in a store. Raises `StoreUnavailable`."""
        return cls(open_database(url, "gateway.delegator.migrations"))

    @property
    def presence_id(self) -> str:
        """The name under which this process is seen by the others."""
        return self._presence.id

    def is_alive(self, presence_id: str) -> bool:
        """Tell whether the process of that name lives. Raises `StoreUnavailable`."""
        return self._database.life_of(presence_id) is Life.ALIVE

    def close(self) -> None:
        """Finish the waiting writes and let others resume what runs here."""
        self._presence.close()
        self._database.close()

    def begin(self, run: Run) -> None:
        """Write down a run that is about to start, as this process's.

        Raises `RequestInProgress` when there is one of that id, `StoreUnavailable`.
        """
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
        begun = self._database.transact(lambda connection: connection.execute(_BEGIN, values).rowcount)
        if not begun:
            raise RequestInProgress(f"run {run.id}: it was begun before", remedy="resume it")
        self._in_hand.add(run.id)

    def take_over(self, run_id: str, *, anew: bool = False) -> Run:
        """Make a run this process's and return it. With `anew`, one that could not be planned is running again.

        Raises `NameUnknown`, or `RequestInProgress` for another's.
        """

        def take(connection: Connection) -> str | None:
            row = connection.execute("SELECT owner FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise NameUnknown(f"no run is called {run_id[:80]!r}", remedy="see `farebox delegate list`")
            owner: str | None = row["owner"]
            if owner not in (None, self._presence.id) and self._database.life_of(owner) is Life.ALIVE:
                raise RequestInProgress(
                    f"run {run_id}: another process carries it out",
                    remedy="wait for it, or end that process first",
                )
            connection.execute("UPDATE runs SET owner = ? WHERE id = ?", (self._presence.id, run_id))
            if anew:
                connection.execute(
                    "UPDATE runs SET state = 'running', ended_ms = NULL WHERE id = ? AND state = 'failed'", (run_id,)
                )
            return owner

        if run_id in self._in_hand:
            raise RequestInProgress(f"run {run_id}: this process carries it out")
        self._presence.hold()
        former = self._database.transact(take)
        if former not in (None, self._presence.id):
            self._database.forget(former)
        self._in_hand.add(run_id)
        return self.find(run_id)

    def find(self, run_id: str) -> Run:
        """Return a run with all its attempts. Raises `NameUnknown`."""

        def read(connection: Connection) -> Run:
            row = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None:
                raise NameUnknown(f"no run is called {run_id[:80]!r}", remedy="see `farebox delegate list`")
            attempts = connection.execute(
                "SELECT * FROM attempts WHERE run_id = ? ORDER BY started_ms, node_id, number", (run_id,)
            ).fetchall()
            return _run(row, attempts)

        return self._database.read(read)

    def recent(self, count: int) -> Sequence[Run]:
        """Return the last `count` runs, the newest first, without their attempts."""

        def read(connection: Connection) -> Sequence[Run]:
            rows = connection.execute("SELECT * FROM runs ORDER BY started_ms DESC, id DESC LIMIT ?", (count,))
            return [_run(row, ()) for row in rows.fetchall()]

        return self._database.read(read)

    def abandoned(self, count: int) -> Sequence[str]:
        """Return up to `count` runs that a process had which has ended, the oldest first."""
        query = "SELECT id, owner FROM runs WHERE state = 'running' AND owner IS NOT NULL ORDER BY started_ms LIMIT ?"
        rows = self._database.read(lambda connection: connection.execute(query, (count,)).fetchall())
        dead = {owner for owner in {row["owner"] for row in rows} if not self.is_alive(owner)}
        return [row["id"] for row in rows if row["owner"] in dead]

    async def intend(self, run_id: str, attempt: Attempt) -> None:
        """Write down, synced, that a call is about to be paid for.

        Raises `RunLost` when another process has the run, `StoreUnavailable`.
        """
        values = (
            attempt.key,
            attempt.node_id,
            attempt.number,
            attempt.offer,
            attempt.prompt.encode(),
            str(attempt.price_units),
            attempt.started_ms,
            attempt.round,
            run_id,
            self._presence.id,
        )
        written = await self._database.write(lambda connection: connection.execute(_INTEND, values).rowcount)
        if not written:
            raise RunLost(f"run {run_id}: another process carries it out now")

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

    def planned(self, run_id: str, plan: str, schedule: str) -> None:
        """Write down the plan of a run that was begun without one; "" where none could be made.

        Raises `RunLost`, `StoreUnavailable`.
        """
        written = self._database.transact(
            lambda connection: (
                connection.execute(
                    "UPDATE runs SET plan = ?, schedule = ? WHERE id = ? AND owner = ?",
                    (plan, schedule, run_id, self._presence.id),
                ).rowcount
            )
        )
        if not written:
            raise RunLost(f"run {run_id}: another process carries it out now")

    async def replan(self, run_id: str, plan: str, schedule: str) -> None:
        """Replace the plan of a run by one for the rest of it, and begin its next round."""
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE runs SET plan = ?, schedule = ?, round = round + 1 WHERE id = ? AND owner = ?",
                (plan, schedule, run_id, self._presence.id),
            )
        )

    async def finish(self, run_id: str, state: RunState) -> None:
        """Write down how a run ended, and let it go. Raises `StoreUnavailable`."""
        await self._database.write(
            lambda connection: connection.execute(
                "UPDATE runs SET state = ?, owner = NULL, ended_ms = ? WHERE id = ? AND owner = ?",
                (state, _now_ms(), run_id, self._presence.id),
            )
        )
        self._in_hand.discard(run_id)

    def release(self, run_id: str) -> None:
        """Let a run go as it stands, for anybody to resume. Raises `StoreUnavailable`."""
        if run_id not in self._in_hand:
            return
        self._in_hand.discard(run_id)
        self._database.transact(
            lambda connection: connection.execute(
                "UPDATE runs SET owner = NULL WHERE id = ? AND owner = ?", (run_id, self._presence.id)
            )
        )

    async def keep(self, key: str, tenant: str, result: str) -> None:
        """Keep an answer for the next who asks the same; of each tenant the last `ANSWERS_KEPT_MAX`."""

        def write(connection: Connection) -> None:
            now_ms = _now_ms()
            connection.execute(
                """INSERT INTO answers (key, tenant, result, kept_ms) VALUES (?, ?, ?, ?)
                   ON CONFLICT (key) DO UPDATE SET result = excluded.result, kept_ms = excluded.kept_ms""",
                (key, tenant, result.encode(), now_ms),
            )
            connection.execute(
                """DELETE FROM answers WHERE tenant = ? AND (kept_ms < ? OR kept_ms < (
                       SELECT kept_ms FROM answers WHERE tenant = ? ORDER BY kept_ms DESC LIMIT 1 OFFSET ?))""",
                (tenant, now_ms - ANSWER_KEPT_S * 1000, tenant, ANSWERS_KEPT_MAX - 1),
            )

        await self._database.write(write, durable=False)

    def kept(self, key: str) -> str | None:
        """Return an answer that was kept, unless it is older than `ANSWER_KEPT_S`."""

        def read(connection: Connection) -> str | None:
            row = connection.execute(
                "SELECT result FROM answers WHERE key = ? AND kept_ms >= ?", (key, _now_ms() - ANSWER_KEPT_S * 1000)
            ).fetchone()
            return None if row is None else bytes(row["result"]).decode()

        return self._database.read(read)


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
        round=row["round"],
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
        round=row["round"],
        paid_units=None if row["paid_units"] is None else int(row["paid_units"]),
        reason=row["reason"],
        result=None if row["result"] is None else bytes(row["result"]).decode(),
        ended_ms=row["ended_ms"],
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

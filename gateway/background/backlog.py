"""Tasks that wait for idle sellers: durable, bounded, each in the hands of one process. SQLite or PostgreSQL."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from contracts.errors import FareboxError, NameUnknown, RequestInProgress
from contracts.storage import Connection, Database, Life, Row, open_database
from gateway.background.limits import KEPT_S, TASKS_MAX

__all__ = ["Backlog", "BacklogFull", "Task"]

State = Literal["waiting", "buying", "done", "failed", "expired", "cancelled"]


class BacklogFull(FareboxError):
    """As much waits as may wait."""

    code = "backlog_full"
    http_status = 503
    remedy = "let `farebox background run` work it off, or cancel what is not needed"


@dataclass(frozen=True, slots=True)
class Task:
    """One request that can wait. `purchase` is what the attempt in hand is paid from; `paid_units` None until it ended.

    `put_off` counts how often its seller had no room, in a row.
    """

    id: str
    model: str
    request: bytes = field(repr=False)
    max_price_units: int
    made_ms: int
    expires_ms: int
    state: State = "waiting"
    attempt: int = 0
    purchase: str | None = None
    put_off: int = 0
    paid_units: int | None = None
    result: str | None = None
    reason: str | None = None
    ended_ms: int | None = None

    @property
    def key(self) -> str:
        """The name of the attempt's payment: the same for the same attempt, whoever asks and whenever."""
        return hashlib.sha256(f"background\n{self.id}\n{self.attempt}".encode()).hexdigest()[:40]


class Backlog:
    """The tasks of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._presence = database.presence()

    @classmethod
    def open(cls, url: str) -> Backlog:
        """Open the backlog in a store. Raises `StoreUnavailable`."""
        return cls(open_database(url, "gateway.background.migrations"))

    def close(self) -> None:
        """Finish the waiting writes and let others take what is in hand here."""
        self._presence.close()
        self._database.close()

    def add(self, model: str, request: bytes, *, max_price_units: int, now_ms: int, expires_ms: int) -> Task:
        """Keep a request until a seller is idle. Raises `BacklogFull`, `StoreUnavailable`."""
        task = Task(f"b{secrets.token_hex(8)}", model, request, max_price_units, now_ms, expires_ms)

        def write(connection: Connection) -> None:
            (waiting,) = connection.execute(
                "SELECT count(*) FROM tasks WHERE state IN ('waiting', 'buying')"
            ).fetchone()
            if waiting >= TASKS_MAX:
                raise BacklogFull(f"{waiting} tasks wait, expected at most {TASKS_MAX}")
            connection.execute(
                """INSERT INTO tasks (id, model, request, max_price_units, made_ms, expires_ms, state, ask_at_ms)
                   VALUES (?, ?, ?, ?, ?, ?, 'waiting', ?)""",
                (task.id, model, request, str(max_price_units), now_ms, expires_ms, now_ms),
            )

        self._database.transact(write)
        return task

    def due(self, now_ms: int, count: int) -> Sequence[Task]:
        """Return up to `count` tasks that may be bought or asked for now, the oldest first.

        Those that no process has, and those of a process that has ended.
        """

        query = """SELECT * FROM tasks WHERE state IN ('waiting', 'buying') AND ask_at_ms <= ?
                       AND (owner IS NULL OR owner <> ?) ORDER BY made_ms, id LIMIT ?"""
        values = (now_ms, self._presence.id, count)
        rows = self._database.read(lambda connection: connection.execute(query, values).fetchall())
        owners = {row["owner"] for row in rows} - {None}
        alive = {owner for owner in owners if self._database.life_of(owner) is Life.ALIVE}
        return [_task(row) for row in rows if row["owner"] not in alive]

    def take(self, task: Task, purchase: str) -> bool:
        """Write down, synced, that a task is about to be paid for from `purchase`; False when another process has it.

        A task whose payment may have left keeps the purchase that it was paid from.
        """

        def write(connection: Connection) -> bool:
            row = connection.execute("SELECT state, owner, attempt FROM tasks WHERE id = ?", (task.id,)).fetchone()
            if row is None or (row["state"], row["attempt"]) != (task.state, task.attempt):
                return False
            owner = row["owner"]
            if owner is not None and self._database.life_of(owner) is Life.ALIVE:
                return False
            connection.execute(
                """UPDATE tasks SET state = 'buying', owner = ?, purchase = coalesce(purchase, ?) WHERE id = ?""",
                (self._presence.id, purchase, task.id),
            )
            return True

        self._presence.hold()
        return self._database.transact(write)

    async def put_off(self, task: Task, ask_at_ms: int, *, is_unpaid: bool, reason: str) -> None:
        """Let a task wait. One that is certainly unpaid may be bought elsewhere, under another key.

        Nothing happens to a task that another process has taken over: that one may be paying for it.
        """

        def write(connection: Connection) -> None:
            put_off = connection.execute(
                "UPDATE tasks SET owner = NULL, ask_at_ms = ?, put_off = put_off + 1, reason = ?"
                " WHERE id = ? AND owner = ?",
                (ask_at_ms, reason, task.id, self._presence.id),
            ).rowcount
            if put_off and is_unpaid:
                connection.execute(
                    "UPDATE tasks SET state = 'waiting', purchase = NULL, attempt = attempt + 1 WHERE id = ?",
                    (task.id,),
                )

        await self._database.write(write)

    async def end(self, task: Task, *, now_ms: int, paid_units: int, result: str | None, reason: str | None) -> None:
        """Write down what came of a task and what it cost; `result` None means that it failed.

        Nothing happens to a task that another process has taken over, and will end.
        """
        data = None if result is None else result.encode()
        state = "failed" if result is None else "done"
        await self._database.write(
            lambda connection: connection.execute(
                """UPDATE tasks SET state = ?, owner = NULL, paid_units = ?, result = ?, reason = ?, ended_ms = ?
                   WHERE id = ? AND state = 'buying' AND owner = ?""",
                (state, str(paid_units), data, reason, now_ms, task.id, self._presence.id),
            )
        )

    def sweep(self, now_ms: int) -> None:
        """Drop what waited too long and was not bought, and forget what ended long ago."""

        def write(connection: Connection) -> None:
            connection.execute(
                """UPDATE tasks SET state = 'expired', ended_ms = ?, reason = 'nobody was idle at its price in time'
                   WHERE state = 'waiting' AND expires_ms <= ?""",
                (now_ms, now_ms),
            )
            connection.execute("DELETE FROM tasks WHERE ended_ms < ?", (now_ms - KEPT_S * 1000,))

        self._database.transact(write, durable=False)

    def cancel(self, task_id: str, now_ms: int) -> None:
        """Drop a task that waits. Raises `NameUnknown`, or `RequestInProgress` where it may be paid for."""

        def write(connection: Connection) -> None:
            row = connection.execute("SELECT state FROM tasks WHERE id = ?", (task_id,)).fetchone()
            if row is None:
                raise _unknown(task_id)
            if row["state"] != "waiting":
                raise RequestInProgress(f"task {task_id}: it is {row['state']}", remedy="only what waits is cancelled")
            connection.execute("UPDATE tasks SET state = 'cancelled', ended_ms = ? WHERE id = ?", (now_ms, task_id))

        self._database.transact(write)

    def find(self, task_id: str) -> Task:
        """Return a task. Raises `NameUnknown`."""
        row = self._database.read(
            lambda connection: connection.execute("SELECT * FROM tasks WHERE id = ?", (task_id,)).fetchone()
        )
        if row is None:
            raise _unknown(task_id)
        return _task(row)

    def recent(self, count: int) -> Sequence[Task]:
        """Return the latest `count` tasks, the newest first."""
        return self._database.read(
            lambda connection: [
                _task(row)
                for row in connection.execute(
                    "SELECT * FROM tasks ORDER BY made_ms DESC, id DESC LIMIT ?", (count,)
                ).fetchall()
            ]
        )

    def counts(self) -> Mapping[str, int]:
        """Return how many tasks there are in each state."""
        return self._database.read(
            lambda connection: dict(
                map(tuple, connection.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall())
            )
        )


def _unknown(task_id: str) -> NameUnknown:
    return NameUnknown(f"no task is called {task_id[:80]!r}", remedy="see `farebox background list`")


def _task(row: Row) -> Task:
    return Task(
        id=row["id"],
        model=row["model"],
        request=bytes(row["request"]),
        max_price_units=int(row["max_price_units"]),
        made_ms=row["made_ms"],
        expires_ms=row["expires_ms"],
        state=row["state"],
        attempt=row["attempt"],
        purchase=row["purchase"],
        put_off=row["put_off"],
        paid_units=None if row["paid_units"] is None else int(row["paid_units"]),
        result=None if row["result"] is None else bytes(row["result"]).decode(),
        reason=row["reason"],
        ended_ms=row["ended_ms"],
    )

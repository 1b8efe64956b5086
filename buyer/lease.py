"""Workers: who may claim which authorizations, and what becomes of a worker that died.

A worker is one process that spends. It is alive as long as the store shows it so (`contracts.storage.presence`), which
no `kill -9`, reused process id or second container can confuse. The store says what it had in hand:

- same era: every write it was told of is there, so every row is in the state it says. What it had not sent goes back to
  the pool; what it had sent is UNKNOWN.
- another era (the machine was started anew, the server is another one), or a store that came without its signs of life:
  the last writes may be gone, so every row of its lease is UNKNOWN until the chain has spoken.

A worker may be taken for dead while it lives, when its connection to the server was lost. Each of its steps asks for
its own lease and then finds nothing; before it takes another lease it shows itself under a new name.
"""

from __future__ import annotations

import os
import time

from buyer.budgets import recount
from buyer.moves import move_sql
from contracts.lifecycle import AuthorizationEvent
from contracts.storage import Connection, Database, Life

__all__ = ["RELEASE_COLUMNS", "Worker", "is_known", "recover"]

# What an authorization that never left forgets of the request that had claimed it.
RELEASE_COLUMNS = (
    "request_key = NULL, fingerprint = NULL, route = NULL, claimed_s = NULL, request_digest = NULL, client_key = NULL"
)

# A spent one is leased while its answer is on its way to whoever asked.
_LET_GO = "UPDATE authorizations SET lease = NULL WHERE lease = :lease AND state IN ('ready', 'spent')"
_RETURN_CLAIMED = move_sql(AuthorizationEvent.ABORT, f"lease = NULL, {RELEASE_COLUMNS}", "lease = :lease")
_LOSE_SENT = move_sql(
    AuthorizationEvent.LOST, "lease = NULL, reason = 'the process ended before the answer came'", "lease = :lease"
)
_LOSE_ALL = move_sql(
    AuthorizationEvent.POWER_LOST,
    "lease = NULL, reason = 'the machine went down while this was in use'",
    "lease = :lease",
)


class Worker:
    """This process as a holder of leases, from construction to `close`. `era` is the store's at its start."""

    def __init__(self, database: Database, era: str) -> None:
        self.pid = os.getpid()
        self._database = database
        self._era = era
        # The sign of life comes before the row: a row without one is a dead worker.
        self._presence = database.presence()
        self.id = self._presence.id
        row = (self.id, era, self.pid, int(time.time()))
        try:
            database.transact(lambda connection: connection.execute("INSERT INTO workers VALUES (?, ?, ?, ?)", row))
        except BaseException:
            self._presence.close()
            raise

    def holds(self, era: str) -> bool:
        """Tell whether others still see this worker, and nothing of its writes can have been lost.

        Raises `StoreUnavailable` when that cannot be known.
        """
        self._presence.hold()
        return era == self._era and self._database.read(lambda connection: is_known(connection, self.id))

    def abandon(self) -> None:
        """Stop being seen; whoever recovers next settles what is left of the lease."""
        self._presence.close()

    def close(self) -> None:
        """Give back what was not sent; what is still waiting for an answer becomes UNKNOWN."""
        try:
            self._database.transact(self._end)
        finally:
            self._presence.close()

    def _end(self, connection: Connection) -> None:
        _end(connection, self.id)
        recount(connection)


def is_known(connection: Connection, worker_id: str) -> bool:
    """Tell whether a worker is on the books; one that was taken for dead is not."""
    return connection.execute("SELECT 1 FROM workers WHERE id = ?", (worker_id,)).fetchone() is not None


def recover(database: Database, era: str) -> int:
    """Settle the leases of dead workers and return how many workers that were."""

    def settle(connection: Connection) -> int:
        dead = 0
        for worker_id, worker_era in connection.execute("SELECT id, boot_id FROM workers").fetchall():
            life = database.life_of(worker_id)
            if life is Life.ALIVE:
                continue
            if life is Life.ENDED and worker_era == era:
                _end(connection, worker_id)
            else:
                _run(connection, worker_id, _LOSE_ALL, _LET_GO)
            database.forget(worker_id)
            dead += 1
        if dead:
            recount(connection)
        return dead

    has_workers = database.read(lambda connection: connection.execute("SELECT 1 FROM workers LIMIT 1").fetchone())
    return database.transact(settle) if has_workers else 0


def _end(connection: Connection, worker_id: str) -> None:
    _run(connection, worker_id, _LET_GO, _RETURN_CLAIMED, _LOSE_SENT)


def _run(connection: Connection, worker_id: str, *statements: str) -> None:
    """End the leases of a worker by these statements, and strike it off the books."""
    for statement in statements:
        connection.execute(statement, {"lease": worker_id})
    connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,))

"""Workers: who may claim which authorizations, and what becomes of a worker that died.

A worker is one process that spends. It is alive as long as the store shows it so (`contracts.storage.presence`), which
no `kill -9`, reused process id or second container can confuse. The store says what it had in hand:

- same era: every write it was told of is there, so once its tail is entered (`buyer.tails`), every row is in the state
  it says. What it had not sent goes back to the pool; what it had sent is UNKNOWN.
- another era (the machine was started anew, the server is another one), or a store that came without its signs of life
  or without the tail: the last writes may be gone, so every row of its lease is UNKNOWN until the chain has spoken.

A worker may be taken for dead while it lives, when its connection to the server was lost. Each of its steps asks for
its own lease and then finds nothing; before it takes another lease it shows itself under a new name.
"""

from __future__ import annotations

import os
import time

from buyer.budgets import recount
from buyer.endings import end_lease, is_known, lose_lease
from buyer.tails import Tails
from contracts.storage import Connection, Database, Life

__all__ = ["Worker", "recover"]


class Worker:
    """This process as a holder of leases, from construction to `close`. `era` is the store's at its start."""

    def __init__(self, database: Database, era: str, tails: Tails | None) -> None:
        self.pid = os.getpid()
        self._database = database
        self._era = era
        self._tails = tails
        # The sign of life comes before the row: a row without one is a dead worker.
        self._presence = database.presence()
        self.id = self._presence.id
        query = "INSERT INTO workers (id, boot_id, pid, started_s) VALUES (?, ?, ?, ?)"
        row = (self.id, era, self.pid, int(time.time()))
        try:
            database.transact(lambda connection: connection.execute(query, row), bare=True)
        except BaseException:
            self._presence.close()
            raise

    def holds(self, era: str) -> bool:
        """Tell whether others still see this worker, and nothing of its writes can have been lost.

        Raises `StoreUnavailable` when that cannot be known.
        """
        self._presence.hold()
        return era == self._era and self._database.read(self._is_whole, bare=True)

    def abandon(self) -> None:
        """Stop being seen; whoever recovers next settles what is left of the lease."""
        self._presence.close()

    def close(self) -> None:
        """Give back what was not sent; what is still waiting for an answer becomes UNKNOWN."""
        try:
            self._database.transact(self._end, bare=True)
        finally:
            self._presence.close()

    def _is_whole(self, connection: Connection) -> bool:
        return is_known(connection, self.id) and (self._tails is None or self._tails.is_there(connection, self.id))

    def _end(self, connection: Connection) -> None:
        if self._tails is not None:
            self._tails.enter_one(connection, self.id)
        end_lease(connection, self.id)
        recount(connection)


def recover(database: Database, era: str, tails: Tails | None) -> int:
    """Settle the leases of dead workers and return how many workers that were."""

    def settle(connection: Connection) -> int:
        dead = 0
        for worker_id, worker_era in connection.execute("SELECT id, boot_id FROM workers").fetchall():
            life = database.life_of(worker_id)
            if life is Life.ALIVE:
                continue
            if tails is not None:
                tails.enter_one(connection, worker_id)
            if life is Life.ENDED and worker_era == era:
                end_lease(connection, worker_id)
            else:
                lose_lease(connection, worker_id)
            database.forget(worker_id)
            dead += 1
        if dead:
            recount(connection)
        return dead

    def known(connection: Connection) -> set[str]:
        return {row["id"] for row in connection.execute("SELECT id FROM workers")}

    if not database.read(known, bare=True):
        return 0
    dead = database.transact(settle, bare=True)
    if tails is not None and dead:
        tails.sweep(database.read(known, bare=True))
    return dead

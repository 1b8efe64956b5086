"""Workers: who may claim which authorizations, and what becomes of a worker that died.

A worker is one process that spends. It is alive as long as the kernel holds its lock file for it, which no `kill -9`,
reused process id or second container can confuse. The store says what it had in hand:

- same boot: its unsynced writes survived, so every row is in the state it says. What it had not sent goes back to the
  pool; what it had sent is UNKNOWN.
- another boot, or a store that came without its lock files: the last writes may be gone, so every row of its lease is
  UNKNOWN until the chain has spoken.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from buyer.home import Home
from buyer.moves import move_sql
from contracts.errors import StoreUnavailable
from contracts.lifecycle import AuthorizationEvent
from contracts.storage import Connection, Database

__all__ = ["RELEASE_COLUMNS", "Worker", "boot_id", "recover"]

# What an authorization that never left forgets of the request that had claimed it.
RELEASE_COLUMNS = "request_key = NULL, fingerprint = NULL, route = NULL, claimed_s = NULL"

_RETURN_READY = "UPDATE authorizations SET lease = NULL WHERE lease = :lease AND state = 'ready'"
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
    """This process as a holder of leases, from construction to `close`."""

    def __init__(self, database: Database, home: Home, boot: str) -> None:
        self.id = secrets.token_hex(8)
        self.pid = os.getpid()
        self._database = database
        self._path = _lock_path(home, self.id)
        # The lock comes before the row: a row without a held lock is a dead worker.
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        row = (self.id, boot, self.pid, int(time.time()))
        try:
            database.transact(lambda connection: connection.execute("INSERT INTO workers VALUES (?, ?, ?, ?)", row))
        except BaseException:
            self._unlock()
            raise

    def close(self) -> None:
        """Give back what was not sent; what is still waiting for an answer becomes UNKNOWN."""
        try:
            self._database.transact(lambda connection: _end(connection, self.id))
        finally:
            self._unlock()

    def _unlock(self) -> None:
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


def recover(database: Database, home: Home, boot: str) -> int:
    """Settle the leases of dead workers and return how many workers that were."""

    def settle(connection: Connection) -> int:
        dead = 0
        for worker_id, worker_boot in connection.execute("SELECT id, boot_id FROM workers").fetchall():
            path = _lock_path(home, worker_id)
            held_by_nobody = _is_free(path)
            if held_by_nobody is False:
                continue
            if held_by_nobody and worker_boot == boot:
                _end(connection, worker_id)
            else:
                connection.execute(_LOSE_ALL, {"lease": worker_id})
                connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,))
            path.unlink(missing_ok=True)
            dead += 1
        return dead

    has_workers = database.read(lambda connection: connection.execute("SELECT 1 FROM workers LIMIT 1").fetchone())
    return database.transact(settle) if has_workers else 0


def boot_id() -> str:
    """Return what differs after every start of this machine; unique where the system tells nothing, which is safe."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(command, capture_output=True, check=True, timeout=5, text=True).stdout.strip()
    return secrets.token_hex(16)


def _end(connection: Connection, worker_id: str) -> None:
    for statement in (_RETURN_READY, _RETURN_CLAIMED, _LOSE_SENT):
        connection.execute(statement, {"lease": worker_id})
    connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,))


def _is_free(path: Path) -> bool | None:
    """Tell whether nobody holds the lock file; None when there is none, as in a restored copy of the store."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lock_path(home: Home, worker_id: str) -> Path:
    return home.folder("workers") / f"{worker_id}.lock"

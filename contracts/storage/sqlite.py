"""SQLite as a book of account: explicit durability per write, grouped commits, numbered migrations.

Two kinds of write, and the caller says which:

- `durable=True`: the commit is synced to disk before the call returns. Survives power loss. Several waiting writes
  share one sync, so a busy process pays for the disk once per group.
- `durable=False`: the commit is in the kernel when the call returns. Survives `kill -9`, not power loss.

Other processes of this machine may open the same file; their transactions serialise, and nobody waits longer than
`STORE_BUSY_TIMEOUT_S`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from contracts.errors import StoreUnavailable
from contracts.limits import STORE_BUSY_TIMEOUT_S, STORE_LOG_PAGES_MAX, STORE_LOOP_WAIT_S
from contracts.storage.connection import Conflict, Connection, StoreBusy, Work
from contracts.storage.database import Database
from contracts.storage.disk import check_disk
from contracts.storage.migrations import Script, due_scripts, read_scripts
from contracts.storage.presence import FilePresence, Life, boot_id, life_by_lock, lock_file, locked_file
from contracts.storage.url import sqlite_file

__all__ = ["SqliteDatabase", "open_sqlite"]

T = TypeVar("T")

_BUSY_POLL_S = 0.01
# Nobody of this process connects to a file that another thread is just making (see `_make`).
_OPENING = threading.Lock()


def open_sqlite(url: str, migrations_package: str) -> SqliteDatabase:
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`; see `open_database`."""
    scripts = read_scripts(migrations_package)
    database = SqliteDatabase(sqlite_file(url))
    try:
        database.migrate(scripts)
    except BaseException:
        database.close()
        raise
    return database


class SqliteDatabase(Database):
    """One SQLite file, mode 0600, open for this process. A broken file or a full disk is `StoreUnavailable`.

    A file on a network file system is `ConfigInvalid` (see `contracts.storage.disk`).
    """

    def __init__(self, path: Path) -> None:
        # A later change of the working directory must not move the books.
        self.path = path = path.absolute()
        super().__init__(path.name)
        self._present = path.with_suffix(".present")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            check_disk(path.parent)
            with _OPENING:
                _make(path)
                self._writer = self._connect()
                self._reader = self._connect()
            _use_write_ahead_log(self._writer)
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {STORE_LOG_PAGES_MAX}")
            self._reader.execute("PRAGMA query_only = ON")
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"cannot open {path}: {error}") from None
        self._read_lock = threading.Lock()
        self._synced: bool | None = None
        self._patience_s = STORE_BUSY_TIMEOUT_S
        self._is_taken = False

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=STORE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    @property
    def is_local(self) -> bool:
        """See `Database.is_local`."""
        return True

    @property
    def is_free(self) -> bool:
        """See `Database.is_free`."""
        return not self._is_taken

    @property
    def folder(self) -> Path:
        """See `Database.folder`."""
        return self.path.parent

    def transact(self, work: Work[T], *, durable: bool = True, bare: bool = False) -> T:
        """See `Database.transact`."""
        if not self._write_lock.acquire(timeout=self._patience()):
            raise StoreBusy(f"{self.name}: database is locked")
        try:
            connection, beside = self._begin(durable), self.beside
            try:
                if beside is not None:
                    beside.begin()
                    if not bare:
                        beside.call_in(connection)
                result = work(connection)
                self._commit()
            except sqlite3.Error as error:
                self._roll_back()
                raise self._told(error) from None
            except BaseException:
                self._roll_back()
                raise
            if beside is not None:
                beside.committed()
            return result
        finally:
            self._write_lock.release()

    def read(self, work: Work[T], *, bare: bool = False) -> T:
        """See `Database.read`."""
        beside = None if bare else self.beside
        if beside is not None and self._look(beside.is_behind):
            self.transact(beside.enter, durable=False, bare=True)
        return self._look(work)

    def _look(self, work: Work[T]) -> T:
        with self._read_lock:
            try:
                return work(self._reader)
            except sqlite3.Error as error:
                raise StoreUnavailable(f"{self.name}: {error}") from None

    def presence(self) -> FilePresence:
        """See `Database.presence`: lock files in a folder `.present` beside the file."""
        return FilePresence(self._present)

    def life_of(self, presence_id: str) -> Life:
        """See `Database.life_of`. A process without a lock file is untraceable."""
        return life_by_lock(lock_file(self._present, presence_id))

    def forget(self, presence_id: str) -> None:
        """See `Database.forget`."""
        lock_file(self._present, presence_id).unlink(missing_ok=True)

    def era(self) -> str:
        """See `Database.era`."""
        return boot_id()

    def exclusively(self, name: str) -> AbstractContextManager[None]:
        """See `Database.exclusively`: a lock file in a folder `.locks` beside the file."""
        return locked_file(self.path.with_suffix(".locks") / f"{name}.lock", name)

    def migrate(self, scripts: list[Script]) -> None:
        """Run what is due of a room's scripts, all in one transaction."""

        def apply(connection: Connection) -> None:
            for number, statements in due_scripts(scripts, _version(connection), str(self.path)):
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

        self.transact(apply)

    def _begin(self, durable: bool) -> sqlite3.Connection:
        try:
            if self._patience_s != (patience_s := self._patience()):
                self._writer.execute(f"PRAGMA busy_timeout = {round(patience_s * 1000)}")
                self._patience_s = patience_s
            if self._synced != durable:
                self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._synced = durable
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            self._is_taken = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            kind = StoreBusy if self._is_taken else StoreUnavailable
            raise kind(f"{self.name}: {error}") from None
        self._is_taken = False
        return self._writer

    def _patience(self) -> float:
        """Return how long the calling thread waits: for the other writers of this process, and then for the others."""
        return STORE_LOOP_WAIT_S if threading.get_ident() == self._loop_thread else STORE_BUSY_TIMEOUT_S

    def _commit(self) -> None:
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.name}: {error}") from None

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")

    def _is_inside(self) -> bool:
        return self._writer.in_transaction

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.IntegrityError):
            return Conflict(str(error))
        return StoreUnavailable(f"{self.name}: {error}") if isinstance(error, sqlite3.Error) else error

    def _touch(self, connection: Connection) -> None:
        connection.execute(f"PRAGMA user_version = {_version(connection)}")

    def _close(self) -> None:
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()


def _version(connection: Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _make(path: Path) -> None:
    """Make a store's file, private to its user, where there is none.

    A file that is there must not be opened, but by SQLite: with the first descriptor that a process closes, the system
    takes all locks it has on that file. The next process to close the store would then believe it is the last, and
    remove the log into which this one goes on writing.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait by itself when several processes make the same new file at once."""
    deadline_s = time.monotonic() + STORE_BUSY_TIMEOUT_S
    mode = None
    while mode is None:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(_BUSY_POLL_S)
    if mode != "wal":
        raise sqlite3.OperationalError("the file system does not support SQLite's write-ahead log")

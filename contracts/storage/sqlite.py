"""SQLite as a book of account: explicit durability per write, grouped commits, numbered migrations.

Two kinds of write, and the caller says which:

- `durable=True`: the commit is synced to disk before the call returns. Survives power loss. Several waiting writes
  share one sync, so a busy process pays for the disk once per group.
- `durable=False`: the commit is in the kernel when the call returns. Survives `kill -9`, not power loss.

Other processes may open the same file; their transactions serialise, and nobody waits longer than
`STORE_BUSY_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from contracts.errors import ConfigInvalid, StoreUnavailable
from contracts.limits import STORE_BUSY_TIMEOUT_S, STORE_GROUP_MAX, STORE_QUEUE_MAX

__all__ = ["Database", "open_database"]

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_BUSY_POLL_S = 0.01
_MIGRATION_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")


def open_database(url: str, migrations_package: str) -> Database:
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db` and run the migrations of a room.

    The file is made with mode 0600. `migrations_package` is a package with files `0001_name.sql`, `0002_…`; each runs
    once, in order, all that are due in one transaction. Raises `ConfigInvalid` for another URL, `StoreUnavailable` when
    the file cannot be opened or was written by a newer Farebox.
    """
    prefix = "sqlite:///"
    name = url.removeprefix(prefix)
    if not url.startswith(prefix) or not name or name == ":memory:":
        raise ConfigInvalid(f"store: expected sqlite:///file.db, got {url[:80]!r}")
    database = Database(Path(name).expanduser())
    try:
        _migrate(database, migrations_package)
    except BaseException:
        database.close()
        raise
    return database


class Database:
    """One SQLite file, open for this process.

    `transact` runs a function inside one write transaction, on the caller's thread. `write` does the same from asyncio
    without blocking the loop, joining waiting writes into one commit. A function that raises is rolled back alone.
    `read` runs a function on a read-only connection. Everything raises `StoreUnavailable` when the disk or the lock
    says no; then nothing was written. A broken constraint stays `sqlite3.IntegrityError`: it is the caller's to answer.
    """

    def __init__(self, path: Path) -> None:
        # A later change of the working directory must not move the books.
        self.path = path = path.absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer = self._connect()
            self._reader = self._connect()
            _use_write_ahead_log(self._writer)
            self._reader.execute("PRAGMA query_only = ON")
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"cannot open {path}: {error}") from None
        self._gate = threading.Lock()
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._synced: bool | None = None
        self._pending: queue.Queue[_Pending | None] = queue.Queue(STORE_QUEUE_MAX)
        self._thread: threading.Thread | None = None
        self._closed = False

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=STORE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def transact(self, work: Work[T], *, durable: bool = True) -> T:
        """Run `work` in one write transaction and return its result once it is committed."""
        with self._write_lock:
            self._begin(durable)
            try:
                result = work(self._writer)
                self._commit()
            except sqlite3.Error as error:
                self._roll_back()
                raise self._told(error) from None
            except BaseException:
                self._roll_back()
                raise
            return result

    async def write(self, work: Work[T], *, durable: bool = True) -> T:
        """`transact` for asyncio: waits for the next group commit. Raises `StoreUnavailable` when the queue is full."""
        pending = _Pending(work, durable, Future())
        with self._gate:
            self._start_thread()
            try:
                self._pending.put_nowait(pending)
            except queue.Full:
                raise StoreUnavailable(f"{self.path.name}: {STORE_QUEUE_MAX} writes are waiting") from None
        # A cancelled caller must not cancel the write: it may be committed already.
        result: T = await asyncio.shield(asyncio.wrap_future(pending.result))
        return result

    def read(self, work: Work[T]) -> T:
        """Run `work` on a read-only connection, outside any write transaction."""
        with self._read_lock:
            try:
                return work(self._reader)
            except sqlite3.Error as error:
                raise StoreUnavailable(f"{self.path.name}: {error}") from None

    def close(self) -> None:
        """Finish the waiting writes and close the file. Further calls raise `StoreUnavailable`."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        if self._thread is not None:
            self._pending.put(None)
            self._thread.join()
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    def _begin(self, durable: bool) -> None:
        try:
            if self._synced != durable:
                self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._synced = durable
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path.name}: {error}") from None

    def _commit(self) -> None:
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path.name}: {error}") from None

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")

    def _told(self, error: BaseException) -> BaseException:
        """Return what the caller is told: the store's own failures by our name, everything else as it is."""
        if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
            return StoreUnavailable(f"{self.path.name}: {error}")
        return error

    def _start_thread(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self.path.name}: is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve_writes, name=f"writer {self.path.name}", daemon=True)
            self._thread.start()

    def _serve_writes(self) -> None:
        stopping = False
        while not stopping:
            group: list[_Pending] = []
            head = self._pending.get()
            while head is not None:
                group.append(head)
                if len(group) == STORE_GROUP_MAX:
                    break
                try:
                    head = self._pending.get_nowait()
                except queue.Empty:
                    break
            stopping = head is None
            if group:
                self._commit_group(group)

    def _commit_group(self, group: list[_Pending]) -> None:
        """Run every member under its own savepoint, commit once, and only then report."""
        with self._write_lock:
            try:
                self._begin(any(pending.durable for pending in group))
                outcomes = [self._attempt(pending.work) for pending in group]
                self._commit()
            except BaseException as error:  # noqa: BLE001 - handed to every waiting caller
                self._roll_back()
                outcomes = [(None, self._told(error)) for _ in group]
        for pending, (result, failure) in zip(group, outcomes, strict=True):
            if failure is not None:
                pending.result.set_exception(failure)
            else:
                pending.result.set_result(result)

    def _attempt(self, work: Work[Any]) -> tuple[Any, BaseException | None]:
        self._writer.execute("SAVEPOINT member")
        try:
            result = work(self._writer)
        except BaseException as error:
            if not self._writer.in_transaction:
                raise  # a full disk makes SQLite give up the whole group
            self._writer.execute("ROLLBACK TO member")
            self._writer.execute("RELEASE member")
            return None, self._told(error)
        self._writer.execute("RELEASE member")
        return result, None


class _Pending:
    __slots__ = ("durable", "result", "work")

    def __init__(self, work: Work[Any], durable: bool, result: Future[Any]) -> None:
        self.work, self.durable, self.result = work, durable, result


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


def _migrate(database: Database, package: str) -> None:
    scripts = sorted(
        (int(match[1]), entry.read_text("utf-8"))
        for entry in resources.files(package).iterdir()
        if (match := _MIGRATION_NAME.fullmatch(entry.name))
    )
    numbers = [number for number, _ in scripts]
    assert numbers == list(range(1, len(numbers) + 1)), f"{package}: migrations {numbers} skip or repeat a number"

    def apply(connection: sqlite3.Connection) -> None:
        done = connection.execute("PRAGMA user_version").fetchone()[0]
        if scripts and done > scripts[-1][0]:
            raise StoreUnavailable(f"{database.path} was written by a newer Farebox (version {done})")
        for number, script in scripts:
            if number > done:
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    database.transact(apply)


def _statements(script: str) -> list[str]:
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    # What is left is a comment, or a last statement without its semicolon.
    return [*statements, current] if current.strip() else statements

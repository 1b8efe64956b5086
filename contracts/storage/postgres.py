"""PostgreSQL as a book of account that many machines share.

One writer at a time per room, as SQLite has it: each write transaction first takes the room's advisory lock and keeps
it until the commit, so what it read cannot have changed (READ COMMITTED sees all that was committed before each
statement, and nobody else commits). Waiting writes of a process share one transaction and one sync.

Every commit is synced, `durable=False` too: the round trips cost more than the server's disk. The answer to a commit
can be lost with the connection. Then nobody knows whether it was written: the caller is told `StoreUnavailable`, and
nothing is repeated here. Rows, uniques and the `WHERE lease = …` of every step stay the last guard. The next call
connects anew.

What a second replica costs the first: they take turns, so each waits for the other's group, at most `STORE_GROUP_MAX`
writes of some round trips each and one sync. Reads wait for nobody.

Locks and settings live as long as their connection: a pooler in between must pool sessions, not transactions.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TypeVar

import psycopg

from contracts.errors import RequestInProgress, StoreUnavailable
from contracts.storage.advisory import ServerPresence, life_of, number_of, try_lock, turn, unlock
from contracts.storage.connection import Conflict, Connection, Work
from contracts.storage.database import Database
from contracts.storage.dialect import postgres_ddl
from contracts.storage.migrations import Script, due_scripts, read_scripts
from contracts.storage.presence import Life
from contracts.storage.session import Server, Session, unavailable

__all__ = ["PostgresDatabase", "open_postgres"]

T = TypeVar("T")

_SCHEMA = re.compile(r"[a-z][a-z0-9_]*")
_ERA = """
    SELECT (SELECT system_identifier FROM pg_control_system()), pg_database.oid,
        left(pg_walfile_name(pg_current_wal_lsn()), 8)
    FROM pg_database WHERE datname = current_database()
"""


def open_postgres(url: str, migrations_package: str) -> PostgresDatabase:
    """Open `postgresql://user@host/database`; the room's tables are in the schema `farebox_<room>`.

    A part of a room that keeps migrations of its own has a schema of its own: `gateway.bidder.migrations` keeps its
    tables in `farebox_gateway_bidder`.
    """
    room = migrations_package.rpartition(".")[0].replace(".", "_")
    assert _SCHEMA.fullmatch(room), f"{room!r} does not name a schema"
    scripts = read_scripts(migrations_package)
    server = Server(url, f"farebox_{room}")
    server.check()
    database = PostgresDatabase(server)
    try:
        database.migrate(scripts)
    except BaseException:
        database.close()
        raise
    return database


class PostgresDatabase(Database):
    """A room's schema on a server. One connection writes, one reads; both are made when needed and made again."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.name)
        self._server = server
        self._turn = f"BEGIN; {turn(server.schema)}"
        self._writer: Session | None = None
        self._reader: Session | None = None
        self._read_lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        """See `Database.is_local`."""
        return False

    @property
    def folder(self) -> None:
        """See `Database.folder`."""
        return None

    def transact(self, work: Work[T], *, durable: bool = True, bare: bool = False) -> T:  # noqa: ARG002 - as all are
        """See `Database.transact`. Threads that wait here share a commit."""
        answer: Future[T] = Future()
        self._enqueue(work, durable, answer)
        return answer.result()

    def read(self, work: Work[T], *, bare: bool = False) -> T:  # noqa: ARG002 - as all are
        """See `Database.read`."""
        with self._read_lock:
            while True:
                if self._closed:
                    raise StoreUnavailable(f"{self.name}: is closed")
                known = self._reader
                session = self._reader = known or self._server.connect(read_only=True)
                try:
                    return work(session)
                except psycopg.Error as error:
                    lost, self._reader = session.is_lost, None
                    session.close()
                    if not (lost and known):
                        raise unavailable(self.name, error) from None

    def presence(self) -> ServerPresence:
        """See `Database.presence`: a lock of the server's, held by a connection of its own."""
        return ServerPresence(self._server)

    def life_of(self, presence_id: str) -> Life:
        """See `Database.life_of`. Nobody is untraceable: the server knows every lock there is."""
        return self.read(lambda connection: life_of(connection, presence_id))

    def forget(self, presence_id: str) -> None:
        """See `Database.forget`. Nothing is left behind."""

    def era(self) -> str:
        """See `Database.era`. It changes with server and database (a restored copy) and timeline (a failover)."""
        with contextlib.closing(self._server.connect(read_only=True)) as session:
            try:
                return "-".join(str(value) for value in session.execute(_ERA).fetchone())
            except psycopg.Error as error:
                if error.sqlstate is None:
                    raise unavailable(self.name, error) from None
                return secrets.token_hex(16)  # a server that does not tell: every era is a new one, which is safe

    @contextlib.contextmanager
    def exclusively(self, name: str) -> Iterator[None]:
        """See `Database.exclusively`: a lock of the server's."""
        with contextlib.closing(self._server.connect()) as session:
            number = number_of(f"{self._server.schema} {name}")
            if not try_lock(session, number, self.name):
                raise RequestInProgress(
                    f"{name}: another farebox process is at work on it", remedy="wait until it is done"
                )
            try:
                yield
            finally:
                unlock(session, number)

    def migrate(self, scripts: list[Script]) -> None:
        """Run what is due of a room's scripts, all in one transaction."""
        schema = self._server.schema

        def apply(connection: Connection) -> None:
            (missing,) = connection.execute("SELECT to_regnamespace(?) IS NULL", (schema,)).fetchone()
            if missing:
                connection.execute(f"CREATE SCHEMA {schema}")
            connection.execute("CREATE TABLE IF NOT EXISTS migrations (version BIGINT PRIMARY KEY)")
            (done,) = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
            for number, statements in due_scripts(scripts, done, self.name):
                for statement in statements:
                    connection.execute(postgres_ddl(statement))
                connection.execute("INSERT INTO migrations (version) VALUES (?)", (number,))

        self.transact(apply)

    def _begin(self, durable: bool) -> Connection:
        known = self._writer
        session = self._writer = known or self._server.connect()
        try:
            session.run(self._turn)
        except psycopg.Error as error:
            if not (session.is_lost and known):
                raise self._told(error) from None
            # The server went away while nothing was under way, so nothing can have been written.
            session.close()
            self._writer = None
            return self._begin(durable)
        return session

    def _commit(self) -> None:
        assert self._writer is not None
        try:
            tag = self._writer.run("COMMIT")
        except psycopg.Error as error:
            if self._writer.is_lost:
                failure = StoreUnavailable(f"{self.name}: the connection broke in a commit; it may be written or not")
                raise failure from None
            raise self._told(error) from None
        if tag != "COMMIT":
            raise StoreUnavailable(f"{self.name}: the transaction had failed before its commit")

    def _roll_back(self) -> None:
        if self._writer is not None:
            self._writer.roll_back()
            if self._writer.is_lost:
                self._writer = None

    def _is_inside(self) -> bool:
        return self._writer is not None and not self._writer.is_lost and self._writer.is_inside

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, psycopg.IntegrityError):
            return Conflict(error.diag.message_primary or str(error))
        return unavailable(self.name, error) if isinstance(error, psycopg.Error) else error

    def _touch(self, connection: Connection) -> None:
        connection.execute("UPDATE migrations SET version = version WHERE version = 1")

    def _close(self) -> None:
        with self._write_lock, self._read_lock:
            for session in (self._writer, self._reader):
                if session is not None:
                    session.close()

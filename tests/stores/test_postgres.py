"""What only PostgreSQL has: a server that goes away, answers that are lost, and settings of its own."""

from __future__ import annotations

import builtins
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psycopg
import pytest

from contracts.errors import ConfigInvalid, StoreUnavailable
from contracts.storage import Connection, Database, Life, advisory, open_database, session, shown_store_url
from contracts.storage.dialect import postgres_ddl, postgres_statement
from tests.patience import PATIENCE_S, eventually
from tests.stores.parts import Migrations, held
from tests.stores.servers import OwnServer, Server

ENTRIES = {"0001_entries.sql": "CREATE TABLE entries (value INTEGER UNIQUE);\n"}


@pytest.fixture
def package(migrations: Migrations) -> str:
    return migrations(ENTRIES)


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.new_database()


@pytest.fixture
def store(url: str, package: str) -> Iterator[Database]:
    database = open_database(url, package)
    yield database
    database.close()


def insert(value: int) -> Callable[[Connection], Any]:
    return lambda connection: connection.execute("INSERT INTO entries VALUES (?)", (value,))


def values_in(database: Database) -> list[int]:
    rows = database.read(lambda connection: connection.execute("SELECT value FROM entries ORDER BY value").fetchall())
    return [row["value"] for row in rows]


def with_parameter(url: str, parameter: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{parameter}"


# A server that goes away


@pytest.fixture
def lasting(fragile: OwnServer, package: str) -> Iterator[Database]:
    """A store on a server that the test may stop."""
    database = open_database(fragile.new_database(), package)
    yield database
    database.close()


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
async def test_while_the_server_is_away_everything_says_so_and_afterwards_goes_on(
    fragile: OwnServer, lasting: Database, crash: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lasting.transact(insert(1), durable=False)
    presence = lasting.presence()
    fragile.stop(crash=crash)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"cannot be reached|terminating"):
            lasting.transact(insert(2))
        with pytest.raises(StoreUnavailable):
            await lasting.write(insert(3))
        with pytest.raises(StoreUnavailable):
            values_in(lasting)
        with pytest.raises(StoreUnavailable):
            presence.hold()
        with pytest.raises(StoreUnavailable):
            lasting.presence()
        with pytest.raises(StoreUnavailable):
            lasting.era()
        with pytest.raises(StoreUnavailable), lasting.exclusively("sign-p"):
            pass
    assert "socket" in caplog.text, "the log tells the operator where nobody answers"
    fragile.start()
    eventually(lambda: comes_back(lasting))
    assert values_in(lasting) == [1]
    await lasting.write(insert(4))
    presence.hold()
    assert lasting.life_of(presence.id) is Life.ALIVE
    assert values_in(lasting) == [1, 4]
    presence.close()


def comes_back(database: Database) -> bool:
    with contextlib.suppress(StoreUnavailable):
        values_in(database)
        return True
    return False


def test_a_restart_between_two_calls_is_not_noticed(fragile: OwnServer, lasting: Database) -> None:
    lasting.transact(insert(1))
    assert values_in(lasting) == [1]
    fragile.stop()
    fragile.start()
    lasting.transact(insert(2))
    assert values_in(lasting) == [1, 2]


async def test_a_server_that_dies_inside_a_transaction_leaves_nothing_of_it(
    fragile: OwnServer, lasting: Database
) -> None:
    def work(connection: Connection) -> None:
        insert(1)(connection)
        fragile.stop(crash=True)
        insert(2)(connection)

    with pytest.raises(StoreUnavailable):
        await lasting.write(work)
    fragile.start()
    eventually(lambda: comes_back(lasting))
    assert values_in(lasting) == []


def test_a_server_that_stands_still_is_given_up(
    fragile: OwnServer, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(fragile.new_database(), package)
    database.transact(insert(1))
    values_in(database)
    with fragile.frozen(), monkeypatch.context() as impatient:
        impatient.setattr(session, "STORE_ANSWER_TIMEOUT_S", 0.3)
        impatient.setattr(session, "STORE_CONNECT_TIMEOUT_S", 1)
        for call in (lambda: database.transact(insert(2)), lambda: values_in(database)):
            with pytest.raises(StoreUnavailable):
                call()
    eventually(lambda: comes_back(database))
    database.transact(insert(3))
    # The statements in flight may have reached the server: nobody was told that they were written.
    assert set(values_in(database)) - {2} == {1, 3}
    database.close()


class Proxy:
    """Stands between a client and a server's socket; `cut_at_commit` loses the answer to the next COMMIT."""

    def __init__(self, server_url: str) -> None:
        self._path = parse_qs(urlsplit(server_url).query)["host"][0] + "/.s.PGSQL.5432"
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        parts = urlsplit(server_url)
        self.url = urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{port}", query=""))
        self.cut_at_commit = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                cut = threading.Event()
                for work in (self._up, self._down):
                    thread = threading.Thread(target=work, args=(client, server, cut))
                    self._threads.append(thread)
                    thread.start()

    def _up(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.cut_at_commit and b"COMMIT" in data:
                    self.cut_at_commit = False
                    cut.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if cut.is_set():
                    break
                client.sendall(data)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        """Stop; every connection must have ended."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


async def test_a_commit_whose_answer_is_lost_is_unknown_and_never_repeated(fragile: OwnServer, package: str) -> None:
    proxy = Proxy(fragile.new_database())
    database = open_database(proxy.url, package)
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        connection.execute("INSERT INTO entries VALUES (?)", (len(runs),))

    proxy.cut_at_commit = True
    with pytest.raises(StoreUnavailable, match="may be written or not"):
        await database.write(work)
    assert len(runs) == 1
    # This time it was written. The next call finds its own way to the server.
    await database.write(insert(7))
    assert values_in(database) == [1, 7]
    database.close()
    proxy.close()


# Presence


def test_a_process_that_lost_its_connection_is_taken_for_ended_until_it_shows_itself_again(
    store: Database, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "STORE_PRESENCE_S", 3600)
    ours, theirs = store.presence(), store.presence()
    terminate_presences(url, keep=ours.id)
    assert store.life_of(theirs.id) is Life.ENDED
    theirs.hold()
    assert store.life_of(theirs.id) is Life.ALIVE
    for presence in (ours, theirs):
        presence.close()


def test_a_process_that_lost_its_connection_shows_itself_again_by_itself(store: Database, url: str) -> None:
    ours, theirs = store.presence(), store.presence()
    terminate_presences(url, keep=ours.id)
    eventually(lambda: store.life_of(theirs.id) is Life.ALIVE)
    for presence in (ours, theirs):
        presence.close()


def test_after_a_restart_of_the_server_nobody_is_taken_for_dead_too_soon(
    fragile: OwnServer, lasting: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "STORE_PRESENCE_S", 3600)
    presence = lasting.presence()
    fragile.stop()
    fragile.start()
    monkeypatch.setattr(advisory, "STORE_REJOIN_S", 3600)
    assert lasting.life_of(presence.id) is Life.ALIVE
    monkeypatch.setattr(advisory, "STORE_REJOIN_S", 0)
    assert lasting.life_of(presence.id) is Life.ENDED
    presence.hold()
    assert lasting.life_of(presence.id) is Life.ALIVE
    presence.close()


def terminate_presences(url: str, *, keep: str) -> None:
    """End the connections that hold locks of single numbers, except one, as a broken network would."""
    high, low = divmod(int(keep, 16), 1 << 32)
    query = """SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND NOT (classid::bigint = %s AND objid::bigint = %s)"""
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute(query, (high, low)).fetchall()


def test_a_restored_database_is_another_era(store: Database, url: str, postgres: Server, package: str) -> None:
    copy = open_database(postgres.new_database(), package)
    assert copy.era() != store.era()
    copy.close()


# Settings


async def test_every_commit_is_synced_whatever_the_role_says(url: str, package: str) -> None:
    relaxed = open_database(with_parameter(url, "options=-c%20synchronous_commit%3Doff"), package)
    query = "SELECT current_setting('synchronous_commit')"
    synced = await relaxed.write(lambda connection: connection.execute(query).fetchone()[0], durable=False)
    assert synced == "on"
    relaxed.close()


def test_a_server_that_does_not_sync_is_refused(fragile: OwnServer, package: str) -> None:
    url = fragile.new_database()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    eventually(lambda: setting(url, "fsync") == "off")
    with pytest.raises(ConfigInvalid, match="fsync = off"):
        open_database(url, package)


def setting(url: str, name: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
        assert row is not None
        return str(row[0])


async def test_a_process_that_stands_still_in_its_turn_loses_it(
    url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a busy machine to open the store in turns that it keeps.
    monkeypatch.setattr(session, "STORE_IDLE_TIMEOUT_S", 1)
    sleepy = open_database(url, package)
    monkeypatch.undo()
    store = open_database(url, package)
    holder = await held(sleepy)
    store.transact(insert(1))
    with pytest.raises(StoreUnavailable):
        await holder.release()
    sleepy.transact(insert(2))
    assert values_in(store) == [1, 2]
    sleepy.close()
    store.close()


async def test_a_table_that_a_newer_farebox_changes_is_read_anew(url: str, migrations: Migrations) -> None:
    old = open_database(url, migrations(ENTRIES, room="changing"))
    everything = "SELECT * FROM entries"
    for value in range(10):  # often enough for the server to remember its plan
        await old.write(insert(value))
        old.read(lambda connection: connection.execute(everything).fetchall())
        await old.write(lambda connection: connection.execute(everything).fetchall())
    grown = {**ENTRIES, "0002_more.sql": "ALTER TABLE entries ADD COLUMN note TEXT;\n"}
    open_database(url, migrations(grown, room="changing")).close()
    for _ in range(2):
        with contextlib.suppress(StoreUnavailable):
            old.read(lambda connection: connection.execute(everything).fetchall())
        with contextlib.suppress(StoreUnavailable):
            await old.write(lambda connection: connection.execute(everything).fetchall())
    assert len(old.read(lambda connection: connection.execute(everything).fetchall())) == 10
    assert len(await old.write(lambda connection: connection.execute(everything).fetchall())) == 10
    old.close()


def test_each_room_has_a_schema_of_its_own(url: str, migrations: Migrations) -> None:
    for room in ("left", "right"):
        open_database(url, migrations(ENTRIES, room=room)).close()
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'entries' ORDER BY 1").fetchall()
    assert [row[0] for row in rows] == ["farebox_left", "farebox_right"]


def test_a_role_that_may_not_make_schemas_needs_only_an_existing_one(url: str, package: str) -> None:
    schema = f"farebox_{package.split('.', maxsplit=1)[0]}"
    role = f"weak_{package.split('.', maxsplit=1)[0]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        try:
            weak = with_parameter(url, f"user={role}").replace("postgres:@", "")
            with pytest.raises(StoreUnavailable, match="permission denied"):
                open_database(weak, package)
            connection.execute(f"CREATE SCHEMA {schema} AUTHORIZATION {role}")
            database = open_database(weak, package)
            database.transact(insert(1))
            presence = database.presence()
            assert database.era() == open_and_tell_era(url, package)
            presence.close()
            database.close()
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


def open_and_tell_era(url: str, package: str) -> str:
    database = open_database(url, package)
    try:
        return database.era()
    finally:
        database.close()


# Words


def test_a_missing_driver_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = builtins.__import__

    def without_psycopg(name: str, *arguments: Any, **named: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "psycopg":
            raise ImportError(name)
        return real(name, *arguments, **named)

    for name in ("contracts.storage.postgres", "contracts.storage.advisory", "contracts.storage.session"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without_psycopg)
    with pytest.raises(ConfigInvalid) as caught:
        open_database("postgresql://localhost/farebox", package)
    assert "psycopg" in caught.value.message
    assert "farebox[postgres]" in caught.value.advice


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@host:99999999/db",
        "postgresql://u:s3cret@[::1/db",
        "postgresql://u:s3/cret@host/db",
        "postgresql://u:s3?cret@host/db",
        "postgresql://u:s3cret@host/db?nonsense=1",
        "postgresql://u:s3cret@127.0.0.1:1/db",
    ],
)
def test_a_password_is_never_shown(url: str, package: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises((ConfigInvalid, StoreUnavailable)) as caught:
        open_database(url, package)
    assert "cret" not in f"{caught.value} {caught.value.advice} {caplog.text} {shown_store_url(url)}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@db.example:5432/books?sslmode=require", "postgresql://u@db.example:5432/books"),
        ("postgres://db.example", "postgres://db.example"),
        ("postgresql:///books?host=/run/pg&password=pw", "postgresql:///books"),
        ("sqlite:///seller.db", "sqlite:///seller.db"),
        ("mysql://u:pw@h/db", "mysql://***@h/db"),
    ],
)
def test_a_store_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_store_url(url) == shown


@pytest.mark.parametrize(
    ("sql", "text", "names"),
    [
        ("SELECT ?, ?", "SELECT $1, $2", None),
        ("SELECT :b, :a, :b", "SELECT $1, $2, $1", ("b", "a")),
        ("SELECT '?', \"?\", ':a' -- ? :b\n, x::text", "SELECT '?', \"?\", ':a' -- ? :b\n, x::text", None),
        ("SELECT 'it''s ?', ?", "SELECT 'it''s ?', $1", None),
        ("SELECT 5 % 2", "SELECT 5 % 2", None),
    ],
)
def test_placeholders_are_numbered(sql: str, text: str, names: tuple[str, ...] | None) -> None:
    assert postgres_statement(sql) == (text, names)


def test_types_are_translated_in_tables_and_nowhere_else() -> None:
    script = """-- SQLite's INTEGER
CREATE TABLE a (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- an INTEGER
    b BLOB NOT NULL, t TEXT DEFAULT 'BLOB', n INTEGER REFERENCES c (id)
) STRICT, WITHOUT ROWID;"""
    assert (
        postgres_ddl(script)
        == """-- SQLite's INTEGER
CREATE TABLE a (
    id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, -- an INTEGER
    b BYTEA NOT NULL, t TEXT COLLATE "C" DEFAULT 'BLOB', n BIGINT REFERENCES c (id)
);"""
    )
    assert postgres_ddl("UPDATE a SET t = CAST(n AS TEXT);") == "UPDATE a SET t = CAST(n AS TEXT);"
    assert postgres_ddl("CREATE TABLE b (x INTEGER)\nWITHOUT ROWID;") == "CREATE TABLE b (x BIGINT);"


def test_after_a_failed_connection_calls_are_refused_without_trying_for_a_moment(
    fragile: OwnServer, lasting: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    values_in(lasting)
    fragile.stop()
    tried: list[float] = []
    connect = session.Server._connected

    def counted(server: session.Server, read_only: bool) -> session.Session:
        tried.append(time.monotonic())
        return connect(server, read_only)

    monkeypatch.setattr(session.Server, "_connected", counted)
    monkeypatch.setattr(session, "STORE_RECONNECT_PAUSE_S", 3600)
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            values_in(lasting)
    assert len(tried) == 1

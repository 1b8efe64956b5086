"""The book of account: what was reported written is written, what failed left nothing, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigInvalid, StoreUnavailable
from contracts.limits import STORE_GROUP_MAX, STORE_QUEUE_MAX
from contracts.storage import Database, open_database, sqlite

Work = Callable[[sqlite3.Connection], Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "books.db")
    database.transact(lambda connection: connection.execute("CREATE TABLE entries (value INTEGER UNIQUE)"))
    yield database
    database.close()


def insert(value: int) -> Work:
    return lambda connection: connection.execute("INSERT INTO entries VALUES (?)", (value,))


def values_in(database: Database) -> list[int]:
    rows = database.read(lambda connection: connection.execute("SELECT value FROM entries ORDER BY value").fetchall())
    return [row["value"] for row in rows]


class Broken(Exception):
    """What a caller's own function raises."""


def insert_then_fail(value: int) -> Work:
    def work(connection: sqlite3.Connection) -> None:
        insert(value)(connection)
        raise Broken

    return work


class Held:
    """A write that keeps the writer busy until `release`; writes made meanwhile form the next group."""

    def __init__(self, database: Database) -> None:
        self.started, self._release = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def work(connection: sqlite3.Connection) -> None:
            loop.call_soon_threadsafe(self.started.set)
            assert self._release.wait(60)

        self.write = asyncio.create_task(database.write(work, durable=False))

    async def release(self) -> None:
        self._release.set()
        await self.write


async def held(database: Database) -> Held:
    holder = Held(database)
    await holder.started.wait()
    return holder


async def start(*writes: Any) -> list[asyncio.Task[Any]]:
    """Return tasks that have all reached their place in the queue."""
    tasks = [asyncio.create_task(write) for write in writes]
    await asyncio.sleep(0)
    return tasks


# Opening


def test_a_store_is_private_to_its_user(tmp_path: Path) -> None:
    database = Database(tmp_path / "deep" / "folder" / "books.db")
    database.transact(lambda connection: connection.execute("CREATE TABLE entries (value)"))
    files = list(database.path.parent.iterdir())
    assert database.path in files
    assert len(files) > 1, "the write-ahead log is private, too"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    database.close()


def test_a_url_names_a_relative_or_an_absolute_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrations: Migrations
) -> None:
    monkeypatch.chdir(tmp_path)
    package = migrations({"0001_first.sql": "CREATE TABLE a (x);"})
    relative = open_database("sqlite:///books.db", package)
    absolute = open_database(f"sqlite:///{tmp_path}/other.db", package)
    assert (relative.path, absolute.path) == (tmp_path / "books.db", tmp_path / "other.db")
    relative.close()
    absolute.close()


@pytest.mark.parametrize(
    "url", ["", "books.db", "sqlite:books.db", "sqlite://books.db", "sqlite:///", "sqlite:///:memory:", "postgres://x"]
)
def test_another_url_is_refused(url: str, migrations: Migrations) -> None:
    with pytest.raises(ConfigInvalid, match=r"expected sqlite:///file\.db"):
        open_database(url, migrations({"0001_first.sql": "CREATE TABLE a (x);"}))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "books.db").write_bytes(b"a text about money\n" * 500)
    with pytest.raises(StoreUnavailable, match=r"cannot open .*books.db"):
        Database(tmp_path / "books.db")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot open"):
        Database(tmp_path / "file" / "books.db")


# Writing


def test_what_was_written_is_there_after_reopening(store: Database) -> None:
    store.transact(insert(1))
    store.transact(insert(2), durable=False)
    store.close()
    again = Database(store.path)
    assert values_in(again) == [1, 2]
    again.close()


def test_a_function_that_raises_leaves_nothing_and_its_error_comes_out(store: Database) -> None:
    with pytest.raises(Broken):
        store.transact(insert_then_fail(1))
    assert values_in(store) == []
    store.transact(insert(2))
    assert values_in(store) == [2]


def test_a_broken_constraint_is_the_callers_to_answer(store: Database) -> None:
    store.transact(insert(1))
    with pytest.raises(sqlite3.IntegrityError):
        store.transact(insert(1))


async def test_a_broken_constraint_is_the_callers_to_answer_in_a_group_too(store: Database) -> None:
    await store.write(insert(1))
    with pytest.raises(sqlite3.IntegrityError):
        await store.write(insert(1))


def test_reading_cannot_write(store: Database) -> None:
    with pytest.raises(StoreUnavailable, match="readonly"):
        store.read(insert(1))
    assert values_in(store) == []


async def test_a_write_returns_what_its_function_returns_once_it_is_committed(store: Database) -> None:
    assert await store.write(lambda connection: insert(1)(connection).rowcount) == 1
    other = sqlite3.connect(store.path)
    assert other.execute("SELECT value FROM entries").fetchall() == [(1,)]
    other.close()


@pytest.mark.parametrize(
    ("durable", "synchronous"), [([True], 2), ([False], 1), ([False, True, False], 2), ([False, False], 1)]
)
async def test_a_group_is_synced_when_one_member_asks_for_it(
    store: Database, durable: list[bool], synchronous: int
) -> None:
    def told(connection: sqlite3.Connection) -> int:
        level: int = connection.execute("PRAGMA synchronous").fetchone()[0]
        return level

    holder = await held(store)
    members = await start(*(store.write(told, durable=wanted) for wanted in durable))
    await holder.release()
    assert await asyncio.gather(*members) == [synchronous] * len(durable)


async def test_waiting_writes_share_one_commit(store: Database) -> None:
    statements: list[str] = []
    holder = await held(store)
    members = await start(*(store.write(insert(value)) for value in range(STORE_GROUP_MAX + 10)))
    store._writer.set_trace_callback(statements.append)
    await holder.release()
    await asyncio.gather(*members)
    assert statements.count("COMMIT") == 3  # the held one, a full group, the rest
    assert values_in(store) == list(range(STORE_GROUP_MAX + 10))


async def test_a_member_that_raises_is_rolled_back_alone(store: Database) -> None:
    holder = await held(store)
    first, broken, twice, last = await start(
        store.write(insert(1)), store.write(insert_then_fail(2)), store.write(insert(1)), store.write(insert(3))
    )
    await holder.release()
    await asyncio.gather(first, last)
    with pytest.raises(Broken):
        await broken
    with pytest.raises(sqlite3.IntegrityError):
        await twice
    assert values_in(store) == [1, 3]


async def test_a_cancelled_caller_does_not_cancel_its_write(store: Database) -> None:
    holder = await held(store)
    (member,) = await start(store.write(insert(1)))
    member.cancel()
    with pytest.raises(asyncio.CancelledError):
        await member
    await holder.release()
    await store.write(insert(2))
    assert values_in(store) == [1, 2]


async def test_a_full_queue_is_told_at_once_and_the_queued_are_written(store: Database) -> None:
    holder = await held(store)
    members = await start(*(store.write(insert(value), durable=False) for value in range(STORE_QUEUE_MAX)))
    with pytest.raises(StoreUnavailable, match=f"{STORE_QUEUE_MAX} writes are waiting"):
        await store.write(insert(-1))
    await holder.release()
    await asyncio.gather(*members)
    assert values_in(store) == list(range(STORE_QUEUE_MAX))


# Trouble


def test_another_processes_transaction_is_waited_for_and_then_given_up(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "STORE_BUSY_TIMEOUT_S", 0.05)
    impatient = Database(store.path)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        impatient.transact(insert(1))
    other.execute("COMMIT")
    impatient.transact(insert(2))
    assert values_in(store) == [2]
    other.close()
    impatient.close()


@pytest.fixture
def full(store: Database) -> Database:
    """The store on a disk with room for a few pages more."""
    pages = store.read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    store.transact(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 1}"))
    return store


def hog(connection: sqlite3.Connection) -> None:
    connection.executemany("INSERT INTO entries VALUES (?)", [(value,) for value in range(10_000, 20_000)])


def test_a_full_disk_is_told_by_its_name_and_nothing_was_written(full: Database) -> None:
    with pytest.raises(StoreUnavailable, match="full"):
        full.transact(hog)
    assert values_in(full) == []
    full.transact(insert(1))
    assert values_in(full) == [1]


async def test_a_disk_that_fills_within_a_group_is_told_and_what_was_reported_written_is(full: Database) -> None:
    holder = await held(full)
    members = await start(full.write(insert(1)), full.write(hog), full.write(insert(2)))
    await holder.release()
    first, hogs, last = await asyncio.gather(*members, return_exceptions=True)
    assert isinstance(hogs, StoreUnavailable)
    written = []
    for value, outcome in [(1, first), (2, last)]:
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, StoreUnavailable)
        else:
            written.append(value)
    assert values_in(full) == written
    await full.write(insert(3))
    assert values_in(full) == [*written, 3]


async def test_after_closing_every_call_says_so_and_closing_again_is_harmless(store: Database) -> None:
    await store.write(insert(1))
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable):
        store.transact(insert(2))
    with pytest.raises(StoreUnavailable):
        values_in(store)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.write(insert(2))


async def test_closing_finishes_the_waiting_writes(store: Database) -> None:
    holder = await held(store)
    members = await start(*(store.write(insert(value)) for value in range(20)))
    closing = asyncio.create_task(asyncio.to_thread(store.close))
    await holder.release()
    await closing
    await asyncio.gather(*members)
    again = Database(store.path)
    assert values_in(again) == list(range(20))
    again.close()


# Many processes

WRITER = """
import asyncio, sys
from pathlib import Path
from contracts.storage import Database

database = Database(Path(sys.argv[1]))
durable = sys.argv[2] == "durable"

def insert(value):
    return lambda connection: connection.execute("INSERT INTO entries VALUES (?)", (value,))

async def worker(number):
    for step in range(1_000_000):
        value = number * 1_000_000 + step
        await database.write(insert(value), durable=durable)
        sys.stdout.write(f"{value}\\n")
        sys.stdout.flush()

async def main():
    await asyncio.gather(*(worker(number) for number in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["durable", "unsynced"])
def test_what_was_reported_written_survives_kill_9(store: Database, durability: str) -> None:
    for wanted in (1, 40, 200):
        store.transact(lambda connection: connection.execute("DELETE FROM entries"))
        command = [sys.executable, "-c", WRITER, str(store.path), durability]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(wanted)]
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        reported = {int(line) for line in lines if line.endswith("\n")}
        assert len(reported) >= wanted
        survivor = Database(store.path)
        assert reported <= set(values_in(survivor))
        survivor.close()


def _count_up(path: Path, times: int) -> None:
    database = Database(path)

    def step(connection: sqlite3.Connection) -> None:
        value = connection.execute("SELECT value FROM counter").fetchone()[0]
        connection.execute("UPDATE counter SET value = ?", (value + 1,))

    for turn in range(times):
        database.transact(step, durable=turn % 10 == 0)
    database.close()


def test_processes_that_change_one_row_lose_no_update(store: Database) -> None:
    store.transact(lambda connection: connection.execute("CREATE TABLE counter (value INTEGER)"))
    store.transact(lambda connection: connection.execute("INSERT INTO counter VALUES (0)"))
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as processes:
        processes.starmap(_count_up, [(store.path, 100)] * 3)
    assert store.read(lambda connection: connection.execute("SELECT value FROM counter").fetchone()[0]) == 300


def _open_new(path: Path, package: str, folder: str) -> None:
    sys.path.insert(0, folder)
    open_database(f"sqlite:///{path}", package).close()


def test_processes_that_open_one_new_file_at_once_all_succeed(tmp_path: Path, migrations: Migrations) -> None:
    package = migrations({"0001_first.sql": "CREATE TABLE a (x);\nINSERT INTO a VALUES (1);\n"})
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as processes:
        for turn in range(8):
            path = tmp_path / f"{turn}.db"
            processes.starmap(_open_new, [(path, package, str(migrations.folder))] * 8, chunksize=1)
            database = Database(path)
            rows = database.read(lambda connection: connection.execute("SELECT x FROM a").fetchall())
            assert [row["x"] for row in rows] == [1]
            database.close()


# Migrations


class Migrations:
    """Writes migration packages of a room that exists only in the test."""

    _numbers = itertools.count()

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, scripts: dict[str, str]) -> str:
        # Python remembers imported packages by name for the whole run.
        name = f"migrations_of_the_test_{next(self._numbers)}"
        (self.folder / name).mkdir()
        for file, text in {"__init__.py": "", "notes.txt": "not a migration", **scripts}.items():
            (self.folder / name / file).write_text(text)
        return name


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migrations:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Migrations(folder)


def tables_in(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    return names


def test_each_migration_runs_once_and_in_order(tmp_path: Path, migrations: Migrations) -> None:
    url, path = f"sqlite:///{tmp_path}/books.db", tmp_path / "books.db"
    first = {"0001_first.sql": "CREATE TABLE a (x);\nINSERT INTO a VALUES (1);\n"}
    open_database(url, migrations(first)).close()
    open_database(url, migrations(first)).close()
    grown = migrations({**first, "0002_second.sql": "INSERT INTO a SELECT x + 1 FROM a;\nCREATE TABLE b (y);\n"})
    database = open_database(url, grown)
    assert [tuple(row) for row in database.read(lambda connection: connection.execute("SELECT x FROM a"))] == [
        (1,),
        (2,),
    ]
    assert tables_in(path) == {"a", "b"}
    database.close()


def test_a_script_may_hold_triggers_comments_and_a_last_statement_without_semicolon(
    tmp_path: Path, migrations: Migrations
) -> None:
    script = """-- the books; one table
CREATE TABLE a (x);
CREATE TRIGGER t AFTER INSERT ON a BEGIN
    UPDATE a SET x = 'it''s; fine' WHERE x = 1;
    DELETE FROM a WHERE x = 2;
END;
CREATE TABLE b (y)
-- the end"""
    database = open_database(f"sqlite:///{tmp_path}/books.db", migrations({"0001_first.sql": script}))
    database.transact(lambda connection: connection.execute("INSERT INTO a VALUES (1), (2)"))
    rows = database.read(lambda connection: connection.execute("SELECT x FROM a").fetchall())
    assert [row["x"] for row in rows] == ["it's; fine"]
    assert tables_in(database.path) == {"a", "b"}
    database.close()


def test_a_script_that_fails_leaves_the_old_tables_and_can_be_repeated(tmp_path: Path, migrations: Migrations) -> None:
    url, path = f"sqlite:///{tmp_path}/books.db", tmp_path / "books.db"
    first = {"0001_first.sql": "CREATE TABLE a (x);"}
    open_database(url, migrations(first)).close()
    with pytest.raises(StoreUnavailable, match="syntax error"):
        open_database(url, migrations({**first, "0002_second.sql": "CREATE TABLE b (y);\nCREATE NONSENSE;\n"}))
    assert tables_in(path) == {"a"}
    open_database(url, migrations({**first, "0002_second.sql": "CREATE TABLE b (y);"})).close()
    assert tables_in(path) == {"a", "b"}


def test_a_store_of_a_newer_farebox_is_not_touched(tmp_path: Path, migrations: Migrations) -> None:
    url = f"sqlite:///{tmp_path}/books.db"
    first = {"0001_first.sql": "CREATE TABLE a (x);"}
    open_database(url, migrations({**first, "0002_second.sql": "CREATE TABLE b (y);"})).close()
    with pytest.raises(StoreUnavailable, match=r"written by a newer Farebox \(version 2\)"):
        open_database(url, migrations(first))


@pytest.mark.parametrize("names", [["0002_a.sql"], ["0001_a.sql", "0001_b.sql"], ["0001_a.sql", "0003_b.sql"]])
def test_a_room_that_skips_or_repeats_a_number_is_wrong(
    tmp_path: Path, migrations: Migrations, names: list[str]
) -> None:
    with pytest.raises(AssertionError, match="skip or repeat"):
        open_database(f"sqlite:///{tmp_path}/books.db", migrations(dict.fromkeys(names, "SELECT 1;")))

"""The book of account, the same in SQLite and PostgreSQL: what was reported written is written, what failed left
nothing, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import RequestInProgress, StoreUnavailable
from contracts.limits import STORE_GATHER_TURNS, STORE_GROUP_MAX, STORE_QUEUE_MAX
from contracts.storage import Conflict, Connection, Database, Life, open_database
from tests.patience import eventually
from tests.stores.parts import Migrations, Place, held, start

Work = Callable[[Connection], Any]
ENTRIES = {"0001_entries.sql": "CREATE TABLE entries (value INTEGER UNIQUE);\n"}


@pytest.fixture
def package(migrations: Migrations) -> str:
    return migrations(ENTRIES)


@pytest.fixture
def url(place: Place) -> str:
    return place.url("books")


@pytest.fixture
def store(url: str, package: str) -> Iterator[Database]:
    database = open_database(url, package)
    yield database
    database.close()


@pytest.fixture
def other(store: Database, url: str, package: str) -> Iterator[Database]:
    """The same store, opened as another process would."""
    database = open_database(url, package)
    yield database
    database.close()


def insert(value: int) -> Work:
    return lambda connection: connection.execute("INSERT INTO entries VALUES (?)", (value,))


def counted_calls(store: Database, name: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with every call of a method."""
    calls: list[None] = []
    method = getattr(store, name)

    def counted() -> None:
        calls.append(None)
        method()

    monkeypatch.setattr(store, name, counted)
    return calls


def values_in(database: Database) -> list[int]:
    rows = database.read(lambda connection: connection.execute("SELECT value FROM entries ORDER BY value").fetchall())
    return [row["value"] for row in rows]


class Broken(Exception):
    """What a caller's own function raises."""


def insert_then_fail(value: int) -> Work:
    def work(connection: Connection) -> None:
        insert(value)(connection)
        raise Broken

    return work


def not_sql(connection: Connection) -> None:
    connection.execute("SELECT * FROM no_such_table")


# Values


def test_a_row_answers_by_index_by_name_and_unpacked(store: Database) -> None:
    row = store.read(lambda connection: connection.execute("SELECT 1 AS one, 'zwei' AS two").fetchone())
    one, two = row
    assert (row[0], row["one"], one, two, row["two"], len(row)) == (1, 1, 1, "zwei", "zwei", 2)
    with pytest.raises(IndexError):
        row["three"]


def test_values_come_back_as_they_went_in(place: Place, migrations: Migrations) -> None:
    scripts = {"0001_all.sql": "CREATE TABLE kinds (id INTEGER PRIMARY KEY, number INTEGER, words TEXT, bytes BLOB);"}
    database = open_database(place.url("kinds"), migrations(scripts))
    rows = [
        (2**63 - 1, "a ? and a :name, it's", bytes(range(256))),
        (-(2**63), "", b""),
        (None, None, None),
        (0, "Zürich 🎈", b"\x00"),
    ]
    statement = "INSERT INTO kinds (number, words, bytes) VALUES (?, ?, ?)"
    database.transact(lambda connection: connection.executemany(statement, rows))
    found = database.read(lambda connection: connection.execute("SELECT * FROM kinds ORDER BY id").fetchall())
    assert [tuple(row)[1:] for row in found] == rows
    assert [row["id"] for row in found] == [1, 2, 3, 4]
    database.close()


def test_truth_is_stored_as_a_number(store: Database) -> None:
    store.transact(insert(True))
    assert values_in(store) == [1]


def test_a_strangers_nul_byte_in_a_text_is_stored(place: Place, migrations: Migrations) -> None:
    database = open_database(place.url("words"), migrations({"0001_words.sql": "CREATE TABLE words (word TEXT);"}))
    database.transact(lambda connection: connection.execute("INSERT INTO words VALUES (?)", ("a\0b",)))
    word = database.read(lambda connection: connection.execute("SELECT word FROM words").fetchone())[0]
    assert word in ("a\0b", "a\N{REPLACEMENT CHARACTER}b")
    database.close()


def test_a_name_stands_for_its_value_wherever_it_is_written(store: Database) -> None:
    statement = "INSERT INTO entries SELECT :value WHERE :value > :least -- not :a name\n"
    store.transact(lambda connection: connection.execute(statement, {"value": 7, "least": 6, "unused": 1}))
    store.transact(lambda connection: connection.execute(statement, {"value": 5, "least": 6}))
    assert values_in(store) == [7]


def test_text_is_ordered_by_its_bytes(place: Place, migrations: Migrations) -> None:
    database = open_database(place.url("words"), migrations({"0001_words.sql": "CREATE TABLE words (word TEXT);"}))
    words = ["b", "B", "_", "a", "é", "Z", "z", "9"]
    database.transact(lambda c: c.executemany("INSERT INTO words VALUES (?)", [(word,) for word in words]))
    rows = database.read(lambda connection: connection.execute("SELECT word FROM words ORDER BY word").fetchall())
    assert [row[0] for row in rows] == sorted(words)
    database.close()


def test_the_number_of_changed_rows_is_told(store: Database) -> None:
    store.transact(lambda connection: connection.executemany("INSERT INTO entries VALUES (?)", [(1,), (2,), (3,)]))
    change = "UPDATE entries SET value = value + 10 WHERE value >= ?"
    assert store.transact(lambda connection: connection.execute(change, (2,)).rowcount) == 2
    assert store.transact(lambda connection: connection.execute(change, (100,)).rowcount) == 0


# Writing


def test_what_was_written_is_there_after_reopening(store: Database, url: str, package: str) -> None:
    store.transact(insert(1))
    store.transact(insert(2), durable=False)
    store.close()
    again = open_database(url, package)
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
    with pytest.raises(Conflict):
        store.transact(insert(1))
    store.transact(insert(2))
    assert values_in(store) == [1, 2]


async def test_a_broken_constraint_is_the_callers_to_answer_in_a_group_too(store: Database) -> None:
    await store.write(insert(1))
    with pytest.raises(Conflict):
        await store.write(insert(1))


def test_reading_cannot_write(store: Database) -> None:
    with pytest.raises(StoreUnavailable, match=r"read-?only"):
        store.read(insert(1))
    assert values_in(store) == []


async def test_a_write_returns_what_its_function_returns_once_others_can_see_it(
    store: Database, other: Database
) -> None:
    assert await store.write(lambda connection: insert(1)(connection).rowcount) == 1
    assert values_in(other) == [1]


async def test_what_was_reported_written_is_read_at_once(store: Database) -> None:
    for value in range(50):
        await store.write(insert(value), durable=False)
        assert values_in(store)[-1] == value


async def test_waiting_writes_share_one_commit(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = await held(store)
    members = await start(*(store.write(insert(value)) for value in range(STORE_GROUP_MAX + 10)))
    commits = counted_calls(store, "_commit", monkeypatch)
    await holder.release()
    await asyncio.gather(*members)
    assert len(commits) == 3  # the held one, a full group, the rest
    assert values_in(store) == list(range(STORE_GROUP_MAX + 10))


async def turns_later(turns: int, write: Awaitable[object]) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    await write


async def test_writes_of_turns_that_follow_each_other_share_one_commit(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_overs, commits = (counted_calls(store, name, monkeypatch) for name in ("_hand_over", "_commit"))
    await asyncio.gather(*(turns_later(number // 2, store.write(insert(number))) for number in range(6)))
    assert (len(hand_overs), len(commits)) == (1, 1)
    assert values_in(store) == list(range(6))


async def test_writes_do_not_wait_for_a_turn_that_brings_no_more(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_overs = counted_calls(store, "_hand_over", monkeypatch)
    writes = asyncio.gather(store.write(insert(1)), store.write(insert(2)))
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(hand_overs) == 1
    await writes


async def test_writes_wait_for_a_few_turns_at_most(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_overs = counted_calls(store, "_hand_over", monkeypatch)
    turns = 4 * (STORE_GATHER_TURNS + 1)
    await asyncio.gather(*(turns_later(number // 2, store.write(insert(number))) for number in range(2 * turns)))
    assert len(hand_overs) >= 3


async def test_a_member_that_fails_is_rolled_back_alone(store: Database) -> None:
    holder = await held(store)
    first, broken, twice, wrong, last = await start(
        store.write(insert(1)),
        store.write(insert_then_fail(2)),
        store.write(insert(1)),
        store.write(not_sql),
        store.write(insert(3)),
    )
    await holder.release()
    await asyncio.gather(first, last)
    for member, kind in ((broken, Broken), (twice, Conflict), (wrong, StoreUnavailable)):
        with pytest.raises(kind):
            await member
    assert values_in(store) == [1, 3]
    await store.write(insert(4))
    assert values_in(store) == [1, 3, 4]


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


async def test_threads_and_tasks_write_side_by_side(store: Database) -> None:
    threads = [asyncio.to_thread(store.transact, insert(value)) for value in range(8)]
    await asyncio.gather(*threads, *(store.write(insert(value)) for value in range(8, 16)))
    assert values_in(store) == list(range(16))


async def test_a_store_that_takes_writes_says_so_and_changes_nothing(store: Database) -> None:
    await store.check_writable()
    assert values_in(store) == []
    store.close()
    with pytest.raises(StoreUnavailable):
        await store.check_writable()


# Trouble


async def test_another_processes_turn_is_waited_for_and_then_given_up(
    store: Database, url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contracts.storage import session, sqlite

    monkeypatch.setattr(sqlite, "STORE_BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(session, "STORE_BUSY_TIMEOUT_S", 0.05)
    impatient = open_database(url, package)
    holder = await held(store)
    with pytest.raises(StoreUnavailable, match="lock"):
        await asyncio.to_thread(impatient.transact, insert(1))
    await holder.release()
    impatient.transact(insert(2))
    assert values_in(store) == [2]
    impatient.close()


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


async def test_closing_finishes_the_waiting_writes(store: Database, other: Database) -> None:
    holder = await held(store)
    members = await start(*(store.write(insert(value)) for value in range(20)))
    closing = asyncio.create_task(asyncio.to_thread(store.close))
    await holder.release()
    await closing
    await asyncio.gather(*members)
    assert values_in(other) == list(range(20))


# Many processes

WRITER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from contracts.storage import open_database

database = open_database(sys.argv[2], sys.argv[3])
durable = sys.argv[4] == "durable"

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
def test_what_was_reported_written_survives_kill_9(
    store: Database, url: str, package: str, migrations: Migrations, durability: str
) -> None:
    for wanted in (1, 40, 200):
        store.transact(lambda connection: connection.execute("DELETE FROM entries"))
        command = [sys.executable, "-c", WRITER, str(migrations.folder), url, package, durability]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(wanted)]
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        reported = {int(line) for line in lines if line.endswith("\n")}
        assert len(reported) >= wanted
        assert reported <= set(values_in(store))


def _count_up(url: str, package: str, folder: str, times: int) -> None:
    sys.path.insert(0, folder)
    database = open_database(url, package)

    def step(connection: Connection) -> None:
        value = connection.execute("SELECT value FROM entries").fetchone()[0]
        connection.execute("UPDATE entries SET value = ?", (value + 1,))

    for turn in range(times):
        database.transact(step, durable=turn % 10 == 0)
    database.close()


def test_processes_that_change_one_row_lose_no_update(
    store: Database, url: str, package: str, migrations: Migrations
) -> None:
    store.transact(insert(0))
    with multiprocessing.get_context("spawn").Pool(3) as processes:
        processes.starmap(_count_up, [(url, package, str(migrations.folder), 100)] * 3)
    assert values_in(store) == [300]


def _open_new(url: str, package: str, folder: str) -> None:
    sys.path.insert(0, folder)
    open_database(url, package).close()


def test_processes_that_open_one_new_store_at_once_all_succeed(place: Place, migrations: Migrations) -> None:
    scripts = {"0001_first.sql": "CREATE TABLE a (x INTEGER);\nINSERT INTO a VALUES (1);\n"}
    with multiprocessing.get_context("spawn").Pool(4) as processes:
        for turn in range(6):
            package = migrations(scripts)
            url = place.url(f"new_{turn}")
            processes.starmap(_open_new, [(url, package, str(migrations.folder))] * 8, chunksize=1)
            database = open_database(url, package)
            rows = database.read(lambda connection: connection.execute("SELECT x FROM a").fetchall())
            assert [row["x"] for row in rows] == [1]
            database.close()


# Migrations


def numbers_in(database: Database, table: str = "a") -> list[int]:
    query = f"SELECT x FROM {table} ORDER BY x"
    return [row["x"] for row in database.read(lambda connection: connection.execute(query).fetchall())]


def test_each_migration_runs_once_and_in_order(url: str, migrations: Migrations) -> None:
    first = {"0001_first.sql": "CREATE TABLE a (x INTEGER);\nINSERT INTO a VALUES (1);\n"}
    grown = {**first, "0002_second.sql": "INSERT INTO a SELECT x + 1 FROM a;\nCREATE TABLE b (x INTEGER);\n"}
    for scripts in (first, first, grown, grown):
        open_database(url, migrations(scripts, room="growing")).close()
    database = open_database(url, migrations(grown, room="growing"))
    assert numbers_in(database) == [1, 2]
    assert numbers_in(database, "b") == []
    database.close()


def test_a_script_that_fails_leaves_the_old_tables_and_can_be_repeated(url: str, migrations: Migrations) -> None:
    first = {"0001_first.sql": "CREATE TABLE a (x INTEGER);"}
    broken = {**first, "0002_second.sql": "CREATE TABLE b (x INTEGER);\nCREATE NONSENSE;\n"}
    mended = {**first, "0002_second.sql": "CREATE TABLE b (x INTEGER);"}
    open_database(url, migrations(first, room="mended")).close()
    with pytest.raises(StoreUnavailable, match="syntax error"):
        open_database(url, migrations(broken, room="mended"))
    database = open_database(url, migrations(first, room="mended"))
    with pytest.raises(StoreUnavailable):
        numbers_in(database, "b")
    database.close()
    database = open_database(url, migrations(mended, room="mended"))
    assert numbers_in(database, "b") == []
    database.close()


def test_a_store_of_a_newer_farebox_is_not_touched(url: str, migrations: Migrations) -> None:
    first = {"0001_first.sql": "CREATE TABLE a (x INTEGER);"}
    second = {**first, "0002_second.sql": "CREATE TABLE b (x INTEGER);"}
    open_database(url, migrations(second, room="newer")).close()
    with pytest.raises(StoreUnavailable, match=r"written by a newer Farebox \(version 2\)"):
        open_database(url, migrations(first, room="newer"))


# Who is at work


def test_a_process_is_alive_until_it_stops_being_seen(store: Database, other: Database) -> None:
    ours, theirs = store.presence(), other.presence()
    for presence in (ours, theirs):
        presence.hold()
        assert (store.life_of(presence.id), other.life_of(presence.id)) == (Life.ALIVE, Life.ALIVE)
    ours.close()
    eventually(lambda: other.life_of(ours.id) is not Life.ALIVE)
    assert store.life_of(theirs.id) is Life.ALIVE
    theirs.close()


PRESENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from contracts.storage import open_database

presence = open_database(sys.argv[2], sys.argv[3]).presence()
sys.stdout.write(presence.id + "\\n")
sys.stdout.flush()
time.sleep(600)
"""


def test_a_killed_process_is_known_to_have_ended(
    store: Database, url: str, package: str, migrations: Migrations
) -> None:
    command = [sys.executable, "-c", PRESENT, str(migrations.folder), url, package]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = process.stdout.readline().strip()
        assert store.life_of(theirs) is Life.ALIVE
        process.kill()
        process.wait()
        # A server notices an ended connection a moment later.
        eventually(lambda: store.life_of(theirs) is Life.ENDED)
    store.forget(theirs)
    assert store.life_of(theirs) is not Life.ALIVE


def test_one_task_of_a_name_runs_at_a_time(store: Database, other: Database) -> None:
    with store.exclusively("sign-p"):
        with pytest.raises(RequestInProgress, match="sign-p: another farebox process"):
            with other.exclusively("sign-p"):
                pass
        with other.exclusively("sign-q"):
            pass
    with other.exclusively("sign-p"):
        pass


def test_an_exclusive_task_ends_with_its_error(store: Database, other: Database) -> None:
    with pytest.raises(Broken):
        with store.exclusively("sign-p"):
            raise Broken
    with other.exclusively("sign-p"):
        pass


def test_the_era_stays_while_nothing_can_have_been_lost(store: Database, other: Database) -> None:
    assert store.era() == other.era() != ""


def test_rooms_do_not_see_each_others_tables(place: Place, migrations: Migrations, tmp_path: Path) -> None:
    scripts = {"0001_first.sql": "CREATE TABLE a (x INTEGER);"}
    left = open_database(place.url("left"), migrations(scripts, room="left"))
    right = open_database(place.url("right"), migrations(scripts, room="right"))
    left.transact(lambda connection: connection.execute("INSERT INTO a VALUES (1)"))
    assert (numbers_in(left), numbers_in(right)) == ([1], [])
    left.close()
    right.close()

"""What only SQLite has: a file, its mode, its disk, and syncing by choice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigInvalid, StoreUnavailable
from contracts.limits import STORE_LOG_PAGES_MAX
from contracts.storage import Connection, Life, disk, open_database
from contracts.storage.sqlite import SqliteDatabase
from tests.patience import PATIENCE_S
from tests.stores.parts import Migrations, held, start


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "books.db")
    database.transact(lambda connection: connection.execute("CREATE TABLE entries (value INTEGER UNIQUE)"))
    yield database
    database.close()


def insert(database: SqliteDatabase, value: int) -> Any:
    return database.write(lambda connection: connection.execute("INSERT INTO entries VALUES (?)", (value,)))


def values_in(database: SqliteDatabase) -> list[int]:
    query = "SELECT value FROM entries ORDER BY value"
    return [row["value"] for row in database.read(lambda connection: connection.execute(query).fetchall())]


# The file


def test_a_store_is_private_to_its_user(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "deep" / "folder" / "books.db")
    database.transact(lambda connection: connection.execute("CREATE TABLE entries (value)"))
    files = list(database.path.parent.iterdir())
    assert database.path in files
    assert len(files) > 1, "the write-ahead log is private, too"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    database.close()


def test_a_store_opened_twice_in_one_process_keeps_what_other_processes_write(store: SqliteDatabase) -> None:
    SqliteDatabase(store.path).close()
    other = (
        "import sys; from pathlib import Path; from contracts.storage.sqlite import SqliteDatabase\n"
        "books = SqliteDatabase(Path(sys.argv[1]))\n"
        "books.transact(lambda connection: connection.execute('INSERT INTO entries VALUES (1)'))\n"
        "books.close()"
    )
    subprocess.run([sys.executable, "-c", other, str(store.path)], check=True, timeout=PATIENCE_S)
    assert values_in(store) == [1]
    store.transact(lambda connection: connection.execute("INSERT INTO entries VALUES (2)"))
    store.close()
    reopened = SqliteDatabase(store.path)
    assert values_in(reopened) == [1, 2]
    reopened.close()


def test_a_url_names_a_relative_or_an_absolute_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrations: Migrations
) -> None:
    monkeypatch.chdir(tmp_path)
    package = migrations({"0001_first.sql": "CREATE TABLE a (x);"})
    for url in ("sqlite:///books.db", f"sqlite:///{tmp_path}/other.db"):
        open_database(url, package).close()
    assert (tmp_path / "books.db").is_file()
    assert (tmp_path / "other.db").is_file()


def test_the_log_beside_the_file_stops_growing_at_its_limit(store: SqliteDatabase) -> None:
    store.transact(lambda connection: connection.execute("CREATE TABLE blobs (data BLOB)"))
    page_bytes, pages = 4096, 250
    sizes_pages: list[int] = []
    for _ in range(2 * STORE_LOG_PAGES_MAX // pages):
        store.transact(
            lambda connection: connection.execute("INSERT INTO blobs VALUES (zeroblob(?))", (page_bytes * pages,)),
            durable=False,
        )
        sizes_pages.append(store.path.with_name("books.db-wal").stat().st_size // page_bytes)
    assert STORE_LOG_PAGES_MAX <= max(sizes_pages) <= STORE_LOG_PAGES_MAX + 2 * pages


def mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *mounts: tuple[str, Path]) -> None:
    """Stand in for what the kernel says is mounted where."""
    table = tmp_path / "mounts"
    lines = [("ext4", Path("/")), *mounts]
    escaped = [(kind, str(path).replace(" ", r"\040")) for kind, path in lines]
    table.write_text("".join(f"source {path} {kind} rw,relatime 0 0\n" for kind, path in escaped))
    monkeypatch.setattr(disk, "_MOUNTS", table)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"])
def test_a_file_on_a_network_file_system_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    share = tmp_path / "a share"
    (tmp_path / "link").symlink_to(share)
    mount(monkeypatch, tmp_path, (kind, share))
    for folder in (share, share / "deep", tmp_path / "link"):
        with pytest.raises(ConfigInvalid, match=rf"network file system \({kind}\)") as refused:
            SqliteDatabase(folder / "books.db")
        assert "PostgreSQL" in refused.value.advice
        assert not (folder / "books.db").exists()
    monkeypatch.setenv(disk.OVERRIDE, "1")
    SqliteDatabase(share / "books.db").close()


@pytest.mark.parametrize("kind", ["ext4", "overlay", "tmpfs", "9p", "virtiofs"])
def test_a_file_on_a_disk_or_in_a_container_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    local = tmp_path / "nfs" / "local"
    mount(monkeypatch, tmp_path, ("nfs4", tmp_path / "nfs"), ("nfs4", local), (kind, local), ("nfs4", tmp_path / "n"))
    SqliteDatabase(local / "books.db").close()


def test_where_the_kernel_does_not_tell_what_is_mounted_a_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_MOUNTS", tmp_path / "no such file")
    SqliteDatabase(tmp_path / "books.db").close()


@pytest.mark.parametrize(
    "url", ["", "books.db", "sqlite:///", "sqlite://books.db", "sqlite:///:memory:", "mysql://x/y", "SQLITE:///a.db"]
)
def test_another_url_is_refused(url: str, migrations: Migrations) -> None:
    with pytest.raises(ConfigInvalid, match=r"expected sqlite:///file\.db or postgresql://"):
        open_database(url, migrations({"0001_first.sql": "CREATE TABLE a (x);"}))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "books.db").write_bytes(b"a text about money\n" * 500)
    with pytest.raises(StoreUnavailable, match=r"cannot open .*books.db"):
        SqliteDatabase(tmp_path / "books.db")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot open"):
        SqliteDatabase(tmp_path / "file" / "books.db")


# The disk


@pytest.mark.parametrize(
    ("durable", "synchronous"), [([True], 2), ([False], 1), ([False, True, False], 2), ([False, False], 1)]
)
async def test_a_group_is_synced_when_one_member_asks_for_it(
    store: SqliteDatabase, durable: list[bool], synchronous: int
) -> None:
    def told(connection: Connection) -> int:
        level: int = connection.execute("PRAGMA synchronous").fetchone()[0]
        return level

    holder = await held(store)
    members = await start(*(store.write(told, durable=wanted) for wanted in durable))
    await holder.release()
    assert await asyncio.gather(*members) == [synchronous] * len(durable)


@pytest.fixture
def full(store: SqliteDatabase) -> SqliteDatabase:
    """The store on a disk with room for a few pages more."""
    pages = store.read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    store.transact(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 1}"))
    return store


def hog(connection: Connection) -> None:
    connection.executemany("INSERT INTO entries VALUES (?)", [(value,) for value in range(10_000, 20_000)])


async def test_a_full_disk_is_told_by_its_name_and_nothing_was_written(full: SqliteDatabase) -> None:
    with pytest.raises(StoreUnavailable, match="full"):
        full.transact(hog)
    assert values_in(full) == []
    await insert(full, 1)
    assert values_in(full) == [1]


async def test_a_disk_that_fills_within_a_group_is_told_and_what_was_reported_written_is(
    full: SqliteDatabase,
) -> None:
    holder = await held(full)
    members = await start(insert(full, 1), full.write(hog), insert(full, 2))
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
    await insert(full, 3)
    assert values_in(full) == [*written, 3]


# Scripts


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
    assert database.read(lambda connection: connection.execute("SELECT count(*) FROM b").fetchone()[0]) == 0
    database.close()


@pytest.mark.parametrize("names", [["0002_a.sql"], ["0001_a.sql", "0001_b.sql"], ["0001_a.sql", "0003_b.sql"]])
def test_a_room_that_skips_or_repeats_a_number_is_wrong(
    tmp_path: Path, migrations: Migrations, names: list[str]
) -> None:
    with pytest.raises(AssertionError, match="skip or repeat"):
        open_database(f"sqlite:///{tmp_path}/books.db", migrations(dict.fromkeys(names, "SELECT 1;")))


# Presence


def test_a_process_whose_lock_file_is_missing_cannot_be_traced(store: SqliteDatabase) -> None:
    ours = store.presence()
    assert store.life_of(ours.id) is Life.ALIVE
    assert store.life_of("0" * 16) is Life.UNTRACEABLE
    ours.close()


def test_a_lock_file_that_cannot_be_opened_says_nothing_of_its_owner(store: SqliteDatabase, tmp_path: Path) -> None:
    ours = store.presence()
    (tmp_path / "books.present" / f"{'0' * 16}.lock").mkdir()
    with pytest.raises(StoreUnavailable):
        store.life_of("0" * 16)
    ours.close()

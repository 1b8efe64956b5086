"""An exported index is the index: it comes back whole, goes on where it was, and a broken file changes nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import FareboxError, MalformedMessage, UsageError
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.storage import Connection
from registry.export import export_index, import_index
from registry.gather import write_texts
from registry.index import Index, open_index
from registry.limits import EXPORT_LINE_BYTES_MAX
from tests.registry.ledger_of_agents import Registrar
from tests.registry.syncing import Books, query


@pytest.fixture(scope="module")
def node() -> Iterator[Devnet]:
    with Devnet() as devnet:
        place_registries(devnet)
        Registrar(devnet).town()
        yield devnet


@pytest.fixture
def books(node: Devnet, tmp_path: Path) -> Books:
    """A folder with a synced index `own`."""
    folder = Books(tmp_path)
    folder.sync("own", [node.rpc_url])
    return folder


def add_what_was_seen(connection: Connection) -> None:
    (key,) = connection.execute("SELECT uri_key FROM agents WHERE agent_id = 1").fetchone()
    card = '{"name":"Coder","description":"a code model"}'
    values = (key, "https://agent1.example/card.json", "ok", bytes(32), 40, card, 1, 2)
    connection.execute(
        "INSERT INTO documents (uri_key, uri, state, content_hash, content_bytes, card, fetched_at_s, expires_at_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    connection.execute(
        "INSERT INTO services (uri_key, position, name, endpoint) VALUES (?, 0, 'x402', 'https://a')", (key,)
    )
    for at_s in (5, 6):
        connection.execute("INSERT INTO probes (endpoint, probed_at_s, state) VALUES ('https://a', ?, 'dead')", (at_s,))


def exported(books: Books, name: str, suffix: str = ".jsonl") -> Path:
    path = books.folder / f"{name}-export{suffix}"
    with open_index(books.folder / f"{name}.db") as index:
        export_index(index, path)
    return path


def imported(books: Books, path: Path, name: str = "other") -> int:
    with open_index(books.folder / f"{name}.db") as index:
        return import_index(index, path)


def test_an_import_holds_all_that_was_exported_and_exports_the_same_bytes(books: Books) -> None:
    with open_index(books.folder / "own.db") as index:
        index.database.transact(add_what_was_seen)
    path = exported(books, "own")
    assert imported(books, path) == len(path.read_bytes().splitlines()) - 1
    assert exported(books, "other").read_bytes() == path.read_bytes()
    agents = "SELECT agent_id, owner, wallet, uri, transfers, registered_block FROM agents ORDER BY agent_id"
    assert books.rows("other", agents) == books.rows("own", agents)
    assert len(books.rows("other", agents)) == 20
    with open_index(books.folder / "other.db") as index:
        assert write_texts(index.database) == 1
        assert query(index, "SELECT name FROM agent_text WHERE agent_text MATCH 'code'") == [("Coder",)]


def test_importing_twice_changes_nothing(books: Books) -> None:
    with open_index(books.folder / "own.db") as index:
        index.database.transact(add_what_was_seen)
    path = exported(books, "own")
    imported(books, path)
    imported(books, path)
    assert exported(books, "other").read_bytes() == path.read_bytes()


def test_a_compressed_export_holds_the_same_and_no_time(books: Books) -> None:
    plain, packed = exported(books, "own"), exported(books, "own", ".jsonl.gz")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    first = packed.read_bytes()
    assert exported(books, "own", ".jsonl.gz").read_bytes() == first
    imported(books, packed)
    assert exported(books, "other").read_bytes() == plain.read_bytes()


def test_a_sync_goes_on_where_an_import_ends(books: Books, node: Devnet) -> None:
    imported(books, exported(books, "own"))
    report = books.sync("other", [node.rpc_url])
    assert (report.requests, report.rolled_back_to) == (0, None)
    assert books.exported("other") == books.exported("own")


def test_a_sync_mends_an_import_from_which_something_was_taken(books: Books, node: Devnet) -> None:
    path = exported(books, "own")
    lines = path.read_text().splitlines(keepends=True)
    lines.remove(next(line for line in lines if '"registered"' in line))
    path.write_text("".join(lines))
    imported(books, path)
    assert books.exported("other") != books.exported("own")
    report = books.sync("other", [node.rpc_url])
    assert report.warnings == ["import: had left out logs; everything it told was read again"]
    assert books.exported("other") == books.exported("own")


def test_an_import_never_takes_an_index_back(books: Books, node: Devnet) -> None:
    old = exported(books, "own")
    older = books.folder / "older.jsonl"
    text = old.read_text().splitlines(keepends=True)
    chain = json.loads(text[1])
    chain[5] -= 1  # head_block
    older.write_text("".join([text[0], json.dumps(chain) + "\n", *text[2:]]))
    before = books.exported("own")
    with pytest.raises(UsageError, match="ends at block"):
        imported(books, older, "own")
    assert books.exported("own") == before


def test_decisions_of_the_user_stay_at_home(books: Books) -> None:
    with open_index(books.folder / "own.db") as index:
        index.database.transact(
            lambda connection: connection.execute(
                "INSERT INTO pins (chain_id, agent_id, network, pay_to, note, pinned_at_s)"
                " VALUES (31337, 1, 'eip155:31337', ?, 'secret note', 1)",
                (bytes(20),),
            )
        )
    assert b"secret note" not in exported(books, "own").read_bytes()


def swap(line: int, change: Callable[[Any], Any]) -> Callable[[list[str]], list[str]]:
    def changed(lines: list[str]) -> list[str]:
        row = json.dumps(change(json.loads(lines[line]))) + "\n"
        return [*lines[:line], row, *lines[line + 1 :]]

    return changed


BROKEN: dict[str, Callable[[list[str]], list[str]]] = {
    "empty": lambda lines: [],
    "no header": lambda lines: lines[1:],
    "another format": swap(0, lambda header: header | {"farebox_index": 99}),
    "another column": swap(0, lambda header: header | {"columns": {"chains": ["x"]}}),
    "another table": swap(0, lambda header: header | {"columns": {"sqlite_master": ["sql"]}}),
    "not JSON": lambda lines: [*lines[:3], "{oops\n", *lines[3:]],
    "a foreign table": swap(2, lambda row: ["pins", *row[1:]]),
    "a missing value": swap(2, lambda row: row[:-1]),
    "text for a number": swap(2, lambda row: [row[0], "1; DROP TABLE agents", *row[2:]]),
    "a number past SQLite": swap(2, lambda row: [row[0], 2**70, *row[2:]]),
    "no hex": swap(2, lambda row: [*row[:4], "0xzz", *row[5:]]),
    "an unknown kind": swap(2, lambda row: [*row[:6], "eaten", *row[7:]]),
    "the same row twice and another": lambda lines: [*lines[:3], "[]\n"],
    "an endless line": lambda lines: [*lines, "[" + " " * EXPORT_LINE_BYTES_MAX + "]\n"],
    "deep": lambda lines: [*lines, "[" * 100_000 + "\n"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_and_nothing_of_it_is_taken(books: Books, name: str) -> None:
    lines = exported(books, "own").read_text().splitlines(keepends=True)
    path = books.folder / "broken.jsonl"
    path.write_text("".join(BROKEN[name](lines)))
    with pytest.raises(MalformedMessage, match=r"broken\.jsonl"):
        imported(books, path)
    assert books.rows("other", "SELECT * FROM chains") == []
    assert books.rows("other", "SELECT * FROM agents") == []


def test_a_card_that_search_could_not_read_is_refused(books: Books) -> None:
    with open_index(books.folder / "own.db") as index:
        index.database.transact(add_what_was_seen)
    path = exported(books, "own")
    path.write_bytes(path.read_bytes().replace(b"a code model", b'a \\" code'))
    with pytest.raises(MalformedMessage, match="card"):
        imported(books, path)


@pytest.mark.parametrize("content", [None, b"", b"\x1f\x8b broken", gzip.compress(b"x" * 999, mtime=0)[:-4]])
def test_a_file_that_cannot_be_read_is_an_error_of_its_own(books: Books, content: bytes | None) -> None:
    path = books.folder / "gone.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FareboxError, match=r"gone\.jsonl\.gz"):
        imported(books, path)


def test_a_folder_that_cannot_be_written_is_named(books: Books) -> None:
    with open_index(books.folder / "own.db") as index, pytest.raises(UsageError, match="nowhere"):
        export_index(index, books.folder / "nowhere" / "x.jsonl")


def test_an_export_is_readable_by_its_owner_alone(books: Books) -> None:
    assert exported(books, "own").stat().st_mode & 0o077 == 0


def test_events_of_the_same_place_are_kept_once(books: Books) -> None:
    def count(index: Index) -> Any:
        return query(index, "SELECT count(*) FROM identity_events")

    path = exported(books, "own")
    imported(books, path, "own")
    with open_index(books.folder / "own.db") as index:
        before = count(index)
    imported(books, path, "own")
    with open_index(books.folder / "own.db") as index:
        assert count(index) == before

"""The index as one file, for machines without a network and for comparing two indexes byte by byte.

JSON Lines: a header that names the format and each table's columns, then one list a row, `[table, value, …]`, in the
order of primary keys. Bytes are written as 0x and hex. What follows from other rows (agents, metadata, texts) is left
out and made again on import; so is what a user decided (pins, approvals), which is nobody else's business.

The same chain state gives the same bytes, whatever path led there. Documents, listings and probes are what this
machine saw; `chain_only` leaves them out. A name ending in `.gz` is compressed, deterministically.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from contracts.errors import MalformedMessage, UsageError
from contracts.fields import hex_bytes
from contracts.nesting import check_nesting
from contracts.storage import Conflict, Connection, Row
from registry.agents import refresh
from registry.card import Card
from registry.index import Index
from registry.limits import EXPORT_LINE_BYTES_MAX, EXPORT_ROWS_AT_ONCE

__all__ = ["export_index", "import_index"]

_FORMAT = 1
_CHAIN_TABLES = ("chains", "identity_events", "feedback_events")
_SEEN_TABLES = ("documents", "services", "bazaar_items", "probes", "verifications", "standings")
# When this machine synced, and numbers that differ between copies.
_LEFT_OUT = {("chains", "synced_at_s"), ("probes", "number")}
# Who told us of imported blocks. A later sync doubts it like any other.
_TELLER = "import"


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    columns: dict[str, str]  # name → declared type
    key: list[str]

    def select(self) -> str:
        order = ", ".join(self.key or self.columns)
        return f"SELECT {', '.join(self.columns)} FROM {self.name} ORDER BY {order}"  # noqa: S608 - our own names

    def insert(self) -> str:
        """Return the statement that takes a row, unless it is there already."""
        columns, marks = ", ".join(self.columns), ", ".join(f"?{at}" for at in range(1, len(self.columns) + 1))
        if self.key:
            return f"INSERT OR REPLACE INTO {self.name} ({columns}) VALUES ({marks})"  # noqa: S608 - our own names
        same = " AND ".join(f"{column} IS ?{at}" for at, column in enumerate(self.columns, 1))
        return (
            f"INSERT INTO {self.name} ({columns}) SELECT {marks}"  # noqa: S608 - our own names
            f" WHERE NOT EXISTS (SELECT 1 FROM {self.name} WHERE {same})"
        )


def export_index(index: Index, path: Path, *, chain_only: bool = False) -> int:
    """Write the index to `path`, replacing it once it is complete, and return the number of rows.

    Raises `UsageError` when the file cannot be written, `StoreUnavailable`.
    """
    draft = path.with_name(path.name + ".part")
    try:
        with _writing(draft, compressed=path.suffix == ".gz") as out:
            rows = index.database.read(lambda connection: _write(connection, out, chain_only=chain_only))
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return rows


def import_index(index: Index, path: Path) -> int:
    """Take a file made by `export_index` into the index and return the number of rows; all of it, or nothing.

    A chain in the file replaces the index's own; so does each document, listing and probe that is in both. The texts
    to search are for `registry.gather.write_texts` to make. Raises
    `UsageError` when the file cannot be read or is older than what the index has, `MalformedMessage` when it is not
    such a file.
    """
    try:
        with _reading(path) as lines:
            return index.database.transact(lambda connection: _read(connection, lines, path.name))
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Conflict as error:
        raise MalformedMessage(f"{path.name}: {error}", remedy=_REMEDY) from None


_REMEDY = "export the index again with `farebox discover export`"


def _write(connection: Connection, out: IO[bytes], *, chain_only: bool) -> int:
    tables = _tables(connection, _CHAIN_TABLES if chain_only else _CHAIN_TABLES + _SEEN_TABLES)
    encode, count = msgspec.json.encode, 0
    columns = {table.name: list(table.columns) for table in tables}
    out.write(encode({"farebox_index": _FORMAT, "columns": columns}) + b"\n")
    for table in tables:
        for row in connection.execute(table.select()):
            out.write(encode([table.name, *(_plain(value) for value in row)]) + b"\n")
            count += 1
    return count


def _read(connection: Connection, lines: Iterator[bytes], name: str) -> int:
    tables = {table.name: table for table in _tables(connection, _CHAIN_TABLES + _SEEN_TABLES)}
    header = _decode(next(lines, b""), name)
    if not isinstance(header, dict) or header.get("farebox_index") != _FORMAT:
        raise MalformedMessage(f"{name}: this is not an exported index of format {_FORMAT}", remedy=_REMEDY)
    for table, columns in dict(header.get("columns", {})).items():
        if table not in tables or list(columns) != list(tables[table].columns):
            raise MalformedMessage(f"{name}: another version of Farebox exported {table}", remedy=_REMEDY)
    count = 0
    rows = (_row(_decode(line, name), tables, name) for line in lines)
    for table, group in groupby(rows, key=lambda row: row[0]):
        while some := list(islice(group, EXPORT_ROWS_AT_ONCE)):
            count += len(some)
            _take(connection, table, [values for _, values in some], name)
    # The texts of all agents are written anew: other files may stand behind their URIs now.
    connection.execute("DELETE FROM agent_text")
    for (chain_id,) in connection.execute("SELECT chain_id FROM chains").fetchall():
        _settle(connection, chain_id)
    return count


def _take(connection: Connection, table: _Table, rows: list[list[Any]], name: str) -> None:
    if table.name == "chains":
        for row in rows:
            _replace_chain(connection, dict(zip(table.columns, row, strict=True)), name)
    elif table.name == "documents":
        at = list(table.columns).index("card")
        for row in rows:
            _check_card(row[at], name)
    connection.executemany(table.insert(), rows)


def _replace_chain(connection: Connection, chain: dict[str, Any], name: str) -> None:
    chain_id = chain["chain_id"]
    known = connection.execute("SELECT * FROM chains WHERE chain_id = ?", (chain_id,)).fetchone()
    if known is not None and (known["head_block"] or -1) > (chain["head_block"] or -1):
        raise UsageError(
            f"{name}: ends at block {chain['head_block']} of chain {chain_id}, the index at {known['head_block']}",
            remedy="import it into another index file, or keep this one",
        )
    for table in ("identity_events", "feedback_events", "ranges", "checkpoints", "endpoints"):
        connection.execute(f"DELETE FROM {table} WHERE chain_id = ?", (chain_id,))  # noqa: S608 - our own names


def _settle(connection: Connection, chain_id: int) -> None:
    """Make the agents of a chain from its events, and say which blocks these are from."""
    chain = connection.execute("SELECT * FROM chains WHERE chain_id = ?", (chain_id,)).fetchone()
    agents = connection.execute(
        "SELECT agent_id FROM agents WHERE chain_id = ? UNION SELECT agent_id FROM identity_events"
        " WHERE chain_id = ? AND agent_id IS NOT NULL",
        (chain_id, chain_id),
    ).fetchall()
    refresh(connection, chain_id, [row[0] for row in agents])
    covered = connection.execute("SELECT 1 FROM ranges WHERE chain_id = ?", (chain_id,)).fetchone()
    if chain["head_block"] is not None and covered is None:
        connection.execute(
            "INSERT INTO ranges (chain_id, first_block, last_block, endpoint) VALUES (?, ?, ?, ?)",
            (chain_id, chain["first_block"], chain["head_block"], _TELLER),
        )
        connection.execute(
            "INSERT INTO checkpoints (chain_id, block, hash) VALUES (?, ?, ?)",
            (chain_id, chain["head_block"], chain["head_hash"]),
        )


def _tables(connection: Connection, names: Iterable[str]) -> list[_Table]:
    return [_table(name, connection.execute(f"PRAGMA table_info({name})").fetchall()) for name in names]


def _table(name: str, info: list[Row]) -> _Table:
    columns = {row["name"]: row["type"] for row in info if (name, row["name"]) not in _LEFT_OUT}
    keys = [row["name"] for row in sorted(info, key=lambda row: row["pk"]) if row["pk"] and row["name"] in columns]
    return _Table(name, columns, keys)


def _plain(value: Any) -> Any:
    return "0x" + value.hex() if isinstance(value, bytes) else value


def _row(line: Any, tables: dict[str, _Table], name: str) -> tuple[_Table, list[Any]]:
    table = tables.get(line[0]) if isinstance(line, list) and line and isinstance(line[0], str) else None
    if table is None or len(line) != len(table.columns) + 1:
        raise MalformedMessage(f"{name}: a line is not a row of an exported index", remedy=_REMEDY)
    values = zip(table.columns.items(), line[1:], strict=True)
    return table, [_value(value, kind, f"{name}: {table.name}.{column}") for (column, kind), value in values]


def _value(value: Any, kind: str, field: str) -> Any:
    if value is None or (kind == "INTEGER" and type(value) is int and abs(value) < 2**63):
        return value
    if isinstance(value, str) and kind == "TEXT":
        return value
    data = hex_bytes(value) if kind == "BLOB" else None
    if data is None:
        raise MalformedMessage(f"{field}: expected {kind}, got {str(value)[:40]!r}", remedy=_REMEDY)
    return data


def _check_card(card: str | None, name: str) -> None:
    try:
        if card is not None:
            check_nesting(card.encode())
            msgspec.json.decode(card, type=Card)
    except (msgspec.DecodeError, RecursionError):
        raise MalformedMessage(f"{name}: documents.card is not a card", remedy=_REMEDY) from None


def _decode(line: bytes, name: str) -> Any:
    try:
        check_nesting(line)
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        raise MalformedMessage(f"{name}: a line is not JSON", remedy=_REMEDY) from None


@contextlib.contextmanager
def _writing(path: Path, *, compressed: bool) -> Iterator[IO[bytes]]:
    # What an index says of its user's interests is for its user.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
        if not compressed:
            yield raw
            return
        # Neither a name nor a time, or two exports of one index would differ.
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
            yield cast("IO[bytes]", packed)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Iterator[bytes]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        yield _lines(cast("IO[bytes]", file), path.name)


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    while line := file.readline(EXPORT_LINE_BYTES_MAX):
        if len(line) == EXPORT_LINE_BYTES_MAX:
            raise MalformedMessage(f"{name}: a line is longer than any row", remedy=_REMEDY)
        yield line

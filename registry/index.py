"""The local index: what was read from a chain, which blocks of it, and who told us.

Every change is one transaction, so an index is right at whatever moment its process dies. Order of reading leaves no
trace: events have one place on chain, and agents are made from events (`registry.agents`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import UsageError
from contracts.storage import Connection, Database, Row, open_database
from registry.agents import refresh
from registry.chains import RegistryChain
from registry.events import FeedbackEvent, IdentityEvent
from registry.limits import BLOCK_NUMBER_MAX, CHECKPOINTS_MAX

__all__ = ["Head", "Index", "Interval", "Learned", "Window", "open_index"]

Interval = tuple[int, int]

_INSERT_IDENTITY = """
    INSERT INTO identity_events (chain_id, block, log_index, transaction_hash, block_hash, kind, agent_id, account,
        former, name, value, value_bytes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING
"""
_INSERT_FEEDBACK = """
    INSERT INTO feedback_events (chain_id, block, log_index, transaction_hash, block_hash, time_s, kind, agent_id,
        client, feedback_index, value, decimals, tag1, tag2, endpoint, uri, file_hash, responder)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Window:
    """The events of blocks `first` to `last`, both included, as `endpoint` told them. Every `time_s` is known."""

    first: int
    last: int
    endpoint: str
    identity_events: Sequence[IdentityEvent]
    feedback_events: Sequence[FeedbackEvent]


@dataclass(frozen=True, slots=True)
class Head:
    """A block and its time, in Unix seconds."""

    number: int
    hash: bytes
    time_s: int


@dataclass(frozen=True, slots=True)
class Learned:
    """What an endpoint allows: blocks a request may span now, the most it ever allowed if known; how often it lied."""

    window_blocks: int
    window_max: int | None = None
    lies: int = 0


@contextlib.contextmanager
def open_index(path: Path) -> Iterator[Index]:
    """Open the index in the SQLite file `path`, which is made if it is not there. Raises `StoreUnavailable`."""
    database = open_database(f"sqlite:///{path}", "registry.migrations")
    try:
        yield Index(database)
    finally:
        database.close()


class Index:
    """The index in one SQLite file. Reading needs no network; `database` is there for the room's other modules."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def syncing(self, chain_id: int) -> AbstractContextManager[None]:
        """Hold a chain for one sync. Raises `RequestInProgress` while another process syncs it."""
        return self.database.exclusively(f"sync-{chain_id}")

    def adopt(self, chain: RegistryChain) -> None:
        """Make `chain` known to the index. Raises `UsageError` when it is there with other registries."""

        def write(connection: Connection) -> None:
            connection.execute(
                "INSERT INTO chains (chain_id, identity, reputation, first_block) VALUES (?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (chain.chain_id, chain.identity, chain.reputation, chain.first_block),
            )
            known = connection.execute("SELECT * FROM chains WHERE chain_id = ?", (chain.chain_id,)).fetchone()
            if (known["identity"], known["reputation"]) != (chain.identity, chain.reputation):
                raise UsageError(
                    f"chain: this index holds other registries of {chain.network.label}",
                    remedy="use another index file for them",
                )

        self.database.transact(write, durable=False)

    def chain(self, chain_id: int) -> Row | None:
        """Return the row of a chain, or None when it was never synced."""
        row: Row | None = self.database.read(
            lambda connection: connection.execute("SELECT * FROM chains WHERE chain_id = ?", (chain_id,)).fetchone()
        )
        return row

    # What is read, and what is missing

    def gaps(self, chain_id: int, first: int, last: int) -> list[Interval]:
        """Return the blocks from `first` to `last` that are not in the index, newest first."""
        ranges = self.database.read(
            lambda connection: connection.execute(
                "SELECT first_block, last_block FROM ranges WHERE chain_id = ? ORDER BY first_block DESC", (chain_id,)
            ).fetchall()
        )
        found, top = [], last
        for low, high in ranges:
            if high < top:
                found.append((max(high + 1, first), top))
            top = min(top, low - 1)
        return [*found, (first, top)] if top >= first else found

    def store(self, chain_id: int, window: Window) -> None:
        """Take a window into the index, all of it or nothing."""

        def write(connection: Connection) -> None:
            connection.executemany(_INSERT_IDENTITY, [_identity_row(chain_id, e) for e in window.identity_events])
            connection.executemany(_INSERT_FEEDBACK, [_feedback_row(chain_id, e) for e in window.feedback_events])
            _add_range(connection, chain_id, window)
            touched = {event.agent_id for event in window.identity_events if event.agent_id is not None}
            refresh(connection, chain_id, sorted(touched))

        self.database.transact(write, durable=False)

    # Taking back

    def roll_back(self, chain_id: int, ancestor: int) -> None:
        """Forget everything after block `ancestor`."""

        def write(connection: Connection) -> None:
            _forget_blocks(connection, chain_id, [(ancestor + 1, BLOCK_NUMBER_MAX)])
            connection.execute("DELETE FROM checkpoints WHERE chain_id = ? AND block > ?", (chain_id, ancestor))
            connection.execute(
                "UPDATE chains SET head_block = NULL, head_hash = NULL, head_time_s = NULL, agent_count = NULL,"
                " implementation = NULL WHERE chain_id = ? AND head_block > ?",
                (chain_id, ancestor),
            )

        self.database.transact(write, durable=False)

    def forget(self, chain_id: int, endpoint: str) -> None:
        """Forget everything that `endpoint` told, and remember that it lied."""

        def write(connection: Connection) -> None:
            rows = connection.execute(
                "SELECT first_block, last_block FROM ranges WHERE chain_id = ? AND endpoint = ?", (chain_id, endpoint)
            ).fetchall()
            _forget_blocks(connection, chain_id, [(row[0], row[1]) for row in rows])
            connection.execute(
                "UPDATE endpoints SET lies = lies + 1 WHERE chain_id = ? AND endpoint = ?", (chain_id, endpoint)
            )

        self.database.transact(write, durable=False)

    def tellers(self, chain_id: int, intervals: Sequence[Interval]) -> list[str]:
        """Return the endpoints that told any of these blocks, sorted."""

        def read(connection: Connection) -> set[str]:
            return {
                row[0]
                for first, last in intervals
                for row in connection.execute(
                    "SELECT DISTINCT endpoint FROM ranges WHERE chain_id = ? AND first_block <= ? AND last_block >= ?",
                    (chain_id, last, first),
                )
            }

        return sorted(self.database.read(read))

    # Heads and endpoints

    def checkpoints(self, chain_id: int) -> list[tuple[int, bytes]]:
        """Return (block, hash) of known blocks, newest first."""
        rows = self.database.read(
            lambda connection: connection.execute(
                "SELECT block, hash FROM checkpoints WHERE chain_id = ? ORDER BY block DESC", (chain_id,)
            ).fetchall()
        )
        return [(row[0], row[1]) for row in rows]

    def remember(self, chain_id: int, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Keep the hashes of blocks, by which the next sync notices a re-org."""

        def write(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO checkpoints (chain_id, block, hash) VALUES (?, ?, ?)"
                " ON CONFLICT (chain_id, block) DO UPDATE SET hash = excluded.hash",
                [(chain_id, number, hash_) for number, hash_ in blocks],
            )
            connection.execute(
                "DELETE FROM checkpoints WHERE chain_id = ? AND block NOT IN"
                " (SELECT block FROM checkpoints WHERE chain_id = ? ORDER BY block DESC LIMIT ?)",
                (chain_id, chain_id, CHECKPOINTS_MAX),
            )

        self.database.transact(write, durable=False)

    def finish(self, chain_id: int, head: Head, *, agent_count: int, implementation: bytes, now_s: int) -> None:
        """Record that everything up to `head` is in the index. Durable."""
        self.database.transact(
            lambda connection: connection.execute(
                "UPDATE chains SET head_block = ?, head_hash = ?, head_time_s = ?, agent_count = ?, implementation = ?,"
                " synced_at_s = ? WHERE chain_id = ?",
                (head.number, head.hash, head.time_s, agent_count, implementation, now_s, chain_id),
            )
        )

    def learned(self, chain_id: int, endpoint: str) -> Learned | None:
        """Return what former syncs learned about an endpoint."""
        row = self.database.read(
            lambda connection: connection.execute(
                "SELECT window_blocks, window_max, lies FROM endpoints WHERE chain_id = ? AND endpoint = ?",
                (chain_id, endpoint),
            ).fetchone()
        )
        return None if row is None else Learned(*row)

    def learn(self, chain_id: int, endpoint: str, window_blocks: int, window_max: int | None) -> None:
        """Keep what an endpoint allows."""
        self.database.transact(
            lambda connection: connection.execute(
                "INSERT INTO endpoints (chain_id, endpoint, window_blocks, window_max) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (chain_id, endpoint) DO UPDATE SET window_blocks = excluded.window_blocks,"
                " window_max = excluded.window_max",
                (chain_id, endpoint, window_blocks, window_max),
            ),
            durable=False,
        )


def _add_range(connection: Connection, chain_id: int, window: Window) -> None:
    """Add a range, joined to what the same endpoint told next to it."""
    first, last = window.first, window.last
    neighbours = connection.execute(
        "SELECT first_block, last_block FROM ranges WHERE chain_id = ? AND endpoint = ?"
        " AND (last_block = ? OR first_block = ?)",
        (chain_id, window.endpoint, first - 1, last + 1),
    ).fetchall()
    for low, high in neighbours:
        first, last = min(first, low), max(last, high)
        connection.execute("DELETE FROM ranges WHERE chain_id = ? AND first_block = ?", (chain_id, low))
    connection.execute(
        "INSERT INTO ranges (chain_id, first_block, last_block, endpoint) VALUES (?, ?, ?, ?)",
        (chain_id, first, last, window.endpoint),
    )


def _forget_blocks(connection: Connection, chain_id: int, intervals: Sequence[Interval]) -> None:
    touched: set[int] = set()
    for first, last in intervals:
        place = (chain_id, first, last)
        touched.update(
            row[0]
            for row in connection.execute(
                "DELETE FROM identity_events WHERE chain_id = ? AND block BETWEEN ? AND ? RETURNING agent_id", place
            ).fetchall()
            if row[0] is not None
        )
        connection.execute("DELETE FROM feedback_events WHERE chain_id = ? AND block BETWEEN ? AND ?", place)
        connection.execute(
            "DELETE FROM ranges WHERE chain_id = ? AND first_block >= ? AND first_block <= ?", (chain_id, first, last)
        )
        connection.execute(
            "UPDATE ranges SET last_block = ? WHERE chain_id = ? AND first_block < ? AND last_block >= ?",
            (first - 1, chain_id, first, first),
        )
    refresh(connection, chain_id, sorted(touched))


def _identity_row(chain_id: int, event: IdentityEvent) -> tuple[object, ...]:
    place = event.place
    return (
        *(chain_id, place.block, place.log_index, place.transaction_hash, place.block_hash),
        *(event.kind, event.agent_id, event.account, event.former, event.name, event.value, event.value_bytes),
    )


def _feedback_row(chain_id: int, event: FeedbackEvent) -> tuple[object, ...]:
    place = event.place
    assert event.time_s is not None
    return (
        *(chain_id, place.block, place.log_index, place.transaction_hash, place.block_hash, event.time_s, event.kind),
        *(event.agent_id, event.client, event.feedback_index, None if event.value is None else str(event.value)),
        *(event.decimals, event.tag1, event.tag2, event.endpoint, event.uri, event.file_hash, event.responder),
    )

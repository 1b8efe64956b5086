"""What a room sees of its store, whichever kind it is.

A room writes SQL once. `execute` takes `?` or `:name` for values, and a row answers by index and by name. Text both
stores understand: `ON CONFLICT … DO NOTHING | DO UPDATE`, `RETURNING`, an alias for every subquery, partial indexes;
what only SQLite knows (rowid, `INSERT OR …`, PRAGMA, `lastrowid`) stays out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from contracts.errors import StoreUnavailable

__all__ = ["Beside", "Conflict", "Connection", "Cursor", "Row", "StoreBusy", "Values", "Work"]

T = TypeVar("T")
Values = Sequence[Any] | Mapping[str, Any]


class Conflict(Exception):
    """A constraint (unique, check, not null, foreign key) refused a write; nothing of it was written.

    It ends the function that met it: a room cannot catch it inside a transaction and go on.
    """


class StoreBusy(StoreUnavailable):
    """Others have had the turn to write for longer than the caller may wait. Nothing of this write was written."""


class Row(Protocol):
    """One row: `row[0]`, `row["name"]`, `a, b = row`."""

    def __getitem__(self, key: int | str, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class Cursor(Protocol):
    """What a statement returned."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What a function that reads or writes is given."""

    def execute(self, sql: str, values: Values = (), /) -> Cursor: ...
    def executemany(self, sql: str, rows: Iterable[Values], /) -> Cursor: ...


class Beside(Protocol):
    """What a room has written down in files beside its tables, and enters into them before anybody looks.

    The store calls it from one thread at a time, all but `is_behind` inside a write transaction or right after one.
    """

    def begin(self) -> None:
        """A write transaction begins; the one before may have been rolled back."""

    def call_in(self, connection: Connection) -> None:
        """Enter everything, and see to it that nothing more is written down until this transaction is over."""

    def enter(self, connection: Connection) -> None:
        """Enter everything that was written down until now."""

    def committed(self) -> None:
        """The transaction is committed."""

    def is_behind(self, connection: Connection) -> bool:
        """Tell whether the tables lack something; `connection` only reads."""


Work = Callable[[Connection], T]

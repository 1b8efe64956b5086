"""Opens the store a room keeps its books in, and brings its tables up to date.

One URL chooses: `sqlite:///file.db` (one machine, any number of processes) or `postgresql://user@host/database` (many
machines; needs the `postgres` extra). A room sees the same `Database` either way.
"""

from __future__ import annotations

from contracts.errors import ConfigInvalid
from contracts.storage.connection import Beside, Conflict, Connection, Cursor, Row, StoreBusy
from contracts.storage.database import Database
from contracts.storage.pending import Shared
from contracts.storage.presence import Life, Presence
from contracts.storage.sqlite import open_sqlite
from contracts.storage.url import check_store_url, is_postgres, rooted_store_url, shown_store_url

__all__ = [
    "Beside",
    "Conflict",
    "Connection",
    "Cursor",
    "Database",
    "Life",
    "Presence",
    "Row",
    "Shared",
    "StoreBusy",
    "check_store_url",
    "open_database",
    "rooted_store_url",
    "shown_store_url",
]


def open_database(url: str, migrations_package: str) -> Database:
    """Open the store at `url` and run the migrations of a room.

    `migrations_package` is a package with files `0001_name.sql`, `0002_…`; each runs once, in order, all that are due
    in one transaction, also when several processes open a new store at once. They are written for SQLite and mean the
    same in PostgreSQL (see `contracts.storage.dialect`). A SQLite file is made with mode 0600; in PostgreSQL each room
    has a schema of its own, so that buyer and seller can share a database.

    Raises `ConfigInvalid` for another URL or a missing driver, `StoreUnavailable` when the store cannot be opened or
    was written by a newer Farebox.
    """
    check_store_url(url)
    if not is_postgres(url):
        return open_sqlite(url, migrations_package)
    try:
        from contracts.storage.postgres import open_postgres
    except ImportError:
        raise ConfigInvalid(
            "store: postgresql:// needs the psycopg package", remedy="pip install 'farebox[postgres]'"
        ) from None
    return open_postgres(url, migrations_package)

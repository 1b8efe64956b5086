"""Generation: tells a pool that was restored from a backup from the one that was used since.

Two counters grow in the store, and are noted in `generation/<pool id>` of the home each time: `leases` with every
synced write that hands out or signs, `sends` before every authorization leaves. A store that lags behind the note is an
older copy, in which spent authorizations look free. Nothing of it is handed out until the chain was asked.

- `leases` behind: an older copy, since a synced write is never lost.
- `sends` behind in the same era: an older copy too. In another era a power loss explains it, after which everything
  that was leased counts as sent (see `buyer.lease`).

The note must not be restored with the store: leave the folder `generation` out of backups.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from buyer.home import Home
from buyer.nonces import close_words
from contracts.errors import StoreUnavailable
from contracts.storage import Connection, Database

__all__ = ["Generation"]

# One line of fixed length, so that it is replaced by one write and never torn.
_LINE_BYTES = 160


@dataclass(frozen=True, slots=True)
class _Note:
    leases: int = 0
    sends: int = 0
    era: str = ""


class Generation:
    """The counters of one open pool. `era` is the store's (`Database.era`)."""

    def __init__(self, home: Home, database: Database, era: str) -> None:
        """Open the note. Raises `StoreUnavailable`."""
        self._database = database
        self._era = era
        self.pool_id = database.transact(_pool_id, bare=True)
        try:
            path = home.folder("generation") / self.pool_id
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"generation: {error.strerror}") from None

    def check(self, now_s: int) -> bool:
        """Tell whether this store is an older copy; then every purchase is marked, and the counters go on."""
        noted = self._read()
        row = self._database.read(_counters)
        restored = row["leases"] < noted.leases or (row["sends"] < noted.sends and noted.era == self._era)
        if restored:
            self._database.transact(lambda connection: _mark(connection, noted, now_s))
            row = self._database.read(_counters)
        self._write(row["leases"], row["sends"])
        return restored

    def lease(self, connection: Connection) -> int:
        """Count a synced write, inside it. `note_lease` follows once it is committed."""
        return _count(connection, "leases", 1)

    def note_lease(self, leases: int) -> None:
        """Note a counted synced write."""
        self._write(leases, 0 if self._read().era == self._era else self._database.read(_counters)["sends"])

    def raise_lease(self) -> None:
        """Count and note one synced write of its own."""
        self.note_lease(self._database.transact(self.lease, bare=True))

    def send(self, connection: Connection) -> int:
        """Count an authorization that is about to leave, in the write that says so. `note_send` follows."""
        return _count(connection, "sends", 1)

    def count_sends(self, connection: Connection, sends: int) -> int:
        """Count authorizations that have left, in the write that enters them. `note_send` follows."""
        return _count(connection, "sends", sends)

    def note_send(self, sends: int) -> None:
        """Note it, before it leaves."""
        self._write(0, sends)

    def close(self) -> None:
        """Close the note."""
        os.close(self._file)

    def _read(self) -> _Note:
        words = os.pread(self._file, _LINE_BYTES, 0).decode("ascii", "replace").split()
        if len(words) != 3 or not (words[0].isdigit() and words[1].isdigit()):
            return _Note()
        return _Note(int(words[0]), int(words[1]), words[2])

    def _write(self, leases: int, sends: int) -> None:
        noted = self._read()
        # Another process may have noted more.
        leases = max(leases, noted.leases)
        if noted.era == self._era:
            sends = max(sends, noted.sends)
        line = f"{leases} {sends} {self._era}".ljust(_LINE_BYTES - 1)[: _LINE_BYTES - 1] + "\n"
        try:
            os.pwrite(self._file, line.encode("ascii", "replace"), 0)
        except OSError as error:
            raise StoreUnavailable(f"generation: {error.strerror}") from None


def _pool_id(connection: Connection) -> str:
    connection.execute("UPDATE pool_state SET pool_id = ? WHERE pool_id IS NULL", (secrets.token_hex(8),))
    pool_id: str = connection.execute("SELECT pool_id FROM pool_state").fetchone()[0]
    return pool_id


def _counters(connection: Connection) -> dict[str, int]:
    leases, sends = connection.execute("SELECT leases, sends FROM pool_state").fetchone()
    return {"leases": leases, "sends": sends}


def _count(connection: Connection, counter: str, more: int) -> int:
    query = f"UPDATE pool_state SET {counter} = {counter} + ? RETURNING {counter}"  # noqa: S608 - one of two words
    count: int = connection.execute(query, (more,)).fetchone()[0]
    return count


def _mark(connection: Connection, noted: _Note, now_s: int) -> None:
    """Mark every purchase, unless another process has just done so."""
    now = _counters(connection)
    if now["leases"] > noted.leases:
        return
    connection.execute("UPDATE purchases SET restored_s = ? WHERE restored_s IS NULL", (now_s,))
    close_words(connection)
    connection.execute(
        "UPDATE pool_state SET leases = ?, sends = ?", (noted.leases + 1, max(noted.sends, now["sends"]) + 1)
    )

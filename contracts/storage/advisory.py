"""Advisory locks of a PostgreSQL server: turns to write, tasks that run alone, and signs of life.

They are numbers that mean something to Farebox alone. The server has one space of two 32-bit numbers, where the rooms
take turns ("Fare", room), and one of 64 bits, for processes and tasks.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
import zlib

import psycopg

from contracts.errors import StoreUnavailable
from contracts.limits import STORE_PRESENCE_S, STORE_REJOIN_S
from contracts.storage.connection import Connection
from contracts.storage.presence import Life
from contracts.storage.session import Server, Session, unavailable

__all__ = ["ServerPresence", "life_of", "number_of", "try_lock", "turn", "unlock"]

_TURNS = 0x46617265
_ID = re.compile("[0-9a-f]{16}")
# The two halves of a 64-bit lock, as the server shows them. A server that was just started has lost all signs of life,
# and is given the time it takes the living to come back.
_IS_ALIVE = """
    SELECT extract(epoch FROM now() - pg_postmaster_start_time()) < ? OR EXISTS (
        SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND classid::bigint = ? AND objid::bigint = ?
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def turn(schema: str) -> str:
    """Return the statement that waits for a room's turn to write and keeps it until the transaction ends."""
    return f"SELECT pg_advisory_xact_lock({_TURNS}, {_signed(zlib.crc32(schema.encode()), 32)})"


def number_of(name: str) -> int:
    """Return the 64-bit number that stands for a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def try_lock(session: Session, number: int, name: str) -> bool:
    """Take a lock for as long as `session` lives; tell whether it was free. Raises `StoreUnavailable`."""
    try:
        return bool(session.execute("SELECT pg_try_advisory_lock(?)", (number,)).fetchone()[0])
    except psycopg.Error as error:
        raise unavailable(name, error) from None


def unlock(session: Session, number: int) -> None:
    """Give a lock back now: the server notices that a session has ended only some time after it."""
    with contextlib.suppress(psycopg.Error):
        session.execute("SELECT pg_advisory_unlock(?)", (number,))


def life_of(connection: Connection, presence_id: str) -> Life:
    """Tell whether a process lives. None is untraceable: the server knows every lock there is."""
    if not _ID.fullmatch(presence_id):
        return Life.ENDED  # no process ever showed itself like that
    halves = divmod(int(presence_id, 16), 1 << 32)
    (alive,) = connection.execute(_IS_ALIVE, (int(STORE_REJOIN_S), *halves)).fetchone()
    return Life.ALIVE if alive else Life.ENDED


class ServerPresence:
    """Presence on any machine: a lock held by a connection of its own, which the server releases when that ends.

    A thread looks after the connection and takes the lock again where it was lost.
    """

    def __init__(self, server: Server) -> None:
        """Take a new lock. Raises `StoreUnavailable`."""
        self.id = secrets.token_hex(8)
        self._server = server
        self._gate = threading.Lock()
        self._session: Session | None = None
        self._closing = threading.Event()
        self.hold()
        threading.Thread(target=self._keep, name=f"presence {server.schema}", daemon=True).start()

    def hold(self) -> None:
        """See `Presence.hold`. Takes the lock again where the connection was lost."""
        with self._gate:
            if self._closing.is_set():
                raise StoreUnavailable(f"{self._server.name}: is closed")
            if self._session is not None:
                with contextlib.suppress(psycopg.Error):
                    self._session.run("SELECT 1")
                    return
                self._session.close()
                self._session = None
            session, taken = self._server.connect(), False
            try:
                taken = try_lock(session, _signed(int(self.id, 16), 64), self._server.name)
            finally:
                if not taken:
                    session.close()
            if not taken:
                # The server has yet to notice that our former connection is gone.
                raise StoreUnavailable(f"{self._server.name}: the sign of life of a lost connection is still there")
            self._session = session

    def close(self) -> None:
        """See `Presence.close`."""
        self._closing.set()
        with self._gate:
            if self._session is not None:
                self._session.close()

    def _keep(self) -> None:
        while not self._closing.wait(STORE_PRESENCE_S):
            with contextlib.suppress(StoreUnavailable):
                self.hold()


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number

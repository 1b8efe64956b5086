"""Tails: the files beside a pool in which its workers write down their steps, and their way into the books.

Every worker of one machine has one, in the folder `generation` beside the store. Whoever looks at the books enters all
tails first, up to where they reach. Whoever changes something that a lease builds on (what is ready, purchases, terms,
budgets) calls all tails in first: each owner goes on in a new one, with a new lease, once it notices. How far a tail is
entered is in the books too, in the same transaction, so nothing is entered twice.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from buyer.budgets import recount
from buyer.endings import lose_lease
from buyer.generation import Generation
from buyer.posting import post
from buyer.tail import Tail, Unposted, call_in, read_tail
from contracts.crash import checkpoint
from contracts.errors import StoreUnavailable
from contracts.storage import Connection

__all__ = ["Tails"]

_SUFFIX = ".tail"
_FOUND = "SELECT id, tail, entered FROM workers WHERE tail IS NOT NULL"


class Tails:
    """The tails beside one open pool, as the store calls for them (`contracts.storage.Beside`)."""

    def __init__(self, folder: Path, generation: Generation) -> None:
        """Use `folder`, made when missing. Raises `StoreUnavailable`."""
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{folder.name}: {error.strerror}") from None
        self._folder = folder
        self._generation = generation
        self._own: dict[str, Tail] = {}
        self._sends: int | None = None

    def new(self, worker_id: str) -> Tail:
        """Make the next tail of a worker. It counts once `begin_tail` has said so in the books."""
        number = 0
        while (path := self._folder / f"{self._generation.pool_id}.{worker_id}.{number}{_SUFFIX}").exists():
            number += 1
        return Tail(path)

    def begin_tail(self, connection: Connection, worker_id: str, tail: Tail) -> None:
        """Name a worker's new tail in the books. The one before must be entered, and be over."""
        connection.execute("UPDATE workers SET tail = ?, entered = 0 WHERE id = ?", (tail.path.name, worker_id))
        self._own[tail.path.name] = tail

    def discard(self, tail: Tail) -> None:
        """Remove a tail of ours that the books do not name, or no more."""
        self._own.pop(tail.path.name, None)
        tail.close()

    def begin(self) -> None:
        """See `Beside.begin`."""
        self._sends = None

    def call_in(self, connection: Connection) -> None:
        """See `Beside.call_in`. Raises `StoreUnavailable` when an owner cannot be told."""
        found = connection.execute(_FOUND).fetchall()
        for worker_id, name, entered in found:
            self._say_last_word(name)
            self._enter(connection, worker_id, name, entered)
        if found:
            checkpoint("buyer.called_in")

    def enter(self, connection: Connection) -> None:
        """See `Beside.enter`."""
        for worker_id, name, entered in connection.execute(_FOUND).fetchall():
            self._enter(connection, worker_id, name, entered)

    def enter_one(self, connection: Connection, worker_id: str) -> bool:
        """Enter what one worker has written down; tell whether its tail is over, or there is none."""
        row = connection.execute(f"{_FOUND} AND id = ?", (worker_id,)).fetchone()
        return row is None or self._enter(connection, *row)

    def is_there(self, connection: Connection, worker_id: str) -> bool:
        """Tell whether a worker's tail, if it has one, can be read."""
        row = connection.execute(f"{_FOUND} AND id = ?", (worker_id,)).fetchone()
        return row is None or self._size(row["tail"]) >= 0

    def committed(self) -> None:
        """See `Beside.committed`. A note that fails is made up for by the next."""
        sends, self._sends = self._sends, None
        if sends is not None:
            checkpoint("buyer.posted")
            with contextlib.suppress(StoreUnavailable):
                self._generation.note_send(sends)

    def is_behind(self, connection: Connection) -> bool:
        """See `Beside.is_behind`."""
        return any(self._size(name) != entered for _, name, entered in connection.execute(_FOUND).fetchall())

    def sweep(self, known: set[str]) -> None:
        """Remove the files of workers that are not on the books, those in `known`."""
        for path in self._folder.glob(f"{self._generation.pool_id}.*{_SUFFIX}"):
            if path.name.split(".")[1] not in known:
                path.unlink(missing_ok=True)

    def _enter(self, connection: Connection, worker_id: str, name: str, entered: int) -> bool:
        own = self._own.get(name)
        size, is_final = (self._size(name), False) if own is None else own.reach()
        if size == entered and not is_final:
            return False
        try:
            unposted = self._unposted(name, entered, size, is_final=is_final)
        except FileNotFoundError:
            # Somebody removed it, or the store came here without it: nobody can say what that worker did.
            lose_lease(connection, worker_id)
            recount(connection)
            return True
        except OSError as error:
            raise StoreUnavailable(f"{name}: {error.strerror}") from None
        if unposted.entries:
            sent = post(connection, worker_id, unposted.entries)
            self._sends = self._generation.count_sends(connection, sent)
        is_over = unposted.is_over or is_final
        if is_over or unposted.end != entered:
            values = (None if is_over else name, unposted.end, worker_id)
            connection.execute("UPDATE workers SET tail = ?, entered = ? WHERE id = ?", values)
        return is_over

    def _unposted(self, name: str, entered: int, size: int, *, is_final: bool) -> Unposted:
        """Return what a tail holds that is not in the books. Raises as `read_tail` does."""
        own = self._own.get(name)
        # Our own knows what of it counts, also where a write failed and the file says more.
        recent = None if own is None else own.since(entered)
        return recent or read_tail(self._folder / name, entered, size if is_final else None)

    def _say_last_word(self, name: str) -> None:
        own = self._own.get(name)
        if own is not None:
            own.finish()
            return
        try:
            call_in(self._folder / name)
        except FileNotFoundError:
            return  # which is met when it is read
        except OSError as error:
            raise StoreUnavailable(f"{name}: {error.strerror}") from None

    def _size(self, name: str) -> int:
        """Return how long a tail is; -1, which is never entered, where it is gone."""
        try:
            return (self._folder / name).stat().st_size
        except OSError:
            return -1

"""One store, open for this process: transactions, reads, and writes that are committed in groups."""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from contracts.errors import StoreUnavailable
from contracts.limits import STORE_GATHER_TURNS, STORE_GROUP_MAX, STORE_QUEUE_MAX
from contracts.storage.connection import Beside, Connection, Work
from contracts.storage.pending import Answer, Pending, Shared, report
from contracts.storage.presence import Life, Presence

__all__ = ["Database"]

T = TypeVar("T")


class Database(ABC):
    """One store, open for this process.

    `transact` runs a function inside one write transaction, on the caller's thread. `write` does the same from asyncio
    without blocking the loop, joining waiting writes into one commit. A function that raises is rolled back alone.
    `read` runs a function that only reads, outside any write transaction. Everything raises `StoreUnavailable` when
    the store says no, and `Conflict` when a constraint does. Writers of one store take turns, in all processes and
    machines; nobody waits longer than `STORE_BUSY_TIMEOUT_S` for its turn.

    A room may keep something `beside` its tables. Then `transact` calls that in first, and `read` enters it first.
    Work that neither reads nor changes anything such notes are about says so with `bare`, and is spared both.

    `name` is what errors call it; it tells no secret and no address.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.beside: Beside | None = None
        self._gate = threading.Lock()
        self._write_lock = threading.Lock()
        self._pending: list[Pending] = []
        # What the present turns of an event loop want written; the thread is woken once for all of it.
        self._gathered: list[Pending] = []
        # Wakes the thread: True for what is pending, False to end.
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._gathering: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._loop_thread: int | None = None

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether a write takes microseconds: False where each one crosses a network and would hold an event loop."""

    @property
    def is_free(self) -> bool:
        """Whether it does so now: False also while a writer is known to hold the store."""
        return self.is_local

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """The folder of the store's file; None where the store is a server."""

    def stay_responsive(self) -> None:
        """Say that the calling thread runs an event loop: no write on it waits longer than twice `STORE_LOOP_WAIT_S`.

        Work that may wait belongs into another thread, as soon as `is_free` says so.
        """
        self._loop_thread = threading.get_ident()

    @abstractmethod
    def transact(self, work: Work[T], *, durable: bool = True, bare: bool = False) -> T:
        """Run `work` in one write transaction and return its result once it is committed."""

    async def write(self, work: Work[T], *, durable: bool = True, shared: Shared | None = None) -> T:
        """`transact`, `bare`, for asyncio: waits for the next group commit.

        Raises `StoreUnavailable` when the queue is full.

        With `shared` it may be done together with others that share the same function: after those that came before
        it, but for others perhaps before them.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        with self._gate:
            self._check_room()
            if not self._gathered or self._gathering is not loop:
                self._gathering = loop
                loop.call_soon(self._gather, loop, 1, STORE_GATHER_TURNS)
            self._gathered.append(Pending(work, durable, answer, shared))
        # A caller that is cancelled here hears nothing; the write goes on, and may be committed already.
        return await answer

    @abstractmethod
    def read(self, work: Work[T], *, bare: bool = False) -> T:
        """Run `work`, which only reads. It sees everything that was reported written."""

    async def check_writable(self) -> None:
        """Write what is there already. Raises `StoreUnavailable` when the next real write would fail."""
        await self.write(self._touch, durable=False)

    @abstractmethod
    def presence(self) -> Presence:
        """Show this process to the others that use the store, under a new name. Raises `StoreUnavailable`."""

    @abstractmethod
    def life_of(self, presence_id: str) -> Life:
        """Tell whether the process that showed itself as `presence_id` lives. Raises `StoreUnavailable`."""

    @abstractmethod
    def forget(self, presence_id: str) -> None:
        """Remove what a process that has ended left behind to be seen by."""

    @abstractmethod
    def era(self) -> str:
        """Return what stays the same as long as no committed write can have been lost. Raises `StoreUnavailable`.

        Unsynced writes are lost with the machine, so SQLite's is the machine's boot.
        """

    @abstractmethod
    def exclusively(self, name: str) -> AbstractContextManager[None]:
        """Hold the lock `name` while a block runs; it ends with the process at the latest.

        Raises `RequestInProgress` when another process, or this one, holds it.
        """

    def close(self) -> None:
        """Finish the waiting writes and close the store. Further calls raise `StoreUnavailable`."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._hand_over()
        if self._thread is not None:
            self._wake.put(False)
            self._thread.join()
        self._close()

    # What a kind of store provides

    @abstractmethod
    def _begin(self, durable: bool) -> Connection:
        """Wait for our turn and begin a write transaction. Raises `StoreUnavailable`."""

    @abstractmethod
    def _commit(self) -> None:
        """Commit. Raises `StoreUnavailable`."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Leave the transaction, if there is one, without a word."""

    @abstractmethod
    def _is_inside(self) -> bool:
        """Tell whether the transaction still stands after an error inside it."""

    @abstractmethod
    def _told(self, error: BaseException) -> BaseException:
        """Return what the caller is told: the driver's errors by our names, everything else as it is."""

    @abstractmethod
    def _touch(self, connection: Connection) -> None:
        """Write a page with what it holds already."""

    @abstractmethod
    def _close(self) -> None:
        """Close what is open. Nothing else runs any more."""

    # Group commit

    def _enqueue(self, work: Work[T], durable: bool, answer: Answer[T]) -> None:
        """Have `work` done in the next group commit, and `answer` told."""
        with self._gate:
            self._check_room()
            self._pending.append(Pending(work, durable, answer))
        self._wake.put(True)

    def _check_room(self) -> None:
        """Raise `StoreUnavailable` where nothing more can be written. Under the gate."""
        if self._closed:
            raise StoreUnavailable(f"{self.name}: is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve_writes, name=f"writer {self.name}", daemon=True)
            self._thread.start()
        if len(self._pending) + len(self._gathered) >= STORE_QUEUE_MAX:
            raise StoreUnavailable(f"{self.name}: {STORE_QUEUE_MAX} writes are waiting")

    def _gather(self, loop: asyncio.AbstractEventLoop, known: int, turns: int) -> None:
        """Wait for another turn of the loop while each brings more: a commit costs as much as a dozen of its writes."""
        waiting = len(self._gathered)
        if waiting > known and turns:
            loop.call_soon(self._gather, loop, waiting, turns - 1)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        with self._gate:
            self._pending += self._gathered
            self._gathered = []
        self._wake.put(True)

    def _serve_writes(self) -> None:
        while self._wake.get():
            while group := self._take(STORE_GROUP_MAX):
                self._commit_group(group)

    def _take(self, writes_max: int) -> list[Pending]:
        """Return what waits longest."""
        with self._gate:
            taken, self._pending = self._pending[:writes_max], self._pending[writes_max:]
        return taken

    def _commit_group(self, group: list[Pending]) -> None:
        """Run every member under a savepoint, its own or that of those like it, commit once, and only then report."""
        with self._write_lock:
            try:
                connection = self._begin_for(group)
                if len(group) == 1 and group[0].shared is None:
                    group[0].end(group[0].work(connection))
                else:
                    self._run_together(connection, group)
                    for pending in group:
                        if not pending.has_ended:
                            pending.end(*self._attempt(connection, pending.work))
                self._commit()
            except BaseException as error:  # noqa: BLE001 - handed to every waiting caller
                self._roll_back()
                told = self._told(error)
                for pending in group:
                    pending.end(None, told)
        report(group)

    def _run_together(self, connection: Connection, group: list[Pending]) -> None:
        """Run what can be done for many at once. What that fails for is left as it is."""
        alike: dict[Any, list[Pending]] = {}
        for pending in group:
            if pending.shared is not None:
                alike.setdefault(pending.shared.run, []).append(pending)
        for run, members in alike.items():
            items = [pending.shared.item for pending in members if pending.shared is not None]
            outcomes, failure = self._attempt(connection, run, items)
            if failure is None:
                for pending, outcome in zip(members, outcomes, strict=True):
                    pending.end(*((None, outcome) if isinstance(outcome, Exception) else (outcome, None)))

    def _begin_for(self, group: list[Pending]) -> Connection:
        """Begin for a group. Where its turn does not come, whoever came meanwhile is told so with it.

        Otherwise the next group would wait as long again, and its members twice.
        """
        try:
            return self._begin(any(pending.durable for pending in group))
        except StoreUnavailable:
            group += self._take(STORE_QUEUE_MAX)
            raise

    def _attempt(
        self, connection: Connection, work: Callable[..., Any], *arguments: Any
    ) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT member")
        try:
            result = work(connection, *arguments)
        except BaseException as error:
            if not self._is_inside():
                raise  # a full disk or a lost connection ends the whole group
            connection.execute("ROLLBACK TO SAVEPOINT member")
            connection.execute("RELEASE SAVEPOINT member")
            return None, self._told(error)
        connection.execute("RELEASE SAVEPOINT member")
        return result, None

"""Slots: the authorizations that one worker process has leased from the pool and not yet handed out.

Taking a share is a synced write and happens once for many claims. What this process holds, no other hands out, as long
as it is seen alive (`buyer.lease`).
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from buyer.claim import usable_until_s
from buyer.generation import Generation
from buyer.lease import Worker, is_known, recover
from buyer.limits import LEASE_SHARE, WALLET_DAY_BEGINS_S
from buyer.moves import move_sql
from buyer.purchase import Purchase
from buyer.rows import authorization_from_row
from buyer.seal import Seal, read_seal_id
from buyer.steps import Values
from contracts.crash import checkpoint
from contracts.errors import AuthorizationsExhausted, PoolRestored, StoreUnavailable
from contracts.lifecycle import AuthorizationEvent
from contracts.limits import STORE_BUSY_TIMEOUT_S
from contracts.schemes.authorization import Authorization
from contracts.storage import Connection, Database, Row

__all__ = ["Slot", "Slots", "patiently"]

# validBefore, row id, what was signed, its signature: in the order in which they are handed out.
Slot = tuple[int, int, Authorization, bytes]

_TAKE_OVERDUE = move_sql(
    AuthorizationEvent.TIME_OVER,
    "lease = NULL, reason = 'too old to send'",
    # One set of terms, as the index has them: a look at the whole pool would cost more than all claims of a lease.
    "purchase_id = :purchase AND terms_id = :terms AND valid_before_s < :until AND (lease IS NULL OR lease = :lease)",
)
_FREE = """
    SELECT authorizations.* FROM authorizations JOIN purchases ON purchases.id = authorizations.purchase_id
    WHERE authorizations.state = 'ready' AND authorizations.purchase_id = :purchase
        AND authorizations.terms_id = :terms AND purchases.state != 'removed' AND purchases.restored_s IS NULL
        AND valid_before_s >= :until AND valid_after_s <= :begun
"""


@contextmanager
def patiently(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock under which others may be waiting for the store. Raises `StoreUnavailable` rather than queue up."""
    if not lock.acquire(timeout=STORE_BUSY_TIMEOUT_S):
        raise StoreUnavailable("the store is busy, and others wait for it already")
    try:
        yield
    finally:
        lock.release()


class Slots:
    """What one worker holds, soonest to expire first; safe for threads. `era` tells the store's present era."""

    def __init__(
        self,
        database: Database,
        era: Callable[[], str],
        generation: Generation,
        lease_size: int,
        seal: Seal | None,
    ) -> None:
        self._database = database
        self._era = era
        self._generation = generation
        self._lease_size = lease_size
        self._seal = seal
        self._slots: dict[tuple[int, int], list[Slot]] = {}
        self._lock = threading.Lock()
        self.worker = Worker(database, era())

    def take(self, purchase: Purchase, now_s: int) -> tuple[Slot, str]:
        """Return the next slot of `purchase` that can be sent now, and the name of the lease it is held under.

        Raises `AuthorizationsExhausted`, `PoolRestored` or `StoreUnavailable`.
        """
        until_s = usable_until_s(purchase, now_s)
        key = (purchase.id, purchase.terms_id)
        with patiently(self._lock):
            while True:
                slots = self._slots.get(key)
                if not slots:
                    slots = self._slots[key] = self._lease(purchase, until_s, now_s)
                slot = heapq.heappop(slots)
                if slot[0] >= until_s:
                    return slot, self.worker.id

    def put_back(self, purchase: Purchase, slot: Slot) -> None:
        """Take back a slot that was not used."""
        with self._lock:
            heapq.heappush(self._slots.setdefault((purchase.id, purchase.terms_id), []), slot)

    def open_signature(self, row: Row) -> bytes:
        """Return the signature in a row as it was made. Raises `ConfigInvalid` when the row was changed."""
        signature: bytes = row["signature"]
        return signature if self._seal is None else self._seal.open(signature, row["nonce"])

    def check_seal(self, connection: Connection) -> None:
        """Raise `StoreUnavailable` when the pool was sealed after this process had opened it."""
        if self._seal is None and read_seal_id(connection) is not None:
            raise StoreUnavailable("the pool was sealed since this process opened it", remedy="start it again")

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._slots.clear()
            self.worker.close()

    def _lease(self, purchase: Purchase, until_s: int, now_s: int) -> list[Slot]:
        """Take a share of what is free; else, from what living workers hold unclaimed. Never returns an empty list."""
        self._be_alive()
        values: Values = {
            "purchase": purchase.id,
            "terms": purchase.terms_id,
            "until": until_s,
            "begun": max(0, now_s - WALLET_DAY_BEGINS_S),
            "lease": self.worker.id,
        }
        # Rows of our own that are in no list of ours: their terms were pinned anew.
        free = "(lease IS NULL OR lease = :lease)"
        slots = self._take_share(values, free)
        if not slots:
            recover(self._database, self._era())
            slots = self._take_share(values, "TRUE")
        if not slots:
            self._check_restored(purchase)
            raise AuthorizationsExhausted(
                f"{purchase.name}: no authorization is left to spend",
                remedy=f"run `farebox refill {purchase.name} --count N`",
            )
        checkpoint("buyer.leased")
        return slots

    def _check_restored(self, purchase: Purchase) -> None:
        query = "SELECT restored_s FROM purchases WHERE id = ?"
        row = self._database.read(lambda connection: connection.execute(query, (purchase.id,)).fetchone())
        if row is not None and row["restored_s"] is not None:
            raise PoolRestored(f"{purchase.name}: this pool is an older copy of itself, and may hold spent payments")

    def _be_alive(self) -> None:
        """Take a new name where this process was taken for dead, or its former writes may be gone."""
        era = self._era()
        if not self.worker.holds(era):
            self._slots.clear()
            self.worker.abandon()
            self.worker = Worker(self._database, era)
            recover(self._database, era)

    def _take_share(self, values: Values, whose: str) -> list[Slot]:
        def take_share(connection: Connection) -> tuple[list[Slot], int]:
            return self._share(connection, values, whose), self._generation.lease(connection)

        slots, leases = self._database.transact(take_share)
        self._generation.note_lease(leases)
        return slots

    def _share(self, connection: Connection, values: Values, whose: str) -> list[Slot]:
        if not is_known(connection, self.worker.id):
            raise StoreUnavailable("this process was just taken for dead")
        self.check_seal(connection)
        connection.execute(_TAKE_OVERDUE, values)
        free = f"{_FREE} AND {whose} ORDER BY valid_before_s, authorizations.id LIMIT :limit"
        ids = free.replace("authorizations.*", "authorizations.id", 1)
        (available,) = connection.execute(
            f"SELECT count(*) FROM ({ids}) AS free",  # noqa: S608 - constants only
            {**values, "limit": self._lease_size * LEASE_SHARE},
        ).fetchone()
        share = max(1, min(self._lease_size, available // LEASE_SHARE))
        rows = connection.execute(free, {**values, "limit": share}).fetchall()
        connection.executemany(
            "UPDATE authorizations SET lease = ? WHERE id = ?", [(values["lease"], row["id"]) for row in rows]
        )
        return [
            (row["valid_before_s"], row["id"], authorization_from_row(row), self.open_signature(row)) for row in rows
        ]

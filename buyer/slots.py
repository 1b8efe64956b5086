"""Slots: the authorizations that one worker process has leased from the pool and not yet handed out.

Taking a share is a synced write and happens once for many claims. What this process holds, no other hands out, as long
as it is seen alive (`buyer.lease`). In a store of one machine the worker also has a tail (`buyer.tail`): until that is
over, nobody else changes what is leased here, so a claim needs no look at the books. When it is over, all that is in
memory here is forgotten, and the next lease begins with what the books then say.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from buyer.budgets import read_budgets, scopes_of
from buyer.claim import receipt_id, usable_until_s
from buyer.endings import is_known
from buyer.generation import Generation
from buyer.lease import Worker, recover
from buyer.limits import LEASE_BRIEF_S, LEASE_GROWTH_MAX, LEASE_SHARE, TAIL_BYTES_MAX, WALLET_DAY_BEGINS_S
from buyer.moves import move_sql
from buyer.purchase import Purchase
from buyer.seal import Seal, read_seal_id
from buyer.steps import CLAIM, Values
from buyer.tail import Tail
from buyer.tails import Tails
from contracts.crash import checkpoint
from contracts.errors import AuthorizationsExhausted, PoolRestored, StoreUnavailable
from contracts.lifecycle import AuthorizationEvent
from contracts.limits import STORE_BUSY_TIMEOUT_S
from contracts.schemes.authorization import Authorization
from contracts.storage import Connection, Database, Life, Row

__all__ = ["Slot", "Slots", "patiently"]

# validBefore, row id, what was signed, its signature, its receipt's name.
Slot = tuple[int, int, Authorization, bytes, str]

_TAKE_OVERDUE = move_sql(
    AuthorizationEvent.TIME_OVER,
    "lease = NULL, reason = 'too old to send'",
    # One set of terms, as the index has them: a look at the whole pool would cost more than all claims of a lease.
    "purchase_id = :purchase AND terms_id = :terms AND valid_before_s < :until",
)
_IS_FOR_SALE = """
    SELECT EXISTS (SELECT 1 FROM purchases WHERE id = :purchase AND state != 'removed' AND restored_s IS NULL)
"""
_FREE = """
    FROM authorizations WHERE state = 'ready' AND purchase_id = :purchase AND terms_id = :terms
        AND valid_before_s >= :until AND valid_after_s <= :begun
"""
# What `_slot` reads, in its order.
_SLOT = "id, chain_id, payer, payee, value_atomic, valid_after_s, valid_before_s, nonce, facilitator, signature"
_IS_HELD = """
    SELECT EXISTS (SELECT 1 FROM authorizations WHERE state = 'ready' AND purchase_id = :purchase
        AND terms_id = :terms AND lease IS NOT NULL)
"""
# Whose rows a lease may take. Ours that are in no list of ours: their terms were pinned anew, or the lists forgotten.
_NOBODYS, _OURS_TOO, _ANYBODYS = "lease IS NULL", "(lease IS NULL OR lease = :lease)", "TRUE"


@contextmanager
def patiently(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock under which others may be waiting for the store. Raises `StoreUnavailable` rather than queue up."""
    if not lock.acquire(timeout=STORE_BUSY_TIMEOUT_S):
        raise StoreUnavailable("the store is busy, and others wait for it already")
    try:
        yield
    finally:
        lock.release()


def _later_first(slot: Slot) -> tuple[int, int]:
    """The order of a list of slots, which is taken from its end."""
    return -slot[0], -slot[1]


class Slots:
    """What one worker holds, soonest to expire first; safe for threads. `era` tells the store's present era.

    `tail` is where steps may be written down; None where there is no tail, or none now. `epoch` counts how often
    everything was forgotten.
    """

    def __init__(
        self,
        database: Database,
        era: Callable[[], str],
        generation: Generation,
        *,
        lease_size: int,
        seal: Seal | None,
        tails: Tails | None,
    ) -> None:
        self._database = database
        self._era = era
        self._generation = generation
        self._lease_size = lease_size
        self._seal = seal
        self._tails = tails
        self._slots: dict[tuple[int, int], list[Slot]] = {}
        # How large the last lease of each list was to be, and when it was taken, unix seconds.
        self._last: dict[tuple[int, int], tuple[int, int]] = {}
        # Rows taken out of the lists by somebody who has yet to write that down.
        self._held: set[int] = set()
        self._budgeted: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self.tail: Tail | None = None
        self._over: list[Tail] = []
        self.epoch = 0
        self.worker = Worker(database, era(), tails)

    def take(self, purchase: Purchase, now_s: int) -> tuple[Slot, str, int]:
        """Return the next slot of `purchase` that can be sent now, the name of the lease it is held under, its epoch.

        `release` or `put_back` follows. Raises `AuthorizationsExhausted`, `PoolRestored` or `StoreUnavailable`.
        """
        with patiently(self._lock):
            slot = self._next(purchase, now_s)
            self._held.add(slot[1])
            return slot, self.worker.id, self.epoch

    def claim(self, purchase: Purchase, now_s: int, values: Values) -> tuple[Slot, Tail, int] | None:
        """Take the next slot and write its claim down in the tail; None where that cannot be.

        Raises what `take` does. After `StoreUnavailable` the claim may be written down or not.
        """
        if self._tails is None:
            return None
        # Not `patiently`, and at once where nobody else is in here: that is most of what this costs otherwise.
        if not self._lock.acquire(False) and not self._lock.acquire(timeout=STORE_BUSY_TIMEOUT_S):
            raise StoreUnavailable("the store is busy, and others wait for it already")
        try:
            slot = self._next(purchase, now_s)
            tail = self.tail
            assert tail is not None, "what is leased is leased with a tail"
            if self._budgeted and self._is_budgeted(purchase, values):
                self._slots[purchase.id, purchase.terms_id].append(slot)
                return None
            try:
                counts = tail.append(CLAIM, slot[1], values)
            except StoreUnavailable:
                self._forget()
                raise
            if not counts:
                self._forget()
                return None
            return slot, tail, self.epoch
        finally:
            self._lock.release()

    def put_back(self, purchase: Purchase, slot: Slot, epoch: int, *, in_doubt: bool = False) -> None:
        """Take back a slot that was taken in `epoch` and not used. `in_doubt`: unless the books say otherwise."""
        with self._lock:
            self._held.discard(slot[1])
            # What was forgotten since is found again in the books. So is what is in doubt; without a tail the next
            # claim of it asks them, too.
            if epoch == self.epoch and not (in_doubt and self._tails is not None):
                slots = self._slots.setdefault((purchase.id, purchase.terms_id), [])
                bisect.insort(slots, slot, key=_later_first)

    def release(self, slot: Slot) -> None:
        """What became of a slot is written down, or the books alone will tell."""
        with self._lock:
            self._held.discard(slot[1])

    def enter_tails(self, connection: Connection, *, of_others: bool) -> None:
        """Enter what this worker has written down, before a step of its is written into the books themselves.

        With `of_others`, what all have: for a step that looks for another request's.
        """
        if self._tails is None:
            return
        tail = self.tail
        if of_others:
            self._tails.enter(connection)
        elif tail is None or tail.size:
            self._tails.enter_one(connection, self.worker.id)

    def open_signature(self, row: Row) -> bytes:
        """Return the signature in a row as it was made. Raises `ConfigInvalid` when the row was changed."""
        signature: bytes = row["signature"]
        return signature if self._seal is None else self._seal.open(signature, row["nonce"])

    def check_seal(self, connection: Connection) -> None:
        """Raise `StoreUnavailable` when the pool was sealed after this process had opened it."""
        if self._seal is None and read_seal_id(connection) is not None:
            raise StoreUnavailable("the pool was sealed since this process opened it", remedy="start it again")

    def recover(self) -> None:
        """Settle the leases of workers that died."""
        recover(self._database, self._era(), self._tails)

    def may_be_dead(self, row: Row) -> bool:
        """Tell whether a row of `UNANSWERED` is of a worker that has to be looked at: it holds what was asked for, or
        died with a tail.
        """
        if row["lease"] in (None, self.worker.id):
            return False
        return row["id"] is not None or self._database.life_of(row["lease"]) is not Life.ALIVE

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._forget()
            self.worker.close()
            self._remove_tails()

    def _next(self, purchase: Purchase, now_s: int) -> Slot:
        until_s = usable_until_s(purchase, now_s)
        key = (purchase.id, purchase.terms_id)
        while True:
            slots = self._slots.get(key)
            if not slots:
                slots = self._lease(purchase, until_s, now_s)
            slot = slots.pop()
            if slot[0] >= until_s:
                return slot

    def _is_budgeted(self, purchase: Purchase, values: Values) -> bool:
        """Tell whether a budget limits a claim: then its price is taken where the budget is, in the books."""
        return not self._budgeted.isdisjoint(scopes_of(purchase, values["client_key"] or ""))

    def _forget(self) -> None:
        """Forget what is leased here; the tail is over with it."""
        if self.tail is not None:
            self.tail.finish()
            self._over.append(self.tail)
            self.tail = None
        self._slots.clear()
        self._last.clear()
        self.epoch += 1

    def _remove_tails(self) -> None:
        """Remove the tails that are over, once the books have all they say."""
        while self._over and self._tails is not None:
            self._tails.discard(self._over.pop())

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
        key = (purchase.id, purchase.terms_id)
        values["size"] = self._size(key, now_s)
        self._take_share(key, values, from_others=False)
        if not self._slots.get(key):
            self.recover()
            self._take_share(key, values, from_others=True)
        if not (slots := self._slots.get(key)):
            self._check_restored(purchase)
            raise AuthorizationsExhausted(
                f"{purchase.name}: no authorization is left to spend",
                remedy=f"run `farebox refill {purchase.name} --count N`",
            )
        self._last[key] = values["size"], now_s
        checkpoint("buyer.leased")
        return slots

    def _size(self, key: tuple[int, int], now_s: int) -> int:
        """Return how many to lease: as many as at first, or twice the last lease where that was soon used up."""
        size, leased_s = self._last.get(key, (self._lease_size, 0))
        is_brief = now_s - leased_s <= LEASE_BRIEF_S
        return min(2 * size, LEASE_GROWTH_MAX * self._lease_size) if is_brief else self._lease_size

    def _check_restored(self, purchase: Purchase) -> None:
        query = "SELECT restored_s FROM purchases WHERE id = ?"
        row = self._database.read(lambda connection: connection.execute(query, (purchase.id,)).fetchone(), bare=True)
        if row is not None and row["restored_s"] is not None:
            raise PoolRestored(f"{purchase.name}: this pool is an older copy of itself, and may hold spent payments")

    def _be_alive(self) -> None:
        """Take a new name where this process was taken for dead, or its former writes may be gone."""
        era = self._era()
        if not self.worker.holds(era):
            self._forget()
            self.worker.abandon()
            self.worker = Worker(self._database, era, self._tails)
            self.recover()
            self._remove_tails()

    def _take_share(self, key: tuple[int, int], values: Values, *, from_others: bool) -> None:
        """Put a share into the list at `key`. Where the tail was over, everything begins anew with another one."""
        if self.tail is not None and self.tail.size > TAIL_BYTES_MAX:
            self._forget()
        fresh: list[Tail] = []

        def take_share(connection: Connection) -> tuple[list[Slot], frozenset[str], int]:
            whose = self._lay_hands_on(connection, values, fresh, from_others=from_others)
            if not is_known(connection, self.worker.id):
                raise StoreUnavailable("this process was just taken for dead")
            self.check_seal(connection)
            budgeted = frozenset(budget.scope for budget in read_budgets(connection))
            return self._share(connection, values, whose), budgeted, self._generation.lease(connection)

        try:
            slots, budgeted, leases = self._database.transact(take_share, bare=True)
        except BaseException:
            for tail in fresh:
                tail.finish()  # it may be in the books or not; what follows begins with another one
            raise
        if fresh:
            self._forget()
            (self.tail,) = fresh
            self._budgeted = budgeted
            self._remove_tails()
        self._slots[key] = slots
        self._generation.note_lease(leases)

    def _lay_hands_on(self, connection: Connection, values: Values, fresh: list[Tail], *, from_others: bool) -> str:
        """Return whose rows a share may be taken from, with the books complete and nobody else at them."""
        tails = self._tails
        if tails is None:
            return _ANYBODYS if from_others else _OURS_TOO
        if from_others:
            tails.enter(connection)
            (is_held,) = connection.execute(_IS_HELD, values).fetchone()
            if is_held:
                tails.call_in(connection)
        if not tails.enter_one(connection, self.worker.id):
            return _NOBODYS
        fresh.append(tails.new(self.worker.id))
        tails.begin_tail(connection, self.worker.id, fresh[0])
        return _ANYBODYS if from_others else _OURS_TOO

    def _share(self, connection: Connection, values: Values, whose: str) -> list[Slot]:
        # Without tails nobody was called in, and another worker may be about to send what is overdue by our clock.
        overdue = _OURS_TOO if self._tails is None else whose
        connection.execute(f"{_TAKE_OVERDUE} AND {overdue}", values)
        (is_for_sale,) = connection.execute(_IS_FOR_SALE, values).fetchone()
        if not is_for_sale:
            return []
        held = f" AND id NOT IN ({', '.join(map(str, self._held))})" if self._held else ""
        free = f"{_FREE} AND {whose}{held} ORDER BY valid_before_s, id LIMIT :limit"
        (available,) = connection.execute(
            f"SELECT count(*) FROM (SELECT id {free}) AS free",  # noqa: S608 - constants and numbers only
            {**values, "limit": values["size"] * LEASE_SHARE},
        ).fetchone()
        share = max(1, min(values["size"], available // LEASE_SHARE))
        rows = connection.execute(
            f"UPDATE authorizations SET lease = :lease WHERE id IN (SELECT id {free}) RETURNING {_SLOT}",  # noqa: S608
            {**values, "limit": share},
        ).fetchall()
        return sorted(map(self._slot, rows), key=_later_first)

    def _slot(self, row: Row) -> Slot:
        # By place: a look-up by name goes through a row's columns, a dozen times for each claim.
        row_id, chain_id, payer, payee, value, valid_after_s, valid_before_s, nonce, facilitator, signature = row
        signed = Authorization(payer, payee, int(value), valid_after_s, valid_before_s, nonce, facilitator)
        if self._seal is not None:
            signature = self._seal.open(signature, nonce)
        return valid_before_s, row_id, signed, signature, receipt_id(chain_id, payer, nonce)

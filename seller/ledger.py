"""The seller's ledger: who holds which payment, what was done for it, and what is due.

A payment is known by (chain id, registry, payer, nonce) as values, where the registry burns the nonce: the token, or
Permit2. `reserve` is one durable transaction: it finds the key free, weighs the payer's exposure, and takes the key, or
it refuses. Only then may work begin.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from contracts.address import Address
from contracts.errors import StoreUnavailable
from contracts.lifecycle import Money, Work
from contracts.storage import Conflict, Connection, Database, Life, Shared, open_database
from seller import endings, payments, spool, statement
from seller.claims import AlreadyServed, Claim, Replay, Wanted, is_same_payment, judge_known
from seller.policy import Caps
from seller.reservations import Reservations
from seller.spool import Beginning, State
from seller.statement import Found, PaymentState, Sums
from seller.verify import VerifiedPayment

__all__ = ["AlreadyServed", "Claim", "Ledger", "Replay"]

T = TypeVar("T")

_MIGRATIONS = "seller.migrations"


class Ledger:
    """One token's payments in a store that several processes may share."""

    def __init__(self, store_url: str, chain_id: int, token: Address) -> None:
        """Open the store and take up what processes that died left half done. Raises `StoreUnavailable`."""
        self.database: Database = open_database(store_url, _MIGRATIONS)
        self.chain_id = chain_id
        self.token = token
        self._reservations = Reservations(chain_id, token)
        # What a store that failed could not be told; it is told before the next claim.
        self._leftovers: list[Callable[[Connection], object]] = []
        # Names of claims whose delivery was not known to be noted, and therefore did not happen.
        self._undelivered: set[str] = set()
        self._numbers = itertools.count(1)
        try:
            self.owner = self.database.presence()
            self._transact(self._enroll)
            self.recover()
        except BaseException:
            self.database.close()
            raise

    def close(self) -> None:
        """Give back what never began, and close the store."""
        try:
            # What a store that fails now is not told, the next process that opens it finds out by itself.
            with contextlib.suppress(StoreUnavailable):
                self._end_owner(self.owner.id)
        finally:
            self.owner.close()
            self.database.close()

    # Claiming

    async def reserve(
        self,
        payment: VerifiedPayment,
        request_digest: bytes,
        route: str,
        *,
        setting: Literal["auto", "before", "after", "async"],
        caps: Caps,
        balance_atomic: Callable[[int], int | None],
        since_block: int,
        now_s: int,
        amount_known: bool = False,
    ) -> Claim | Replay:
        """Take the payment's key for this request, durably, and decide how it will be settled.

        `balance_atomic` is told what the ledger has settled of this payer and returns what the payer has. With
        `amount_known` what is metered is over already, as for a facilitator, and settles like any other payment. A kept
        answer is returned in place of a claim. Raises `RequestInProgress` or `AlreadyServed` (409), `PaymentReplayed`
        (402), `ExposureExceeded` (429), `InsufficientFunds` (402), or a failure of ours (503).
        """

        owner = f"{self.owner.id}/{next(self._numbers)}"

        wanted = Wanted(
            payment,
            request_digest,
            route,
            owner,
            setting,
            caps,
            balance_atomic,
            since_block,
            now_s,
            amount_known,
        )

        def work(connection: Connection) -> Claim | Replay:
            self._enroll(connection)
            return self._reservations.one(connection, wanted)

        return await self._claim(work, owner, Shared(self._reserve_together, wanted))

    async def recall(self, payment: VerifiedPayment, request_digest: bytes) -> Claim | Replay | None:
        """Return what is due to a payment that came here before with this signature and request, or None.

        It was verified then. Its time may be over since, or the price another: what was paid stays paid. Raises as
        `reserve` does.
        """

        def find(connection: Connection) -> Any:
            row = self._row(connection, payment)
            return row if row is not None and is_same_payment(row, payment) else None

        owner = f"{self.owner.id}/{next(self._numbers)}"

        def work(connection: Connection) -> Claim | Replay | None:
            self._enroll(connection)
            row = find(connection)
            return None if row is None else judge_known(connection, row, payment, request_digest, owner)

        if self.database.read(find) is None:
            return None
        return await self._claim(work, owner)

    async def _claim(self, work: Callable[[Connection], T], owner: str, shared: Shared | None = None) -> T:
        """Write a claim that is called `owner`. Where nobody knows whether it was written, the next one ends it."""
        if self._leftovers:
            await self._end_leftovers()
        try:
            return await self._write(work, durable=True, shared=shared)
        except StoreUnavailable as error:
            code = error.code
            self._leftovers.append(lambda connection: endings.give_up_by_name(connection, owner, code))
            raise

    async def begin(self, claim: Claim) -> None:
        """Note that the application is about to run for a claim. A claim on credit or `async` is begun already."""

        def work(connection: Connection) -> None:
            endings.check_held(connection, claim)
            connection.execute(
                "UPDATE payments SET work = 'running', runs = runs + 1, updated_ms = ? WHERE id = ?",
                (_now_ms(), claim.id),
            )

        await self._write(work)

    async def owe(self, claim: Claim, answer: Beginning | None = None, *, charged_atomic: int | None = None) -> bool:
        """Put a claim in the settlement queue, durably; with `answer`, its first byte is about to leave.

        `charged_atomic` is what a metered claim came to; zero is settled without a transaction. Returns whether the
        answer is kept for a client that loses it.
        """

        delivery = None if answer is None else endings.Delivery(claim, answer)

        def work(connection: Connection) -> bool:
            endings.check_held(connection, claim)
            kept = delivery is not None and endings.deliver(connection, self.owner.id, delivery)
            endings.owe(connection, claim.id, charged_atomic)
            return kept

        if delivery is None:
            return await self._write(work, durable=True)
        is_plain = charged_atomic is None
        return await self._write_delivery(work, claim, Shared(self._owe_together, delivery) if is_plain else None)

    async def deliver_metered(self, claim: Claim, answer: Beginning, metered_atomic: int) -> bool:
        """Note that the first byte of an answer is about to leave whose price its end will tell; `charge` ends it.

        `metered_atomic` is what is due if this process dies now. Returns whether the answer is kept.
        """

        def work(connection: Connection) -> bool:
            endings.check_held(connection, claim)
            # The claim stays its owner's, and its whole value in the sums: what it comes to is still to be noted.
            connection.execute(
                "UPDATE payments SET work = ?, metered_atomic = ? WHERE id = ?",
                (Work.DELIVERED.value, str(metered_atomic), claim.id),
            )
            return spool.keep(connection, claim.id, self.owner.id, answer, _now_ms())

        return await self._write_delivery(work, claim)

    async def meter(self, claim: Claim, metered_atomic: int) -> None:
        """Note what a metered answer has come to so far; that is charged if this process dies now."""

        def work(connection: Connection) -> None:
            endings.check_held(connection, claim)
            connection.execute("UPDATE payments SET metered_atomic = ? WHERE id = ?", (str(metered_atomic), claim.id))

        await self._write(work)

    async def charge(self, claim: Claim, charged_atomic: int) -> None:
        """Queue what a delivered, metered answer came to, durably. Where the store fails, the next claim says it."""

        def work(connection: Connection) -> None:
            endings.end_metered(connection, claim, charged_atomic)

        try:
            await self._write(work, durable=True)
        except StoreUnavailable:
            self._leftovers.append(work)
            raise

    async def delivered(self, claim: Claim, answer: Beginning) -> bool:
        """Note that the first byte of a settled claim is about to leave; return whether the answer is kept."""

        delivery = endings.Delivery(claim, answer)
        return await self._write_delivery(
            lambda connection: endings.deliver(connection, self.owner.id, delivery), claim
        )

    async def _write_delivery(
        self, work: Callable[[Connection], bool], claim: Claim, shared: Shared | None = None
    ) -> bool:
        """Note a delivery before it happens. Not known to be written, it will not happen, and `give_up` says so."""
        try:
            return await self._write(work, durable=True, shared=shared)
        except StoreUnavailable:
            self._undelivered.add(claim.owner)
            raise

    async def record(self, payment_id: int, position: int, body: bytes, state: State) -> bool:
        """Write down what followed of a delivered answer; return whether it is still kept."""

        def append(connection: Connection, body: bytes, state: State) -> bool:
            now_ms = _now_ms()
            return spool.append(connection, payment_id, position, body, state, owner=self.owner.id, now_ms=now_ms)

        try:
            return await self._write(lambda connection: append(connection, body, state))
        except StoreUnavailable:
            # Whoever comes back for it must not wait for an end that nobody writes.
            self._leftovers.append(lambda connection: append(connection, b"", State.DROPPED))
            raise

    def recorded(self, payment_id: int, position: int) -> bytes | None:
        """Return a later piece of a kept answer, or None past its end."""
        return self.database.read(lambda connection: spool.chunk(connection, payment_id, position))

    async def count_replay(self, payment_id: int) -> None:
        """Note that a kept answer is given once more."""
        await self._write(lambda connection: spool.count_replay(connection, payment_id))

    async def sweep(self) -> int:
        """Delete kept answers whose time is over; return how many went."""
        return await self._write(lambda connection: spool.sweep(connection, _now_ms()))

    async def give_up(self, claim: Claim, reason: str) -> Money | None:
        """End a claim whose goods were withheld, and return what its money is now (None: its key is free).

        Not sent to the chain: it costs nothing, and the same payment may come again for the same request. On its way
        or settled: it becomes a credit for that request.
        """
        undelivered = claim.owner in self._undelivered
        self._undelivered.discard(claim.owner)

        def work(connection: Connection) -> Money | None:
            return endings.give_up(connection, claim, reason, undelivered=undelivered)

        try:
            return await self._write(work)
        except StoreUnavailable:
            self._leftovers.append(work)
            raise

    async def finish(self, claim: Claim) -> None:
        """End a settled claim whose only goods was the settlement."""

        def work(connection: Connection) -> None:
            endings.check_held(connection, claim)
            endings.end_work(connection, claim.id, Work.DELIVERED)

        await self._write(work)

    # Asking

    def find(self, payment: VerifiedPayment) -> Found | None:
        """Return what is known of the payment with this payer and nonce, whatever its other terms."""
        return self.database.read(lambda connection: statement.found(self._row(connection, payment)))

    def state(self, payment_id: int) -> PaymentState | None:
        """Return what became of a payment's money, or None when it left no trace."""
        return self.database.read(lambda connection: statement.state(connection, payment_id))

    def settled_atomic(self, payer: Address) -> int:
        """Return what was settled of one payer so far."""
        return self.database.read(
            lambda connection: statement.settled_atomic(connection, self.chain_id, self.token, payer)
        )

    def sums(self) -> Sums:
        """Return the books."""
        return self.database.read(lambda connection: statement.sums(connection, self.chain_id, self.token))

    def transactions(self, limit: int) -> list[str]:
        """Return the transactions that settled the latest `limit` payments, newest first."""
        return self.database.read(
            lambda connection: statement.transactions(connection, self.chain_id, self.token, limit)
        )

    def recover(self) -> int:
        """Take up the payments of processes that have ended; return how many such processes there were."""
        names = self.database.read(lambda connection: connection.execute("SELECT id FROM owners").fetchall())
        gone = [row["id"] for row in names if self.is_gone(row["id"])]
        for owner_id in gone:
            self._end_owner(owner_id)
            self.database.forget(owner_id)
        return len(gone)

    def is_gone(self, owner_id: str) -> bool:
        """Tell whether the process that works under `owner_id` has ended. Raises `StoreUnavailable`."""
        return self.database.life_of(owner_id) is not Life.ALIVE

    def _end_owner(self, owner_id: str) -> None:
        self._transact(lambda connection: endings.recover_owner(connection, owner_id))

    # Inside transactions

    def _enroll(self, connection: Connection) -> None:
        """Be on the list of those whose claims are taken up when they end; again, after being taken for dead."""
        if connection.execute("SELECT 1 FROM owners WHERE id = ?", (self.owner.id,)).fetchone() is None:
            self.owner.hold()
            connection.execute("INSERT INTO owners (id) VALUES (?)", (self.owner.id,))

    def _row(self, connection: Connection, payment: VerifiedPayment) -> Any:
        return payments.find(connection, self.chain_id, self.token, payment)

    def _reserve_together(self, connection: Connection, wanted: Sequence[Wanted]) -> Sequence[object]:
        self._enroll(connection)
        return self._reservations.together(connection, wanted)

    def _owe_together(self, connection: Connection, deliveries: Sequence[endings.Delivery]) -> Sequence[bool]:
        return endings.owe_together(connection, self.owner.id, deliveries)

    # Store

    async def _end_leftovers(self) -> None:
        """Say what could not be said. Raises `StoreUnavailable` while it still cannot: then nothing may begin."""
        leftovers, self._leftovers = self._leftovers, []

        def work(connection: Connection) -> None:
            for end in leftovers:
                end(connection)

        try:
            await self._write(work, durable=True)
        except BaseException:
            self._leftovers += leftovers
            raise

    async def _write(
        self, work: Callable[[Connection], T], *, durable: bool = False, shared: Shared | None = None
    ) -> T:
        try:
            return await self.database.write(work, durable=durable, shared=shared)
        except Conflict as error:
            raise StoreUnavailable(f"{self.database.name}: {error}") from None

    def _transact(self, work: Callable[[Connection], T]) -> T:
        try:
            return self.database.transact(work)
        except Conflict as error:
            raise StoreUnavailable(f"{self.database.name}: {error}") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

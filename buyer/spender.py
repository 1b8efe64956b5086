"""The spending side of the pool: one authorization for one logical request, on disk before the first byte leaves.

Taking a lease is a synced write and happens once for many claims (`buyer.slots`); each step of a claim inside the lease
is one unsynced write, which survives `kill -9`: of a request that was never asked before an entry in the worker's tail
(`buyer.tail`), of any other a transaction (`buyer.steps`). What a power loss can take away is covered by the lease (see
`buyer.lease`). Nothing here can sign: a spender holds signatures, never a key.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from buyer import steps
from buyer.budgets import budget_units, scopes_of
from buyer.claim import Claim, receipt_id, usable_until_s
from buyer.generation import Generation
from buyer.limits import ANSWER_LIFE_S, REASON_LENGTH_MAX
from buyer.moves import moved
from buyer.purchase import Purchase
from buyer.rows import PURCHASE_QUERY, authorization_from_row, purchase_from_row
from buyer.seal import Seal
from buyer.slots import Slot, Slots, patiently
from buyer.tail import Tail
from buyer.tails import Tails
from contracts.crash import checkpoint
from contracts.errors import OutcomeUnknown, RequestChanged, RequestInProgress, StoreUnavailable
from contracts.storage import Connection, Database, Row
from contracts.wire import SettlementResponse

__all__ = ["Spender"]

T = TypeVar("T")
# A slot, the tail in which its claim is written down if it is, and the epoch of the lease.
_Taken = tuple[Slot, Tail | None, int]

# Steps that are written down where their claim is. What a repetition must find goes into the books at once.
_IN_TAIL = frozenset((steps.ABORT, steps.NEVER_LEFT, steps.SERVED, steps.SERVING, steps.DELIVERED))
_NOTHING: steps.Values = {}

_TRANSACTION_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)


class Spender:
    """The spending side of one worker process; safe for its threads, worthless in a forked child.

    `era` tells the store's present era (`Database.era`).
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
        self._generation = generation
        self._slots = Slots(database, era, generation, lease_size=lease_size, seal=seal, tails=tails)
        self._unwritten: list[tuple[str, steps.Values]] = []
        self._lock = threading.Lock()

    def claim(
        self,
        purchase: Purchase,
        request_key: str,
        now_s: int,
        *,
        fingerprint: str = "",
        route: str = "",
        digest: bytes = b"",
        client_key: str = "",
        is_new: bool = False,
    ) -> Claim:
        """Take the authorization of `purchase` that expires soonest, for the request `request_key`.

        `digest` tells what is asked for, and the authorization will be presented with nothing else. Its price is taken
        from every budget it falls under. `is_new` says that the caller has just drawn the key, so that nobody can have
        used it. Raises `AuthorizationsExhausted`; `BudgetExceeded`; `RequestInProgress` while the same key waits for
        its answer elsewhere; `OutcomeUnknown` when the same key was presented before (then `reopen` it);
        `RequestAlreadyPaid`; `StoreUnavailable`.
        """
        self._catch_up()
        values: steps.Values = {
            "request_key": request_key,
            "fingerprint": fingerprint or None,
            "route": route or None,
            "digest": digest or None,
            "client_key": client_key or None,
            "now": now_s,
        }
        taken = (is_new and self._claim_in_tail(purchase, values)) or self._claim_in_books(purchase, values, is_new)
        checkpoint("buyer.claimed")
        (_, row_id, authorization, signature, name), tail, epoch = taken
        return Claim(
            purchase,
            authorization,
            signature,
            request_key,
            name,
            row_id,
            client_key=client_key,
            claimed_s=now_s,
            tail=tail,
            epoch=epoch,
        )

    def reopen(self, request_key: str, now_s: int, *, digest: bytes = b"") -> Claim | None:
        """Return the authorization that this very request was presented with before, or None when there is none.

        An UNKNOWN one is marked as being presented again; a SPENT one is for asking its seller for the answer once
        more. Raises `RequestChanged` when `digest` is not what was presented; `RequestInProgress` while another call
        waits for the answer; `OutcomeUnknown` when the authorization is too old to present again, so that only the
        chain can tell whether it was used.
        """
        self._catch_up()
        row = self._open_row(request_key)
        if row is not None and row["lease"] not in (None, self._slots.worker.id):
            self._slots.recover()
            row = self._open_row(request_key)
        if row is None:
            return None
        if digest and row["request_digest"] not in (None, digest):
            raise RequestChanged("this request was presented with another content, and its payment is for that")
        if row["lease"] is not None or row["state"] not in ("unknown", "spent"):
            raise RequestInProgress("this request is already waiting for its answer")
        claim = self._claim_of(row)
        if claim.spent:
            return claim
        if claim.authorization.valid_before_s < usable_until_s(claim.purchase, now_s):
            raise OutcomeUnknown("this request was paid for, and the authorization is too old to present again")
        values: steps.Values = {"id": row["id"], "lease": self._slots.worker.id}
        try:
            won = self._write(lambda connection: moved(connection, steps.PRESENT_AGAIN, values))
        except StoreUnavailable:
            given_up = {"status": None, "reason": "the repetition was given up before it was sent"}
            self._unwritten.append((steps.LOST, {**values, **given_up}))
            raise
        if not won:
            raise RequestInProgress("this request was just presented again by another call")
        checkpoint("buyer.presented_again")
        return claim

    def unanswered(self, fingerprint: str, now_s: int) -> str | None:
        """Return the key of the newest request with this fingerprint that is over and whose answer reached nobody.

        Its outcome is UNKNOWN, or it is SPENT and its seller may have kept the answer. So a repetition is recognised.
        """
        self._catch_up()
        values = {"fingerprint": fingerprint, "since": now_s - ANSWER_LIFE_S, "worker": self._slots.worker.id}

        def ask() -> list[Row]:
            # What a living worker has in its tail is under way; what is over is in the books at once.
            return self._database.read(
                lambda connection: connection.execute(steps.UNANSWERED, values).fetchall(), bare=True
            )

        rows = ask()
        if any(self._slots.may_be_dead(row) for row in rows):
            self._slots.recover()
            rows = ask()
        over = [row for row in rows if row["lease"] is None and row["state"] != "sent"]
        newest = max(over, key=lambda row: (row["claimed_s"], row["id"]), default=None)
        return None if newest is None else str(newest["request_key"])

    def sent(self, claim: Claim) -> None:
        """Record, before it happens, that the first byte leaves. Raises `StoreUnavailable`: then nothing may leave."""
        if claim.again:
            return
        try:
            if claim.tail is not None and claim.tail.append(steps.SEND, claim.row_id, _NOTHING):
                checkpoint("buyer.sent")
                return
        except StoreUnavailable:
            self._undo_later(self._bound(claim))
            raise
        bound = self._bound(claim)
        try:
            sends = self._write(
                lambda connection: (
                    self._generation.send(connection) if steps.run_step(connection, steps.SEND, bound) else 0
                )
            )
            if sends:
                self._generation.note_send(sends)
        except StoreUnavailable:
            self._undo_later(bound)
            raise
        if not sends:
            raise StoreUnavailable("the claim is no longer held by this process")
        checkpoint("buyer.sent")

    def abort(self, claim: Claim) -> None:
        """The request ended before anything was sent: the authorization is free again."""
        if claim.again:
            self._lose(claim, None, "the repetition was given up before it was sent")
        elif self._move(steps.ABORT, claim):
            self._slots.put_back(claim.purchase, _slot_of(claim), claim.epoch)

    def never_left(self, claim: Claim) -> None:
        """No connection was made: the authorization is free again, unless an earlier attempt had reached the seller."""
        if claim.again:
            self._lose(claim, None, "the repetition found no connection")
        elif self._move(steps.NEVER_LEFT, claim):
            self._slots.put_back(claim.purchase, _slot_of(claim), claim.epoch)

    def served(
        self,
        claim: Claim,
        *,
        status: int,
        receipt: SettlementResponse | None,
        latency_ms: int,
        delivered_s: int | None = 0,
    ) -> None:
        """The seller answered 2xx. `receipt` is the seller's word; its transaction hash and charge are kept, as such.

        `delivered_s` is when the answer was delivered, unix seconds; with None, `delivered` or `undelivered` follows.
        """
        if claim.spent:
            return
        stated = "" if receipt is None else receipt.transaction
        known = stated if _TRANSACTION_HASH.fullmatch(stated) else None
        told: steps.Values = {
            "status": status,
            "latency_ms": latency_ms,
            "transaction_hash": known,
            "charged_atomic": _stated_charge(claim, receipt),
        }
        if delivered_s is None:
            self._move(steps.SERVING, claim, **told)
        else:
            self._move(steps.SERVED, claim, delivered_s=delivered_s, **told)

    def charged(self, claim: Claim, charged_atomic: int) -> None:
        """Note what the seller says it charges of an `upto` ceiling, when it says so after the head of its answer.

        A figure above the ceiling is not noted. Budgets get the rest back once the chain has shown the charge.
        """
        if 0 <= charged_atomic <= claim.authorization.value_atomic:
            self._move(steps.CHARGED, claim, charged=str(charged_atomic))

    def delivered(self, claim: Claim, now_s: int, *, to_repetition: bool = False) -> None:
        """The whole answer has reached whoever asked: asking the same again is a new request, unless it has an id.

        Where it went `to_repetition`, the books may already say that it reached nobody, so they are told at once.
        """
        self._move(steps.DELIVERED, claim, in_books=to_repetition, now=now_s)

    def undelivered(self, claim: Claim) -> None:
        """The call is over, and its answer did not reach whoever asked: a repetition asks the seller for it again."""
        self._move(steps.UNDELIVERED, claim)

    def lost(self, claim: Claim, *, status: int | None, reason: str) -> None:
        """Any other end: the money may have moved, so only the chain may say more."""
        self._lose(claim, status, reason)
        checkpoint("buyer.lost")

    def close(self) -> None:
        """Give back what was not sent. What still waits for an answer becomes UNKNOWN."""
        self._catch_up()
        self._slots.close()

    def _lose(self, claim: Claim, status: int | None, reason: str) -> None:
        if not claim.spent:
            self._move(steps.LOST, claim, status=status, reason=reason[:REASON_LENGTH_MAX])

    def _move(self, step: str, claim: Claim, *, in_books: bool = False, **values: Any) -> bool:
        """Write down what became of a claim. What the store does not take now is written before the next step."""
        tail = None if in_books or step not in _IN_TAIL else claim.tail
        try:
            if tail is not None and tail.append(step, claim.row_id, values):
                return True
            return self._write(lambda connection: steps.run_step(connection, step, self._bound(claim) | values))
        except StoreUnavailable:
            self._unwritten.append((step, self._bound(claim) | values))
            raise

    def _write(self, work: Callable[[Connection], T], *, looks: bool = False) -> T:
        """Run a step in the books, after those in our tail, or in everybody's when it `looks` for others; unsynced."""

        def enter_and_work(connection: Connection) -> T:
            self._slots.enter_tails(connection, of_others=looks)
            return work(connection)

        return self._database.transact(enter_and_work, durable=False, bare=True)

    def _claim_in_tail(self, purchase: Purchase, values: steps.Values) -> _Taken | None:
        try:
            return self._slots.claim(purchase, values["now"], values)
        except StoreUnavailable:
            costs = _costs(purchase, purchase.offer.amount_atomic, values["client_key"])
            self._undo_later(values | costs | {"lease": self._slots.worker.id})
            raise

    def _claim_in_books(self, purchase: Purchase, values: steps.Values, is_new: bool) -> _Taken:
        while True:
            # Written down outside of every lock, so that threads which wait for a server share its commits. A slot that
            # another thread has meanwhile taken up again is won by one of them.
            slot, lease, epoch = self._slots.take(purchase, values["now"])
            costs = _costs(purchase, slot[2].value_atomic, values["client_key"])
            bound = values | costs | {"id": slot[1], "lease": lease}
            try:
                won = self._write(
                    lambda connection: steps.take_claim(connection, bound, is_new=is_new),  # noqa: B023 - runs at once
                    looks=not is_new,
                )
            except BaseException as error:
                in_doubt = isinstance(error, StoreUnavailable)
                self._slots.put_back(purchase, slot, epoch, in_doubt=in_doubt)
                if in_doubt:
                    self._undo_later(bound)
                raise
            self._slots.release(slot)
            if won:
                return slot, None, epoch

    def _bound(self, claim: Claim) -> steps.Values:
        return {
            "id": claim.row_id,
            "lease": self._slots.worker.id,
            "request_key": claim.request_key,
            "now": claim.claimed_s,
            **_costs(claim.purchase, claim.authorization.value_atomic, claim.client_key),
        }

    def _undo_later(self, values: steps.Values) -> None:
        self._unwritten += [(step, values) for step in steps.UNDO]

    def _catch_up(self) -> None:
        """Write what the store did not take before. Each of these steps is void where it was written after all."""
        self._check_process()
        if not self._unwritten:
            return
        with patiently(self._lock):
            overdue = list(self._unwritten)

            def work(connection: Connection) -> None:
                for step, values in overdue:
                    steps.run_step(connection, step, values)

            self._write(work)
            del self._unwritten[: len(overdue)]

    def _claim_of(self, row: Row) -> Claim:
        """Return an authorization that was presented before, under the terms it was signed for."""
        authorization = authorization_from_row(row)

        def read(connection: Connection) -> Purchase:
            self._slots.check_seal(connection)
            return _purchase_as_signed(connection, row)

        return Claim(
            self._database.read(read),
            authorization,
            self._slots.open_signature(row),
            row["request_key"],
            receipt_id(row["chain_id"], authorization.payer, authorization.nonce),
            row["id"],
            again=True,
            spent=row["state"] == "spent",
            client_key=row["client_key"] or "",
            claimed_s=row["claimed_s"],
        )

    def _open_row(self, request_key: str) -> Row | None:
        row: Row | None = self._database.read(
            lambda connection: connection.execute(steps.OPEN, (request_key,)).fetchone()
        )
        return row

    def _check_process(self) -> None:
        if os.getpid() != self._slots.worker.pid:
            raise StoreUnavailable("the spender was opened before a fork", remedy="open one in each worker process")


def _stated_charge(claim: Claim, receipt: SettlementResponse | None) -> str | None:
    """Return what a receipt (`buyer.flow` has checked it against the signature) says was charged of a ceiling."""
    if claim.purchase.offer.scheme != "upto" or receipt is None:
        return None
    return receipt.amount or None


def _costs(purchase: Purchase, value_atomic: int, client_key: str | None) -> steps.Values:
    """Return what a claim takes from its budgets."""
    return {
        "scopes": scopes_of(purchase, client_key or ""),
        "units": budget_units(value_atomic, purchase.offer.asset),
    }


def _slot_of(claim: Claim) -> Slot:
    return claim.authorization.valid_before_s, claim.row_id, claim.authorization, claim.signature, claim.receipt_id


def _purchase_as_signed(connection: Connection, row: Row) -> Purchase:
    """Return the purchase of an authorization under the terms it was signed for."""
    query = PURCHASE_QUERY.replace("purchases.terms_id", ":terms") + "WHERE purchases.id = :purchase"
    found = connection.execute(query, {"terms": row["terms_id"], "purchase": row["purchase_id"]}).fetchone()
    return purchase_from_row(found)

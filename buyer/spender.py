"""Claims: one authorization for one logical request, on disk before the first byte leaves.

Taking a lease is a synced write and happens once for many claims; each step of a claim inside the lease is one
unsynced write, which survives `kill -9`. What a power loss can take away is covered by the lease (see `buyer.lease`).
Nothing here can sign: a spender holds signatures, never a key.
"""

from __future__ import annotations

import heapq
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from buyer.budgets import budget_units, give_back, scopes_of, take
from buyer.generation import Generation
from buyer.lease import RELEASE_COLUMNS, Worker, is_known, recover
from buyer.limits import ANSWER_LIFE_S, CLAIM_MARGIN_S, LEASE_SHARE, REASON_LENGTH_MAX, SELLER_TIMEOUT_S_MAX
from buyer.moves import move_sql, moved
from buyer.payment import payment_headers
from buyer.purchase import Purchase
from buyer.rows import PURCHASE_QUERY, authorization_from_row, purchase_from_row
from buyer.seal import Seal
from contracts.crash import checkpoint
from contracts.errors import (
    AuthorizationsExhausted,
    OutcomeUnknown,
    PoolRestored,
    RequestAlreadyPaid,
    RequestChanged,
    RequestInProgress,
    StoreUnavailable,
)
from contracts.lifecycle import AuthorizationEvent
from contracts.schemes.exact_eip3009 import Authorization
from contracts.storage import Connection, Database, Row
from contracts.wire import SettlementResponse

__all__ = ["Claim", "Spender", "receipt_id", "usable_until_s"]

_Slot = tuple[int, int, Authorization, bytes]
_Values = dict[str, Any]

# What an account without code signs; a sealed one is longer.
SIGNATURE_BYTES = 65
_TRANSACTION_HASH = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)

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
        AND valid_before_s >= :until
"""
_CLAIM = move_sql(
    AuthorizationEvent.CLAIM,
    "request_key = :request_key, fingerprint = :fingerprint, route = :route, claimed_s = :now,"
    " request_digest = :digest, client_key = :client_key",
    "id = :id AND lease = :lease",
)
_OPEN = """
    SELECT * FROM authorizations WHERE request_key = ? AND state IN ('claimed', 'sent', 'unknown', 'spent') LIMIT 1
"""
_IS_OPEN = _OPEN.replace("*", "state", 1)
_SEND = move_sql(AuthorizationEvent.SEND, where="id = :id AND lease = :lease")
# UNKNOWN stays what it is; the lease says that somebody waits for its answer.
_PRESENT_AGAIN = move_sql(
    AuthorizationEvent.PRESENT_AGAIN, "lease = :lease, status = NULL, reason = NULL", "id = :id AND lease IS NULL"
)
_UNANSWERED = """
    SELECT request_key, state, lease FROM authorizations
    WHERE fingerprint = :fingerprint AND delivered_s IS NULL
        AND (state IN ('sent', 'unknown') OR (state = 'spent' AND claimed_s >= :since))
    ORDER BY claimed_s DESC, id DESC
"""
_ABORT = move_sql(AuthorizationEvent.ABORT, RELEASE_COLUMNS, "id = :id AND lease = :lease")
_NEVER_LEFT = move_sql(AuthorizationEvent.NEVER_LEFT, RELEASE_COLUMNS, "id = :id AND lease = :lease")
# For a step of which nobody knows whether it was written, while its request ended here and nothing left for it.
_UNDO = [
    move_sql(event, RELEASE_COLUMNS, "id = :id AND lease = :lease AND request_key = :request_key")
    for event in (AuthorizationEvent.ABORT, AuthorizationEvent.NEVER_LEFT)
]
# Steps after which a claim costs nothing.
_RELEASES = frozenset((_ABORT, _NEVER_LEFT, *_UNDO))
_ANSWER = "status = :status, latency_ms = :latency_ms, transaction_hash = :transaction_hash"
_SERVED = move_sql(
    AuthorizationEvent.SERVED,
    f"lease = NULL, delivered_s = :delivered_s, {_ANSWER}",
    "id = :id AND lease = :lease",
)
# The lease stays until the end of the answer: nobody else fetches it meanwhile.
_SERVING = move_sql(AuthorizationEvent.SERVED, _ANSWER, "id = :id AND lease = :lease")
_DELIVERED = "UPDATE authorizations SET lease = NULL, delivered_s = :now WHERE id = :id AND state = 'spent'"
_UNDELIVERED = "UPDATE authorizations SET lease = NULL WHERE id = :id AND state = 'spent' AND lease = :lease"
_LOST = move_sql(
    AuthorizationEvent.LOST, "lease = NULL, status = :status, reason = :reason", "id = :id AND lease = :lease"
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One authorization taken for one request.

    `again` says that the seller may have seen it before; `spent`, that it was answered, and is presented for the answer
    the seller may have kept. `client_key` names on whose budget it goes, `claimed_s` is when it was taken.
    """

    purchase: Purchase
    authorization: Authorization
    signature: bytes
    request_key: str
    receipt_id: str
    row_id: int
    again: bool = False
    spent: bool = False
    client_key: str = ""
    claimed_s: int = 0

    def headers(self) -> dict[str, str]:
        """Return the payment header: `PAYMENT-SIGNATURE`, or `X-PAYMENT` for a version 1 seller."""
        return payment_headers(self.purchase.terms, self.authorization, self.signature)


class Spender:
    """The spending side of one worker process; safe for its threads, worthless in a forked child.

    `era` tells the store's present era (`Database.era`).
    """

    def __init__(
        self,
        database: Database,
        era: Callable[[], str],
        generation: Generation,
        lease_size: int,
        seal: Seal | None = None,
    ) -> None:
        self._seal = seal
        self._database = database
        self._generation = generation
        self._era = era
        self._lease_size = lease_size
        self._worker = Worker(database, era())
        self._slots: dict[tuple[int, int], list[_Slot]] = {}
        self._unwritten: list[tuple[str, _Values]] = []
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
    ) -> Claim:
        """Take the authorization of `purchase` that expires soonest, for the request `request_key`.

        `digest` tells what is asked for, and the authorization will be presented with nothing else. Its price is taken
        from every budget it falls under. Raises `AuthorizationsExhausted`; `BudgetExceeded`; `RequestInProgress` while
        the same key waits for its answer elsewhere; `OutcomeUnknown` when the same key was presented before (then
        `reopen` it); `RequestAlreadyPaid`; `StoreUnavailable`.
        """
        self._catch_up()
        until_s = usable_until_s(purchase, now_s)
        key = (purchase.id, purchase.terms_id)
        with self._lock:
            while True:
                slots = self._slots.get(key)
                if not slots:
                    slots = self._slots[key] = self._lease(purchase, until_s)
                slot = heapq.heappop(slots)
                if slot[0] < until_s:
                    continue
                values: _Values = {
                    "id": slot[1],
                    "lease": self._worker.id,
                    "request_key": request_key,
                    "fingerprint": fingerprint or None,
                    "route": route or None,
                    "digest": digest or None,
                    "client_key": client_key or None,
                    "now": now_s,
                    "scopes": scopes_of(purchase, client_key),
                    "units": budget_units(slot[2].value_atomic, purchase.offer.asset),
                }
                try:
                    won = self._database.transact(lambda connection: _claim(connection, values), durable=False)  # noqa: B023 - runs at once
                except BaseException as error:
                    heapq.heappush(slots, slot)
                    if isinstance(error, StoreUnavailable):
                        self._undo_later(values)
                    raise
                if won:
                    checkpoint("buyer.claimed")
                    _, row_id, authorization, signature = slot
                    name = receipt_id(authorization.nonce)
                    return Claim(
                        purchase,
                        authorization,
                        signature,
                        request_key,
                        name,
                        row_id,
                        client_key=client_key,
                        claimed_s=now_s,
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
        if row is not None and row["lease"] not in (None, self._worker.id):
            recover(self._database, self._era())
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
        values: _Values = {"id": row["id"], "lease": self._worker.id}
        try:
            won = self._database.transact(lambda connection: moved(connection, _PRESENT_AGAIN, values), durable=False)
        except StoreUnavailable:
            given_up = {"status": None, "reason": "the repetition was given up before it was sent"}
            self._unwritten.append((_LOST, {**values, **given_up}))
            raise
        if not won:
            raise RequestInProgress("this request was just presented again by another call")
        checkpoint("buyer.presented_again")
        return claim

    def unanswered(self, fingerprint: str, now_s: int) -> str | None:
        """Return the key of the newest request with this fingerprint that is over and whose answer reached nobody.

        Its outcome is UNKNOWN, or it is SPENT and its seller may have kept the answer. So a repetition is recognised.
        """
        self._check_process()
        values = {"fingerprint": fingerprint, "since": now_s - ANSWER_LIFE_S}

        def ask() -> list[Row]:
            return self._database.read(lambda connection: connection.execute(_UNANSWERED, values).fetchall())

        rows = ask()
        if any(row["lease"] not in (None, self._worker.id) for row in rows):
            recover(self._database, self._era())
            rows = ask()
        return next((row["request_key"] for row in rows if row["lease"] is None and row["state"] != "sent"), None)

    def sent(self, claim: Claim) -> None:
        """Record, before it happens, that the first byte leaves. Raises `StoreUnavailable`: then nothing may leave."""
        if claim.again:
            return
        bound = self._bound(claim)
        try:
            sends = self._database.transact(
                lambda connection: self._generation.send(connection) if moved(connection, _SEND, bound) else 0,
                durable=False,
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
        elif self._move(_ABORT, claim):
            self._put_back(claim)

    def never_left(self, claim: Claim) -> None:
        """No connection was made: the authorization is free again, unless an earlier attempt had reached the seller."""
        if claim.again:
            self._lose(claim, None, "the repetition found no connection")
        elif self._move(_NEVER_LEFT, claim):
            self._put_back(claim)

    def served(
        self,
        claim: Claim,
        *,
        status: int,
        receipt: SettlementResponse | None,
        latency_ms: int,
        delivered_s: int | None = 0,
    ) -> None:
        """The seller answered 2xx. `receipt` is the seller's word; only its transaction hash is kept.

        `delivered_s` is when the answer was delivered, unix seconds; with None, `delivered` or `undelivered` follows.
        """
        if claim.spent:
            return
        stated = "" if receipt is None else receipt.transaction
        known = stated if _TRANSACTION_HASH.fullmatch(stated) else None
        told = {"status": status, "latency_ms": latency_ms, "transaction_hash": known}
        if delivered_s is None:
            self._move(_SERVING, claim, **told)
        else:
            self._move(_SERVED, claim, delivered_s=delivered_s, **told)

    def delivered(self, claim: Claim, now_s: int) -> None:
        """The whole answer has reached whoever asked: asking the same again is a new request, unless it has an id."""
        self._move(_DELIVERED, claim, now=now_s)

    def undelivered(self, claim: Claim) -> None:
        """The call is over, and its answer did not reach whoever asked: a repetition asks the seller for it again."""
        self._move(_UNDELIVERED, claim)

    def lost(self, claim: Claim, *, status: int | None, reason: str) -> None:
        """Any other end: the money may have moved, so only the chain may say more."""
        self._lose(claim, status, reason)
        checkpoint("buyer.lost")

    def close(self) -> None:
        """Give back what was not sent. What still waits for an answer becomes UNKNOWN."""
        self._catch_up()
        with self._lock:
            self._slots.clear()
            self._worker.close()

    def _lose(self, claim: Claim, status: int | None, reason: str) -> None:
        if not claim.spent:
            self._move(_LOST, claim, status=status, reason=reason[:REASON_LENGTH_MAX])

    def _move(self, sql: str, claim: Claim, **values: Any) -> bool:
        """Write down what became of a claim. What the store does not take now is written before the next step."""
        bound = self._bound(claim) | values
        try:
            return self._database.transact(lambda connection: _step(connection, sql, bound), durable=False)
        except StoreUnavailable:
            self._unwritten.append((sql, bound))
            raise

    def _bound(self, claim: Claim) -> _Values:
        return {
            "id": claim.row_id,
            "lease": self._worker.id,
            "request_key": claim.request_key,
            "now": claim.claimed_s,
            "scopes": scopes_of(claim.purchase, claim.client_key),
            "units": budget_units(claim.authorization.value_atomic, claim.purchase.offer.asset),
        }

    def _undo_later(self, values: _Values) -> None:
        self._unwritten += [(sql, values) for sql in _UNDO]

    def _catch_up(self) -> None:
        """Write what the store did not take before. Each of these steps is void where it was written after all."""
        self._check_process()
        if not self._unwritten:
            return
        with self._lock:
            steps = list(self._unwritten)

            def work(connection: Connection) -> None:
                for sql, values in steps:
                    _step(connection, sql, values)

            self._database.transact(work, durable=False)
            del self._unwritten[: len(steps)]

    def _put_back(self, claim: Claim) -> None:
        slot = (claim.authorization.valid_before_s, claim.row_id, claim.authorization, claim.signature)
        with self._lock:
            heapq.heappush(self._slots.setdefault((claim.purchase.id, claim.purchase.terms_id), []), slot)

    def _lease(self, purchase: Purchase, until_s: int) -> list[_Slot]:
        """Take a share of what is free; else, from what living workers hold unclaimed. Never returns an empty list."""
        self._be_alive()
        values: _Values = {
            "purchase": purchase.id,
            "terms": purchase.terms_id,
            "until": until_s,
            "lease": self._worker.id,
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
        if not self._worker.holds(era):
            self._slots.clear()
            self._worker.abandon()
            self._worker = Worker(self._database, era)
            recover(self._database, era)

    def _take_share(self, values: _Values, whose: str) -> list[_Slot]:
        def take_share(connection: Connection) -> tuple[list[_Slot], int]:
            return self._share(connection, values, whose), self._generation.lease(connection)

        slots, leases = self._database.transact(take_share)
        self._generation.note_lease(leases)
        return slots

    def _share(self, connection: Connection, values: _Values, whose: str) -> list[_Slot]:
        if not is_known(connection, self._worker.id):
            raise StoreUnavailable("this process was just taken for dead")
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
        return [(row["valid_before_s"], row["id"], authorization_from_row(row), self._signature(row)) for row in rows]

    def _signature(self, row: Row) -> bytes:
        signature: bytes = row["signature"]
        if self._seal is not None:
            return self._seal.open(signature, row["nonce"])
        if len(signature) != SIGNATURE_BYTES:
            raise StoreUnavailable("the pool was sealed since this process opened it", remedy="start it again")
        return signature

    def _claim_of(self, row: Row) -> Claim:
        """Return an authorization that was presented before, under the terms it was signed for."""
        authorization = authorization_from_row(row)
        return Claim(
            self._database.read(lambda connection: _purchase_as_signed(connection, row)),
            authorization,
            self._signature(row),
            row["request_key"],
            receipt_id(authorization.nonce),
            row["id"],
            again=True,
            spent=row["state"] == "spent",
            client_key=row["client_key"] or "",
            claimed_s=row["claimed_s"],
        )

    def _open_row(self, request_key: str) -> Row | None:
        row: Row | None = self._database.read(lambda connection: connection.execute(_OPEN, (request_key,)).fetchone())
        return row

    def _check_process(self) -> None:
        if os.getpid() != self._worker.pid:
            raise StoreUnavailable("the spender was opened before a fork", remedy="open one in each worker process")


def usable_until_s(purchase: Purchase, now_s: int) -> int:
    """Return the earliest validBefore, unix seconds, with which an authorization may be handed out now."""
    return now_s + CLAIM_MARGIN_S + min(purchase.offer.max_timeout_s, SELLER_TIMEOUT_S_MAX)


def receipt_id(nonce: bytes) -> str:
    """Return the public name of what one authorization was used for."""
    return "rcpt_" + nonce.hex()[:24]


def _claim(connection: Connection, values: _Values) -> bool:
    open_row = connection.execute(_IS_OPEN, (values["request_key"],)).fetchone()
    if open_row is not None:
        if open_row["state"] == "spent":
            raise RequestAlreadyPaid("this request was paid and answered before")
        if open_row["state"] == "unknown":
            raise OutcomeUnknown("this request was presented before and its outcome is open")
        raise RequestInProgress("this request is already waiting for its answer")
    won = moved(connection, _CLAIM, values)
    if won:
        take(connection, values["scopes"], values["units"], values["now"])
    return won


def _step(connection: Connection, sql: str, values: _Values) -> bool:
    """Run one step of a claim; what it frees goes back to its budgets."""
    changed = moved(connection, sql, values)
    if changed and sql in _RELEASES:
        give_back(connection, values["scopes"], values["units"], values["now"])
    return changed


def _purchase_as_signed(connection: Connection, row: Row) -> Purchase:
    """Return the purchase of an authorization under the terms it was signed for."""
    query = PURCHASE_QUERY.replace("purchases.terms_id", ":terms") + "WHERE purchases.id = :purchase"
    found = connection.execute(query, {"terms": row["terms_id"], "purchase": row["purchase_id"]}).fetchone()
    return purchase_from_row(found)

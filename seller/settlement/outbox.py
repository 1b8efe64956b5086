"""The settlement queue in the store: what is due, what was signed for it, and who may settle.

What is signed is stored before it is sent, together with the account nonce it takes and the payments it carries, in one
durable transaction. After a crash the same bytes are sent again; nothing is ever signed twice for one payment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from contracts.address import Address
from contracts.errors import SettlementUnavailable, StoreUnavailable
from contracts.lifecycle import Money, MoneyEvent
from contracts.schemes.authorization import Authorization
from contracts.schemes.permit2 import TokenPermit
from contracts.schemes.rails import Rail, rail_named
from contracts.storage import Conflict, Connection, Database, Row
from seller import books
from seller.limits import ATTEMPTS_MAX, LEASE_S, NONCE_MEMORY_S, RETRY_MAX_S, RETRY_S
from seller.payments import permit_of
from seller.policy import Mode

__all__ = ["Form", "Item", "Outbox", "Stale", "Transaction", "Verdict", "item_of", "now_ms"]

T = TypeVar("T")


class Stale(Exception):
    """The queue changed between looking and writing; look again."""


@dataclass(frozen=True, slots=True)
class Item:
    """One payment to settle. `withheld`: its goods wait for it, so a refusal ends it and costs nobody anything.

    `charged_atomic` is what moves: the signed value, or less of it where that was a cap.
    """

    id: int
    rail: Rail
    authorization: Authorization
    signature: bytes
    charged_atomic: int
    withheld: bool
    attempts: int
    since_block: int
    created_ms: int
    contract_payer: bool = False
    token_permit: TokenPermit | None = None

    @property
    def goes_alone(self) -> bool:
        """Whether it needs a transaction of its own: only its facilitator may send it, or strange code runs in it."""
        return self.authorization.facilitator is not None or self.contract_payer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the chain (or a facilitator) decided about one item.

    `event` None: not settled, the nonce is unused. `reason` is the code of the error a client would be told.
    """

    item: Item
    event: MoneyEvent | None
    transaction_hash: str = ""
    reason: str = ""
    on_chain: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """One signed form of a transaction, as it is sent."""

    hash: str
    raw: bytes
    max_fee_wei: int
    priority_fee_wei: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """A stored transaction that is not judged yet, with its signed forms, oldest first."""

    id: int
    account_nonce: int
    call_to: Address
    call_data: bytes
    gas: int
    forms: list[Form] = field(default_factory=list)


class Outbox:
    """The queue of one token. `holder` names this worker in the lease."""

    def __init__(self, database: Database, chain_id: int, token: Address, holder: str) -> None:
        self._database = database
        self._chain_id = chain_id
        self._token = token
        self._holder = holder

    # The lease

    async def hold(self, account: str, is_gone: Callable[[str], bool]) -> bool:
        """Take or renew the right to settle with `account` for `LEASE_S`; tell whether it is ours.

        Another holder's lease is taken once it has run out, or at once when `is_gone(holder)`.
        """
        present = self._database.read(lambda connection: _lease(connection, account))
        if present is not None and not self._is_free(present) and not is_gone(present["holder"]):
            return False

        def work(connection: Connection) -> bool:
            latest = _lease(connection, account)
            if (
                latest is not None
                and not self._is_free(latest)
                and (present is None or latest["holder"] != present["holder"])
            ):
                return False  # a third worker was quicker
            connection.execute(
                "INSERT INTO leases (account, holder, expires_ms) VALUES (?, ?, ?) ON CONFLICT (account)"
                " DO UPDATE SET holder = excluded.holder, expires_ms = excluded.expires_ms",
                (account, self._holder, now_ms() + int(LEASE_S * 1000)),
            )
            return True

        return await self._write(work)

    async def release(self, account: str) -> None:
        """Give the right back, so that another worker need not wait for its end."""
        await self._write(
            lambda connection: connection.execute(
                "DELETE FROM leases WHERE account = ? AND holder = ?", (account, self._holder)
            )
        )

    def anybody_settles(self) -> bool:
        """Tell whether a worker is at work on this store."""
        row = self._database.read(
            lambda connection: connection.execute("SELECT 1 FROM leases WHERE expires_ms >= ?", (now_ms(),)).fetchone()
        )
        return row is not None

    # The queue

    def due(self, limit: int) -> list[Item]:
        """Return the items to settle now: those somebody waits for first, then the oldest."""
        return self._items(
            # Both conditions on money: without the first, SQLite does not see that the index of the queue will do.
            "money IN ('queued', 'submitted') AND money = 'queued' AND due_ms <= ? ORDER BY mode = 'async', id LIMIT ?",
            (now_ms(), limit),
        )

    def carried_by(self, transaction: Transaction) -> list[Item]:
        """Return the items a transaction was signed for."""
        return self._items("money = 'submitted' AND transaction_id = ? ORDER BY id", (transaction.id,))

    def unconfirmed(self, limit: int) -> list[Item]:
        """Return the due items that were given to a facilitator and have no verdict."""
        return self._items(
            "money = 'submitted' AND transaction_id IS NULL AND due_ms <= ? ORDER BY id LIMIT ?",
            (now_ms(), limit),
        )

    async def submit(self, items: Sequence[Item], *, again_ms: int) -> None:
        """Mark items as given to a facilitator, to be asked about after `again_ms`. Raises `Stale`."""

        def work(connection: Connection) -> None:
            for item in items:
                self._submit_one(connection, item, None, now_ms() + again_ms)

        await self._write(work)

    async def postpone(self, items: Sequence[Item], pause_ms: int) -> None:
        """Leave items alone for a while."""
        due = now_ms() + pause_ms
        await self._write(
            lambda connection: connection.executemany(
                "UPDATE payments SET due_ms = ? WHERE id = ?", [(due, item.id) for item in items]
            )
        )

    async def conclude(self, verdicts: Sequence[Verdict], transaction: Transaction | None = None) -> None:
        """Write verdicts down, durably, and close the transaction that carried them."""

        def work(connection: Connection) -> None:
            for verdict in verdicts:
                _conclude_one(connection, verdict)
            if transaction is not None:
                connection.execute("UPDATE transactions SET state = 'final' WHERE id = ?", (transaction.id,))

        await self._write(work)

    # Transactions

    def newest_hash(self, payment_id: int) -> str | None:
        """Return the hash under which the transaction that carries a payment was signed last."""
        row = self._database.read(
            lambda connection: connection.execute(
                "SELECT hash FROM signed_forms WHERE transaction_id ="
                " (SELECT transaction_id FROM payments WHERE id = ?) ORDER BY created_ms DESC LIMIT 1",
                (payment_id,),
            ).fetchone()
        )
        return None if row is None else str(row["hash"])

    async def store(
        self,
        account: Address,
        items: Sequence[Item],
        chain_nonce: int,
        call: tuple[Address, bytes, int],
        sign: Callable[[int], Form],
        *,
        fills_gap: bool = False,
    ) -> Transaction:
        """Allocate the next account nonce, sign with it, and store bytes and items together, durably.

        `chain_nonce` is the account's transaction count on chain, `call` is (to, data, gas). With `fills_gap` it is the
        nonce itself. Raises `Stale` when an item was taken back or the gap is filled already, `SettlementUnavailable`
        when the lease is no longer ours.
        """
        call_to, call_data, gas = call

        def work(connection: Connection) -> Transaction:
            if not self._holds(connection, account.hex()):
                raise SettlementUnavailable("another worker settles with this account")
            nonce = chain_nonce if fills_gap else self._next_nonce(connection, account, chain_nonce)
            if fills_gap and self._has_sent(connection, account, nonce):
                raise Stale
            form = sign(nonce)
            (transaction_id,) = connection.execute(
                "INSERT INTO transactions (chain_id, account, account_nonce, call_to, call_data, gas, state,"
                " created_ms) VALUES (?, ?, ?, ?, ?, ?, 'sent', ?) RETURNING id",
                (self._chain_id, account, nonce, call_to, call_data, gas, form.created_ms),
            ).fetchone()
            _insert_form(connection, transaction_id, form)
            for item in items:
                self._submit_one(connection, item, transaction_id, 0)
            return Transaction(transaction_id, nonce, call_to, call_data, gas, [form])

        return await self._write(work)

    async def store_form(self, account: Address, transaction: Transaction, form: Form) -> None:
        """Store another signed form of a transaction before it is sent."""

        def work(connection: Connection) -> None:
            if not self._holds(connection, account.hex()):
                raise SettlementUnavailable("another worker settles with this account")
            _insert_form(connection, transaction.id, form)

        await self._write(work)

    def sent(self, account: Address) -> list[Transaction]:
        """Return the account's transactions without a verdict, in the order of their nonces."""

        def work(connection: Connection) -> list[Transaction]:
            rows = connection.execute(
                "SELECT * FROM transactions WHERE chain_id = ? AND account = ? AND state = 'sent'"
                " ORDER BY account_nonce",
                (self._chain_id, account),
            ).fetchall()
            return [
                Transaction(
                    row["id"], row["account_nonce"], Address(row["call_to"]), row["call_data"], row["gas"],
                    _forms(connection, row["id"]),
                )
                for row in rows
            ]  # fmt: skip

        return self._database.read(work)

    # Inside

    def _next_nonce(self, connection: Connection, account: Address, chain_nonce: int) -> int:
        """Return the first nonce that is free by the chain and by our own memory: a node may lag behind us."""
        (known,) = connection.execute(
            "SELECT max(account_nonce) FROM ("
            "SELECT account_nonce FROM transactions WHERE chain_id = :chain AND account = :account AND state = 'sent'"
            " UNION ALL SELECT account_nonce FROM transactions"
            " WHERE chain_id = :chain AND account = :account AND created_ms >= :since) AS known",
            {"chain": self._chain_id, "account": account, "since": now_ms() - int(NONCE_MEMORY_S * 1000)},
        ).fetchone()
        return chain_nonce if known is None else max(chain_nonce, int(known) + 1)

    def _has_sent(self, connection: Connection, account: Address, nonce: int) -> bool:
        found = connection.execute(
            "SELECT 1 FROM transactions WHERE chain_id = ? AND account = ? AND account_nonce = ? AND state = 'sent'",
            (self._chain_id, account, nonce),
        ).fetchone()
        return found is not None

    def _items(self, condition: str, values: tuple[int, ...]) -> list[Item]:
        # The condition is one of the literals above, never input.
        query = f"SELECT * FROM payments WHERE chain_id = ? AND token = ? AND {condition}"  # noqa: S608
        rows = self._database.read(
            lambda connection: connection.execute(query, (self._chain_id, self._token, *values)).fetchall()
        )
        return [item_of(row) for row in rows]

    def _submit_one(self, connection: Connection, item: Item, transaction_id: int | None, due_ms: int) -> None:
        changed = connection.execute(
            "UPDATE payments SET transaction_id = ?, due_ms = ? WHERE id = ? AND money = 'queued'",
            (transaction_id, due_ms, item.id),
        ).rowcount
        if changed != 1:
            raise Stale
        books.move(connection, item.id, MoneyEvent.SUBMIT, now_ms())

    def _is_free(self, lease: Row) -> bool:
        return bool(lease["holder"] == self._holder or lease["expires_ms"] < now_ms())

    def _holds(self, connection: Connection, account: str) -> bool:
        row = _lease(connection, account)
        return row is not None and row["holder"] == self._holder and row["expires_ms"] >= now_ms()

    async def _write(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._database.write(work, durable=True)
        except Conflict as error:
            raise StoreUnavailable(f"{self._database.name}: {error}") from None


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _lease(connection: Connection, account: str) -> Row | None:
    row: Row | None = connection.execute(
        "SELECT holder, expires_ms FROM leases WHERE account = ?", (account,)
    ).fetchone()
    return row


def _conclude_one(connection: Connection, verdict: Verdict) -> None:
    row = connection.execute("SELECT money, mode FROM payments WHERE id = ?", (verdict.item.id,)).fetchone()
    if row is None or row["money"] not in (Money.QUEUED.value, Money.SUBMITTED.value):
        return  # its client took it back, or it is judged already
    now, item = now_ms(), verdict.item
    if verdict.event is not None:
        books.move(
            connection, item.id, verdict.event, now, reason=verdict.reason or None,
            transaction_hash=verdict.transaction_hash or None,
        )  # fmt: skip
        return
    attempts = item.attempts + (1 if verdict.on_chain else 0)
    pause_ms = min(RETRY_MAX_S * 1000, max(RETRY_S * 1000, (now - item.created_ms) / 4))
    connection.execute(
        "UPDATE payments SET attempts = ?, due_ms = ? WHERE id = ?", (attempts, now + int(pause_ms), item.id)
    )
    if attempts >= ATTEMPTS_MAX and not item.withheld:
        books.move(connection, item.id, MoneyEvent.HOPELESS, now, reason=verdict.reason)
        return
    if row["money"] == Money.SUBMITTED.value:
        books.move(connection, item.id, MoneyEvent.CHAIN_REVERTED, now, reason=verdict.reason)
    if item.withheld:
        books.move(connection, item.id, MoneyEvent.WAIVE, now, reason=verdict.reason)


def _insert_form(connection: Connection, transaction_id: int, form: Form) -> None:
    connection.execute(
        "INSERT INTO signed_forms (hash, transaction_id, raw, max_fee_wei, priority_fee_wei, created_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (form.hash, transaction_id, form.raw, str(form.max_fee_wei), str(form.priority_fee_wei), form.created_ms),
    )


def _forms(connection: Connection, transaction_id: int) -> list[Form]:
    rows = connection.execute(
        # Each raise makes the fee, a decimal number, longer or larger.
        "SELECT * FROM signed_forms WHERE transaction_id = ? ORDER BY length(max_fee_wei), max_fee_wei",
        (transaction_id,),
    )
    return [
        Form(row["hash"], row["raw"], int(row["max_fee_wei"]), int(row["priority_fee_wei"]), row["created_ms"])
        for row in rows
    ]


def item_of(row: Row) -> Item:
    """Return what settlement needs of a row of `payments`."""
    authorization = Authorization(
        payer=Address(row["payer"]),
        payee=Address(row["payee"]),
        value_atomic=int(row["value_atomic"]),
        valid_after_s=int(row["valid_after_s"]),
        valid_before_s=int(row["valid_before_s"]),
        nonce=bytes(row["nonce"]),
        facilitator=None if row["facilitator"] is None else Address(bytes(row["facilitator"])),
    )
    return Item(
        id=row["id"],
        rail=rail_named(row["rail"]),
        authorization=authorization,
        signature=bytes(row["signature"]),
        charged_atomic=books.due_atomic(row),
        contract_payer=bool(row["contract_payer"]),
        token_permit=permit_of(row),
        withheld=row["mode"] != Mode.ASYNC.value,
        attempts=row["attempts"],
        since_block=row["since_block"],
        created_ms=row["created_ms"],
    )

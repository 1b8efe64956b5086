"""Reconcile: the chain says what became of authorizations whose outcome is open.

A used nonce is either a payment or a revocation; the traces on chain tell which, and how much of an `upto` ceiling was
charged. An unused one is EXPIRED only when the chain's own clock, read from the same endpoint in the same batch, is
safely past validBefore, and so is ours: an endpoint cannot give money back by a time that it made up. Where several
endpoints are named, what gives money back is what each says that answers. Everything else stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from buyer.budgets import recount
from buyer.journal import expire_overdue, forget_expired
from buyer.limits import EXPIRY_CHAIN_MARGIN_S, RECONCILE_BATCH
from buyer.moves import move_sql, moved
from buyer.purchase import Purchase
from buyer.rows import OPEN_IDS_SQL, authorization_from_row
from buyer.witnesses import Witnesses
from contracts.address import Address
from contracts.crash import checkpoint
from contracts.evm.permit2 import Permit2
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, call_object, count_of, integer_of
from contracts.keccak import keccak
from contracts.lifecycle import AuthorizationEvent
from contracts.networks import PERMIT2
from contracts.schemes import upto_permit2
from contracts.schemes.exact_eip3009 import AUTHORIZATION_CANCELED_TOPIC
from contracts.schemes.permit2 import word_and_bit
from contracts.storage import Connection, Database, Row
from contracts.typed_data import word_of_address, word_of_uint

__all__ = ["reconcile", "settle_restored"]

_log = logging.getLogger("farebox.buyer")

_AUTHORIZATION_STATE = keccak(b"authorizationState(address,bytes32)")[:4]
_NONCE_BITMAP = keccak(b"nonceBitmap(address,uint256)")[:4]

# A contract and the calldata it is asked with.
_Question = tuple[Address, bytes]

_READY_IDS = " UNION ALL SELECT id FROM authorizations WHERE purchase_id = :purchase AND state = 'ready'"
_USED = move_sql(
    AuthorizationEvent.CHAIN_USED,
    "lease = NULL, transaction_hash = coalesce(:transaction, transaction_hash), charged_atomic = :charged,"
    " charge_proven = CASE WHEN CAST(:charged AS TEXT) IS NULL THEN 0 ELSE 1 END",
)
_CANCELLED = move_sql(AuthorizationEvent.CHAIN_CANCELLED, "lease = NULL, reason = 'revoked on chain'")
_EXPIRED = move_sql(
    AuthorizationEvent.CHAIN_UNUSED_PAST_TIME, "lease = NULL, reason = 'unused when its time was over, by the chain'"
)
_PROVEN = """
    UPDATE authorizations SET charged_atomic = :charged, charge_proven = 1,
        transaction_hash = coalesce(:transaction, transaction_hash)
    WHERE id = :id AND state = 'spent' AND charge_proven = 0
"""

_RESTORED = move_sql(
    AuthorizationEvent.RESTORED,
    "lease = NULL, reason = 'unused by the chain, and perhaps sent since the backup was made'",
    "purchase_id = :id",
)


@dataclass(frozen=True, slots=True)
class _Word:
    """What the chain says of one authorization: what becomes of its row, by which statement with which values."""

    becomes: str
    sql: str | None = None
    values: dict[str, str | None] = field(default_factory=dict)


_NOTHING_NEW = _Word("unknown")
_DISPUTED = _Word("unknown")


@dataclass(frozen=True, slots=True)
class _View:
    """What one endpoint shows: the time of its latest block, and the state of nonces by the question for it."""

    head_s: int
    states: dict[_Question, int]


async def reconcile(
    database: Database,
    purchase: Purchase,
    rpc_urls: Sequence[str],
    *,
    ready_too: bool = False,
    clock: Callable[[], float] = time.time,
) -> dict[str, int]:
    """Return how many authorizations were found `spent`, `expired`, `cancelled`, and how many stay `unknown`.

    Of `upto` payments that were answered, what was charged is proven too, and the budgets get the rest back. Endpoints
    of other chains are passed over. Raises `ChainUnavailable`, and `TermsNotAllowed` when all are of other chains.
    """
    found = {"spent": 0, "expired": 0, "cancelled": 0, "unknown": 0}
    query = f"SELECT * FROM authorizations WHERE id IN ({OPEN_IDS_SQL}{_READY_IDS if ready_too else ''}) ORDER BY id"  # noqa: S608 - constants
    rows = database.read(lambda connection: connection.execute(query, {"purchase": purchase.id}).fetchall())
    work = _Work(database, found)
    async with Witnesses.open(rpc_urls, purchase.offer.network) as witnesses:
        now_s = 0
        for batch in _batches(rows):
            now_s = await _reconcile_batch(witnesses, batch, work, int(clock()))
    if work.disputed:
        _log.warning(
            "purchase %s: the RPC endpoints do not agree about %d payments, which stay as they are until they do",
            purchase.name,
            work.disputed,
        )
    proven = work.proven
    if now_s:
        database.transact(lambda connection: _sweep(connection, purchase, now_s - EXPIRY_CHAIN_MARGIN_S))
    if found["expired"] or found["cancelled"] or proven or ready_too:
        database.transact(recount)
    return found


def settle_restored(connection: Connection, purchase: Purchase, *, trust_unused: bool) -> None:
    """Let a restored purchase be used again, after `reconcile(ready_too=True)`: the chain has told what was used.

    What it shows unused may be in a seller's hands since the backup, which nobody can know here. It becomes UNKNOWN,
    until it is used, revoked or past its time; with `trust_unused` it stays READY.
    """
    if not trust_unused:
        connection.execute(_RESTORED, {"id": purchase.id})
    connection.execute("UPDATE purchases SET restored_s = NULL WHERE id = ?", (purchase.id,))
    recount(connection)


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Cut the rows so that each part needs no more questions than one round trip takes."""
    batch: list[Row] = []
    questions: set[_Question] = set()
    for row in rows:
        question, _ = _question(row)
        if question not in questions and len(questions) == RECONCILE_BATCH:
            yield batch
            batch, questions = [], set()
        batch.append(row)
        questions.add(question)
    if batch:
        yield batch


def _question(row: Row) -> tuple[_Question, int]:
    """Return the call whose answer holds the state of a nonce, and the mask of its bits there.

    One answer of Permit2 holds 256 nonces.
    """
    payer = word_of_address(row["payer"])
    if row["registry"] == PERMIT2:
        word, bit = word_and_bit(row["nonce"])
        return (PERMIT2, _NONCE_BITMAP + payer + word_of_uint(word)), 1 << bit
    return (Address(row["token"]), _AUTHORIZATION_STATE + payer + bytes(row["nonce"])), -1


@dataclass(slots=True)
class _Work:
    """What was found so far: states by their name, charges that were `proven`, and what endpoints do not agree on."""

    database: Database
    found: dict[str, int]
    proven: int = 0
    disputed: int = 0

    def enter(self, row: Row, word: _Word) -> None:
        """Write down what the chain says of one authorization."""
        self.disputed += word is _DISPUTED
        if (sql := word.sql) is not None:
            bound = {"id": row["id"], **word.values}
            changed = self.database.transact(lambda connection: moved(connection, sql, bound))
            checkpoint("buyer.reconciled")
            if sql is _PROVEN:
                self.proven += changed
            else:
                self.found[word.becomes] += changed
        elif row["state"] == "unknown":
            self.found["unknown"] += 1


async def _reconcile_batch(witnesses: Witnesses, rows: list[Row], work: _Work, local_s: int) -> int:
    """Judge some rows by one batch of each endpoint; return the time that it is by everybody's clock, ours included."""
    questions = list(dict.fromkeys(_question(row)[0] for row in rows))
    views = await witnesses.ask(lambda rpc: _look(rpc, questions))
    now_s = min(local_s, *(view.head_s for view in views))
    for row in rows:
        question, mask = _question(row)
        used = {bool(view.states[question] & mask) for view in views}
        is_over = row["valid_before_s"] + EXPIRY_CHAIN_MARGIN_S < now_s
        work.enter(
            row, await _judge(witnesses, row, is_used=used.pop(), is_over=is_over) if len(used) == 1 else _DISPUTED
        )
    return now_s


async def _look(rpc: Rpc, questions: Sequence[_Question]) -> _View:
    head, *answers = await rpc.batch(
        [("eth_getBlockByNumber", ["latest", False])]
        + [("eth_call", [call_object(to, data), "latest"]) for to, data in questions]
    )
    numbers = [integer_of(answer, "the state of a nonce") for answer in answers]
    return _View(_timestamp(head), dict(zip(questions, numbers, strict=True)))


async def _judge(witnesses: Witnesses, row: Row, *, is_used: bool, is_over: bool) -> _Word:
    if is_used:
        word = await _what_used_it(witnesses, row)
    elif row["state"] == "unknown" and is_over:
        return _Word("expired", _EXPIRED)
    elif row["state"] == "spent" and is_over:
        return _Word("spent", _PROVEN, {"charged": "0", "transaction": None})
    else:
        return _NOTHING_NEW
    if row["state"] != "spent" or word is _DISPUTED:
        return word
    # It was answered; revoked since, or settled: either way the charge is known now.
    charged = "0" if word.becomes == "cancelled" else word.values.get("charged")
    if charged is None:
        return _NOTHING_NEW
    return _Word("spent", _PROVEN, {"charged": charged, "transaction": word.values.get("transaction")})


async def _what_used_it(witnesses: Witnesses, row: Row) -> _Word:
    """Tell a payment from a revocation by the traces that each leaves on chain.

    Where no endpoint shows any, a nonce that we never asked to revoke is booked as spent, which is the most it can
    have cost: nobody else can revoke it. One that we did ask to revoke stays as it is. What would cost less than was
    signed counts where every endpoint that keeps traces shows the same.
    """
    told = [words[0] for words in await witnesses.ask(lambda rpc: _traces(rpc, row)) if words]
    seen = [word for word in told if word is not None]
    if any(_gives_back(word) for word in seen) and any(word != seen[0] for word in told):
        return _DISPUTED
    if seen:
        return seen[0]
    return _NOTHING_NEW if row["cancel_asked"] else _Word("spent", _USED, {"transaction": None, "charged": None})


def _gives_back(word: _Word) -> bool:
    return word.becomes == "cancelled" or word.values["charged"] is not None


async def _traces(rpc: Rpc, row: Row) -> list[_Word | None]:
    """Return what one endpoint's traces say, None for none; nothing at all where it refuses to look."""
    try:
        return [await (_permit2_word(rpc, row) if row["registry"] == PERMIT2 else _token_word(rpc, row))]
    except RpcRefused:
        return []


async def _token_word(rpc: Rpc, row: Row) -> _Word | None:
    token = Token(rpc, Address(row["token"]))
    for log in await token.nonce_events(Address(row["payer"]), row["nonce"], row["from_block"]):
        topics = log.get("topics") or [""]
        if str(topics[0]).lower() == AUTHORIZATION_CANCELED_TOPIC:
            return _Word("cancelled", _CANCELLED)
        return _Word("spent", _USED, {"transaction": _hash(log), "charged": None})
    return None


async def _permit2_word(rpc: Rpc, row: Row) -> _Word | None:
    """A bit alone proves nothing: only a settlement of this very permit that moved the money is a payment."""
    ending = await Permit2(rpc).ending(Address(row["token"]), authorization_from_row(row), row["from_block"])
    if ending is None:
        return None
    if ending.amount_atomic is None:
        return _Word("cancelled", _CANCELLED)
    charged = str(ending.amount_atomic) if row["rail"] == upto_permit2.NAME else None
    return _Word("spent", _USED, {"transaction": ending.transaction, "charged": charged})


def _sweep(connection: Connection, purchase: Purchase, over_s: int) -> None:
    expire_overdue(connection, purchase.offer.network.chain_id, over_s)
    forget_expired(connection, purchase, over_s)


def _timestamp(block: Any) -> int:
    return count_of(block.get("timestamp") if isinstance(block, dict) else None, "a block's time")


def _hash(log: dict[str, Any]) -> str | None:
    value = log.get("transactionHash")
    return value if isinstance(value, str) and len(value) == 66 else None

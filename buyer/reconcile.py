"""Reconcile: the chain says what became of authorizations whose outcome is open.

A used nonce is either a transfer or a revocation; the token's events tell which. An unused one is EXPIRED only when the
chain's own clock, read from the same endpoint in the same batch, is safely past validBefore. Everything else stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from buyer.budgets import recount
from buyer.journal import expire_overdue, forget_expired
from buyer.limits import EXPIRY_CHAIN_MARGIN_S, RECONCILE_BATCH
from buyer.moves import move_sql, moved
from buyer.purchase import Purchase
from contracts.address import Address
from contracts.crash import checkpoint
from contracts.errors import ChainUnavailable, TermsNotAllowed
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, call_object
from contracts.keccak import keccak
from contracts.lifecycle import AuthorizationEvent
from contracts.schemes.exact_eip3009 import AUTHORIZATION_CANCELED_TOPIC
from contracts.storage import Connection, Database, Row
from contracts.typed_data import word_of_address

__all__ = ["reconcile", "settle_restored"]

_AUTHORIZATION_STATE = keccak(b"authorizationState(address,bytes32)")[:4]

_USED = move_sql(
    AuthorizationEvent.CHAIN_USED, "lease = NULL, transaction_hash = coalesce(:transaction, transaction_hash)"
)
_CANCELLED = move_sql(AuthorizationEvent.CHAIN_CANCELLED, "lease = NULL, reason = 'revoked on chain'")
_EXPIRED = move_sql(
    AuthorizationEvent.CHAIN_UNUSED_PAST_TIME, "lease = NULL, reason = 'unused when its time was over, by the chain'"
)

_RESTORED = move_sql(
    AuthorizationEvent.RESTORED,
    "lease = NULL, reason = 'unused by the chain, and perhaps sent since the backup was made'",
    "purchase_id = :id",
)


async def reconcile(
    database: Database, purchase: Purchase, rpc_urls: Sequence[str], *, ready_too: bool = False
) -> dict[str, int]:
    """Return how many authorizations were found `spent`, `expired`, `cancelled`, and how many stay `unknown`.

    Raises `ChainUnavailable`, and `TermsNotAllowed` when the endpoints are of another chain.
    """
    found = {"spent": 0, "expired": 0, "cancelled": 0, "unknown": 0}
    states = "('ready', 'unknown')" if ready_too else "('unknown')"
    query = f"""SELECT id, state, chain_id, token, payer, nonce, valid_before_s, from_block, cancel_asked
                FROM authorizations WHERE purchase_id = ? AND state IN {states} ORDER BY id"""  # noqa: S608 - constants
    rows = database.read(lambda connection: connection.execute(query, (purchase.id,)).fetchall())
    async with Rpc(rpc_urls) as rpc:
        await _check_chain(rpc, purchase)
        head_s = 0
        for start in range(0, len(rows), RECONCILE_BATCH):
            head_s = await _reconcile_batch(database, rpc, rows[start : start + RECONCILE_BATCH], found)
    if head_s:
        database.transact(lambda connection: _sweep(connection, purchase, head_s - EXPIRY_CHAIN_MARGIN_S))
    if found["expired"] or found["cancelled"] or ready_too:
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


async def _reconcile_batch(database: Database, rpc: Rpc, rows: list[Row], found: dict[str, int]) -> int:
    """Judge some rows by one batch of one endpoint, and return the head's timestamp."""
    answers = await rpc.batch(
        [("eth_getBlockByNumber", ["latest", False])]
        + [("eth_call", [call_object(Address(row["token"]), _state_call(row)), "latest"]) for row in rows]
    )
    head_s = _timestamp(answers[0])
    for row, answer in zip(rows, answers[1:], strict=True):
        if _is_used(answer):
            event, sql, values = await _what_used_it(rpc, row)
        elif row["state"] == "unknown" and row["valid_before_s"] + EXPIRY_CHAIN_MARGIN_S < head_s:
            event, sql, values = "expired", _EXPIRED, {}
        else:
            event, sql, values = "unknown", None, {}
        if sql is not None:
            bound = {"id": row["id"], **values}
            changed = database.transact(lambda connection: moved(connection, sql, bound))  # noqa: B023 - runs at once
            checkpoint("buyer.reconciled")
            found[event] += changed
        elif row["state"] == "unknown":
            found["unknown"] += 1
    return head_s


async def _what_used_it(rpc: Rpc, row: Row) -> tuple[str, str | None, dict[str, str | None]]:
    """Tell a transfer from a revocation by the token's events.

    Where the endpoint does not search logs, a nonce that we never asked to revoke was used for its transfer: nobody
    else can sign a revocation. One that we did ask to revoke stays as it is.
    """
    token = Token(rpc, Address(row["token"]))
    try:
        logs = await token.nonce_events(Address(row["payer"]), row["nonce"], row["from_block"])
    except RpcRefused:
        logs = []
    for log in logs:
        topics = log.get("topics") or [""]
        if str(topics[0]).lower() == AUTHORIZATION_CANCELED_TOPIC:
            return "cancelled", _CANCELLED, {}
        return "spent", _USED, {"transaction": _hash(log)}
    if row["cancel_asked"]:
        return "unknown", None, {}
    return "spent", _USED, {"transaction": None}


async def _check_chain(rpc: Rpc, purchase: Purchase) -> None:
    chain_id = int(await rpc.call("eth_chainId"), 16)
    if chain_id != purchase.offer.network.chain_id:
        raise TermsNotAllowed(
            f"the RPC endpoint is of chain {chain_id}, {purchase.name} is of {purchase.offer.network.caip2}",
            remedy=f"name an endpoint of {purchase.offer.network.label} with --rpc",
        )


def _sweep(connection: Connection, purchase: Purchase, over_s: int) -> None:
    expire_overdue(connection, purchase.offer.network.chain_id, over_s)
    forget_expired(connection, purchase, over_s)


def _state_call(row: Row) -> bytes:
    return _AUTHORIZATION_STATE + word_of_address(row["payer"]) + bytes(row["nonce"])


def _is_used(answer: Any) -> bool:
    if isinstance(answer, RpcRefused):
        raise ChainUnavailable(f"authorizationState: {answer.message}")
    try:
        return int(answer, 16) != 0
    except (TypeError, ValueError):
        raise ChainUnavailable("authorizationState: the answer is not a number") from None


def _timestamp(block: Any) -> int:
    try:
        return int(block["timestamp"], 16)
    except (TypeError, KeyError, ValueError):
        raise ChainUnavailable("eth_getBlockByNumber: the answer is not a block") from None


def _hash(log: dict[str, Any]) -> str | None:
    value = log.get("transactionHash")
    return value if isinstance(value, str) and len(value) == 66 else None

"""The steps of a claim as SQL: each is one move of the life-cycle table, and its budgets follow it."""

from __future__ import annotations

from typing import Any

from buyer.budgets import give_back, take
from buyer.lease import RELEASE_COLUMNS
from buyer.moves import move_sql, moved
from contracts.errors import OutcomeUnknown, RequestAlreadyPaid, RequestInProgress
from contracts.lifecycle import AuthorizationEvent
from contracts.storage import Connection

__all__ = [
    "ABORT",
    "CHARGED",
    "DELIVERED",
    "LOST",
    "NEVER_LEFT",
    "OPEN",
    "PRESENT_AGAIN",
    "SEND",
    "SERVED",
    "SERVING",
    "UNANSWERED",
    "UNDELIVERED",
    "UNDO",
    "Values",
    "run_step",
    "take_claim",
]

Values = dict[str, Any]

_CLAIM = move_sql(
    AuthorizationEvent.CLAIM,
    "request_key = :request_key, fingerprint = :fingerprint, route = :route, claimed_s = :now,"
    " request_digest = :digest, client_key = :client_key",
    "id = :id AND lease = :lease",
)
OPEN = """
    SELECT * FROM authorizations WHERE request_key = ? AND state IN ('claimed', 'sent', 'unknown', 'spent') LIMIT 1
"""
_IS_OPEN = OPEN.replace("*", "state", 1)
SEND = move_sql(AuthorizationEvent.SEND, where="id = :id AND lease = :lease")
# UNKNOWN stays what it is; the lease says that somebody waits for its answer.
PRESENT_AGAIN = move_sql(
    AuthorizationEvent.PRESENT_AGAIN, "lease = :lease, status = NULL, reason = NULL", "id = :id AND lease IS NULL"
)
UNANSWERED = """
    SELECT request_key, state, lease FROM authorizations
    WHERE fingerprint = :fingerprint AND delivered_s IS NULL
        AND (state IN ('sent', 'unknown') OR (state = 'spent' AND claimed_s >= :since))
    ORDER BY claimed_s DESC, id DESC
"""
ABORT = move_sql(AuthorizationEvent.ABORT, RELEASE_COLUMNS, "id = :id AND lease = :lease")
NEVER_LEFT = move_sql(AuthorizationEvent.NEVER_LEFT, RELEASE_COLUMNS, "id = :id AND lease = :lease")
# For a step of which nobody knows whether it was written, while its request ended here and nothing left for it.
UNDO = [
    move_sql(event, RELEASE_COLUMNS, "id = :id AND lease = :lease AND request_key = :request_key")
    for event in (AuthorizationEvent.ABORT, AuthorizationEvent.NEVER_LEFT)
]
# Steps after which a claim costs nothing.
_RELEASES = frozenset((ABORT, NEVER_LEFT, *UNDO))
_ANSWER = (
    "status = :status, latency_ms = :latency_ms, transaction_hash = :transaction_hash, charged_atomic = :charged_atomic"
)
SERVED = move_sql(
    AuthorizationEvent.SERVED,
    f"lease = NULL, delivered_s = :delivered_s, {_ANSWER}",
    "id = :id AND lease = :lease",
)
# The lease stays until the end of the answer: nobody else fetches it meanwhile.
SERVING = move_sql(AuthorizationEvent.SERVED, _ANSWER, "id = :id AND lease = :lease")
DELIVERED = "UPDATE authorizations SET lease = NULL, delivered_s = :now WHERE id = :id AND state = 'spent'"
# The seller's word; it never replaces what the chain has proven.
CHARGED = "UPDATE authorizations SET charged_atomic = :charged WHERE id = :id AND rail = 'upto' AND charge_proven = 0"
UNDELIVERED = "UPDATE authorizations SET lease = NULL WHERE id = :id AND state = 'spent' AND lease = :lease"
LOST = move_sql(
    AuthorizationEvent.LOST, "lease = NULL, status = :status, reason = :reason", "id = :id AND lease = :lease"
)


def take_claim(connection: Connection, values: Values) -> bool:
    """Claim a leased row for a request, and its price from every budget; False when somebody else has taken the row.

    Raises `RequestAlreadyPaid`, `OutcomeUnknown` or `RequestInProgress` when the request has an authorization already,
    and `BudgetExceeded`.
    """
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


def run_step(connection: Connection, sql: str, values: Values) -> bool:
    """Run one step of a claim; what it frees goes back to its budgets."""
    changed = moved(connection, sql, values)
    if changed and sql in _RELEASES:
        give_back(connection, values["scopes"], values["units"], values["now"])
    return changed

"""The steps of a claim as SQL: each is one move of the life-cycle table, and its budgets follow it.

A step has a name, by which it is written down before it is entered into the books (`buyer.tail`).
"""

from __future__ import annotations

from typing import Any

from buyer.budgets import give_back, take
from buyer.endings import RELEASE_COLUMNS
from buyer.moves import move_sql, moved
from contracts.errors import OutcomeUnknown, RequestAlreadyPaid, RequestInProgress
from contracts.lifecycle import AuthorizationEvent
from contracts.storage import Connection

__all__ = [
    "ABORT",
    "CHARGED",
    "CLAIM",
    "DELIVERED",
    "EVENTS",
    "LAST",
    "LOST",
    "NEVER_LEFT",
    "OPEN",
    "PRESENT_AGAIN",
    "RELEASES",
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

CLAIM, SEND, ABORT, NEVER_LEFT = "claim", "send", "abort", "never left"
SERVED, SERVING, DELIVERED, UNDELIVERED = "served", "serving", "delivered", "undelivered"
CHARGED, LOST = "charged", "lost"
# For a step of which nobody knows whether it was written, while its request ended here and nothing left for it.
UNDO = ("undo claim", "undo send")

# Which move of the life-cycle table a step is; the others move nothing.
EVENTS = {
    CLAIM: AuthorizationEvent.CLAIM,
    SEND: AuthorizationEvent.SEND,
    ABORT: AuthorizationEvent.ABORT,
    NEVER_LEFT: AuthorizationEvent.NEVER_LEFT,
    SERVED: AuthorizationEvent.SERVED,
    SERVING: AuthorizationEvent.SERVED,
    LOST: AuthorizationEvent.LOST,
}
# Steps after which a claim costs nothing, and those after which nobody waits for its answer.
RELEASES = frozenset((ABORT, NEVER_LEFT, *UNDO))
LAST = frozenset((SERVED, DELIVERED, UNDELIVERED, LOST))

OPEN = """
    SELECT * FROM authorizations WHERE request_key = ? AND state IN ('claimed', 'sent', 'unknown', 'spent') LIMIT 1
"""
_IS_OPEN = OPEN.replace("*", "state", 1)
# UNKNOWN stays what it is; the lease says that somebody waits for its answer.
PRESENT_AGAIN = move_sql(
    AuthorizationEvent.PRESENT_AGAIN, "lease = :lease, status = NULL, reason = NULL", "id = :id AND lease IS NULL"
)
# And with it, because every call asks: the other workers that have a tail, of which the books may say nothing yet.
UNANSWERED = """
    SELECT request_key, state, lease, claimed_s, id FROM authorizations
    WHERE fingerprint = :fingerprint AND delivered_s IS NULL
        AND (state IN ('sent', 'unknown') OR (state = 'spent' AND claimed_s >= :since))
    UNION ALL SELECT NULL, 'has a tail', id, NULL, NULL FROM workers WHERE id != :worker AND tail IS NOT NULL
"""
_OURS = "id = :id AND lease = :lease"
_OF_REQUEST = "lease = :lease AND request_key = :request_key"
_ANSWER = (
    "status = :status, latency_ms = :latency_ms, transaction_hash = :transaction_hash, charged_atomic = :charged_atomic"
)
_SQL = {
    CLAIM: move_sql(
        AuthorizationEvent.CLAIM,
        "request_key = :request_key, fingerprint = :fingerprint, route = :route, claimed_s = :now,"
        " request_digest = :digest, client_key = :client_key",
        _OURS,
    ),
    SEND: move_sql(AuthorizationEvent.SEND, where=_OURS),
    ABORT: move_sql(AuthorizationEvent.ABORT, RELEASE_COLUMNS, _OURS),
    NEVER_LEFT: move_sql(AuthorizationEvent.NEVER_LEFT, RELEASE_COLUMNS, _OURS),
    SERVED: move_sql(AuthorizationEvent.SERVED, f"lease = NULL, delivered_s = :delivered_s, {_ANSWER}", _OURS),
    # The lease stays until the end of the answer: nobody else fetches it meanwhile.
    SERVING: move_sql(AuthorizationEvent.SERVED, _ANSWER, _OURS),
    DELIVERED: "UPDATE authorizations SET lease = NULL, delivered_s = :now WHERE id = :id AND state = 'spent'",
    UNDELIVERED: f"UPDATE authorizations SET lease = NULL WHERE {_OURS} AND state = 'spent'",  # noqa: S608 - a constant
    # The seller's word; it never replaces what the chain has proven.
    CHARGED: "UPDATE authorizations SET charged_atomic = :charged"
    " WHERE id = :id AND rail = 'upto' AND charge_proven = 0",
    LOST: move_sql(AuthorizationEvent.LOST, "lease = NULL, status = :status, reason = :reason", _OURS),
    UNDO[0]: move_sql(AuthorizationEvent.ABORT, RELEASE_COLUMNS, _OF_REQUEST),
    UNDO[1]: move_sql(AuthorizationEvent.NEVER_LEFT, RELEASE_COLUMNS, _OF_REQUEST),
}


def take_claim(connection: Connection, values: Values, *, is_new: bool) -> bool:
    """Claim a leased row for a request, and its price from every budget; False when somebody else has taken the row.

    Raises `RequestAlreadyPaid`, `OutcomeUnknown` or `RequestInProgress` when the request has an authorization already,
    which one that `is_new` cannot have; and `BudgetExceeded`.
    """
    open_row = None if is_new else connection.execute(_IS_OPEN, (values["request_key"],)).fetchone()
    if open_row is not None:
        if open_row["state"] == "spent":
            raise RequestAlreadyPaid("this request was paid and answered before")
        if open_row["state"] == "unknown":
            raise OutcomeUnknown("this request was presented before and its outcome is open")
        raise RequestInProgress("this request is already waiting for its answer")
    won = moved(connection, _SQL[CLAIM], values)
    if won:
        take(connection, values["scopes"], values["units"], values["now"])
    return won


def run_step(connection: Connection, step: str, values: Values) -> bool:
    """Run one step of a claim and tell whether it applied; what it frees goes back to its budgets."""
    changed = moved(connection, _SQL[step], values)
    if changed and step in RELEASES:
        give_back(connection, values["scopes"], values["units"], values["now"])
    return changed

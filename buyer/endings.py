"""What becomes of a lease that ends: as the books say, or as nobody can say."""

from __future__ import annotations

from buyer.moves import move_sql
from contracts.lifecycle import AuthorizationEvent
from contracts.storage import Connection

__all__ = ["RELEASE_COLUMNS", "end_lease", "is_known", "lose_lease"]

# What an authorization that never left forgets of the request that had claimed it.
RELEASE_COLUMNS = (
    "request_key = NULL, fingerprint = NULL, route = NULL, claimed_s = NULL, request_digest = NULL, client_key = NULL"
)

# A spent one is leased while its answer is on its way to whoever asked.
_LET_GO = "UPDATE authorizations SET lease = NULL WHERE lease = :lease AND state IN ('ready', 'spent')"
_RETURN_CLAIMED = move_sql(AuthorizationEvent.ABORT, f"lease = NULL, {RELEASE_COLUMNS}", "lease = :lease")
_LOSE_SENT = move_sql(
    AuthorizationEvent.LOST, "lease = NULL, reason = 'the process ended before the answer came'", "lease = :lease"
)
_LOSE_ALL = move_sql(
    AuthorizationEvent.POWER_LOST,
    "lease = NULL, reason = 'the machine went down while this was in use'",
    "lease = :lease",
)


def is_known(connection: Connection, worker_id: str) -> bool:
    """Tell whether a worker is on the books; one that was taken for dead is not."""
    return connection.execute("SELECT 1 FROM workers WHERE id = ?", (worker_id,)).fetchone() is not None


def end_lease(connection: Connection, worker_id: str) -> None:
    """Strike a worker off the books, which are complete: what it had not sent is free, what it had sent is UNKNOWN."""
    _run(connection, worker_id, _LET_GO, _RETURN_CLAIMED, _LOSE_SENT)


def lose_lease(connection: Connection, worker_id: str) -> None:
    """Strike a worker off the books, which may lack its last steps: all that it held is UNKNOWN."""
    _run(connection, worker_id, _LOSE_ALL, _LET_GO)


def _run(connection: Connection, worker_id: str, *statements: str) -> None:
    for statement in statements:
        connection.execute(statement, {"lease": worker_id})
    connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,))

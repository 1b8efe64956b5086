"""The life-cycle table as SQL: every UPDATE of a state is written from it, so that no other move exists."""

from __future__ import annotations

from typing import Any

from contracts.lifecycle import AUTHORIZATION_TRANSITIONS, AuthorizationEvent
from contracts.storage import Connection

__all__ = ["move_sql", "moved"]


def move_sql(event: AuthorizationEvent, assignments: str = "", where: str = "id = :id") -> str:
    """Return the UPDATE that takes rows through `event`, from whichever states the table allows it.

    All states that know `event` must lead to one state. `assignments` are further `column = value` pairs.
    """
    sources = {
        source.value: target.value for (source, known), target in AUTHORIZATION_TRANSITIONS.items() if known is event
    }
    (target,) = set(sources.values())
    # Not `state IN (…)`: with that, SQLite would not see that an index of the rows in one state will do.
    states = " OR ".join(f"state = '{source}'" for source in sorted(sources))
    extra = f", {assignments}" if assignments else ""
    return f"UPDATE authorizations SET state = '{target}'{extra} WHERE {where} AND ({states})"  # noqa: S608 - no input


def moved(connection: Connection, sql: str, values: dict[str, Any]) -> bool:
    """Run a statement of `move_sql` and tell whether a row was in a state that allowed it."""
    return connection.execute(sql, values).rowcount > 0

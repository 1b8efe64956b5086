"""Posting: enters the steps of a tail into the books, as if each had been written there when it happened.

Most authorizations go all the way from READY within one tail. Of these only the end is written, one statement for all;
the states in between are walked in the life-cycle table. Steps of a claim that is in the books already are run one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from buyer import steps
from buyer.tail import Entry
from contracts.lifecycle import AUTHORIZATION_TRANSITIONS, AuthorizationState
from contracts.storage import Connection

__all__ = ["post"]

# The columns that steps of a claim fill. A READY row has none of them.
_COLUMNS = (
    "state", "lease", "request_key", "fingerprint", "route", "claimed_s", "request_digest", "client_key",
    "status", "latency_ms", "transaction_hash", "charged_atomic", "delivered_s",
)  # fmt: skip
_NOTHING: dict[str, Any] = dict.fromkeys(_COLUMNS)
_ENTER = (
    f"UPDATE authorizations SET {', '.join(f'{name} = ?' for name in _COLUMNS)} "  # noqa: S608 - no input
    "WHERE id = ? AND lease = ? AND state = 'ready'"
)
_in_order = itemgetter(*_COLUMNS, "id", "holder")
# The life-cycle table by what stands in the books and in a tail.
_NEXT = {
    (source.value, step): target.value
    for (source, event), target in AUTHORIZATION_TRANSITIONS.items()
    for step, known in steps.EVENTS.items()
    if event is known
}


def post(connection: Connection, worker_id: str, entries: Sequence[Entry]) -> int:
    """Enter the steps of one worker, in order; return how many authorizations were sent."""
    begun: dict[int, dict[str, Any]] = {}
    sent = 0
    for entry in entries:
        step, row = entry.step, begun.get(entry.row_id)
        if step == steps.CLAIM:
            begun[entry.row_id] = _claimed(worker_id, entry)
        elif row is None:
            sent += _run(connection, worker_id, entry) and step == steps.SEND
        elif step in steps.RELEASES:
            _advance(row, step)
            del begun[entry.row_id]
        else:
            sent += step == steps.SEND
            _apply(row, entry)
    connection.executemany(_ENTER, [_in_order(row) for row in begun.values()])
    return sent


def _claimed(worker_id: str, entry: Entry) -> dict[str, Any]:
    values = entry.values
    row = {
        **_NOTHING,
        "id": entry.row_id,
        "holder": worker_id,
        "lease": worker_id,
        "state": AuthorizationState.READY.value,
        "request_key": values["request_key"],
        "fingerprint": values["fingerprint"],
        "route": values["route"],
        "claimed_s": values["now"],
        "request_digest": values["digest"],
        "client_key": values["client_key"],
    }
    _advance(row, entry.step)
    return row


def _apply(row: dict[str, Any], entry: Entry) -> None:
    _advance(row, entry.step)
    values = entry.values
    if entry.step == steps.DELIVERED:
        row["delivered_s"] = values["now"]
    elif entry.step == steps.CHARGED:
        row["charged_atomic"] = values["charged"]
    else:
        row.update(values)
    if entry.step in steps.LAST:
        row["lease"] = None


def _advance(row: dict[str, Any], step: str) -> None:
    if step in steps.EVENTS:
        row["state"] = _NEXT[row["state"], step]


def _run(connection: Connection, worker_id: str, entry: Entry) -> bool:
    # No budget limits what is claimed in a tail (`buyer.slots`), so none gets anything back.
    values = {"scopes": (), "units": 0, "now": 0, **entry.values, "id": entry.row_id, "lease": worker_id}
    return steps.run_step(connection, entry.step, values)

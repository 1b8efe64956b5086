"""The event log: every decision with all its offers, and what became of it. SQLite or PostgreSQL, append only.

It is for learning and for explaining, not for money: a row that is lost costs a lesson, so writes are not synced and a
store that says no never stops a call. The pool is where money is written down.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from contracts.storage import Connection, Database, Row, open_database
from gateway.bidder.choose import Chosen
from gateway.bidder.features import FEATURE_SCHEMA, FEATURES, View
from gateway.bidder.limits import EVENTS_KEPT, TRAIN_WINDOW
from gateway.bidder.task import Observation, Offer, Outcome, Task

__all__ = ["Event", "EventLog", "ModelState"]

ModelState = Literal["shadow", "live", "retired"]

_PACKED = struct.Struct(f"<{len(FEATURES)}d")
_OUTCOME = "latency_s, is_ok, is_good, is_censored, paid_units, outcomes.at_ms AS ended_ms"


@dataclass(frozen=True, slots=True)
class Event:
    """A decision to buy, with the view it was taken on, and its outcome where one is known."""

    id: str
    request_key: str | None
    model: str
    policy: str
    at_ms: int
    view: View
    chosen: int | None
    action: str
    reason: str
    is_exploration: bool
    propensity: float
    p_good: float | None
    utility: float | None
    outcome: Outcome | None = None
    is_good: bool | None = None
    ended_ms: int | None = None


class EventLog:
    """The log in one store. Writes join the store's own group commits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> EventLog:
        """Open the log in a store. Raises `StoreUnavailable`."""
        return cls(open_database(url, "gateway.bidder.migrations"))

    def close(self) -> None:
        """Finish the waiting writes."""
        self._database.close()

    async def decided(
        self, decision_id: str, chosen: Chosen, *, model: str, request_key: str | None, trained: str | None, at_ms: int
    ) -> None:
        """Write a decision down, once: a call may act on it at several sellers. Raises `StoreUnavailable`."""
        decision, task = chosen.decision, chosen.view.task

        def write(connection: Connection) -> None:
            added = connection.execute(
                """INSERT INTO decisions (id, at_ms, request_key, model, policy, trained, action, chosen,
                       is_exploration, propensity, p_good, utility, reason, work, slack_s, value_units, cap_units,
                       difficulty, priority)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING""",
                (
                    decision_id,
                    at_ms,
                    request_key,
                    model,
                    decision.policy,
                    trained,
                    decision.action,
                    chosen.index,
                    int(decision.is_exploration),
                    decision.propensity,
                    decision.p_good,
                    decision.utility,
                    decision.reason,
                    task.work,
                    task.slack_s,
                    str(task.value_units),
                    str(task.cap_units),
                    task.difficulty,
                    task.priority,
                ),
            )
            if not added.rowcount:
                return
            connection.executemany(
                """INSERT INTO decision_offers (decision_id, place, name, seller, tier, price_units, features, schema)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
                [
                    (
                        decision_id,
                        place,
                        offer.name,
                        offer.seller,
                        offer.tier,
                        str(offer.price_units),
                        _PACKED.pack(*row),
                        FEATURE_SCHEMA,
                    )
                    for place, (offer, row) in enumerate(zip(chosen.view.offers, chosen.view.rows, strict=True))
                ],
            )

        await self._database.write(write, durable=False)

    async def ended(self, decision_id: str, outcome: Outcome, *, is_good: bool, settlement: str, at_ms: int) -> None:
        """Write an outcome down; the first one counts. Raises `StoreUnavailable`."""
        values = (
            decision_id,
            at_ms,
            outcome.latency_s,
            int(outcome.is_ok),
            int(is_good),
            int(outcome.is_censored),
            str(outcome.paid_units),
            settlement,
        )

        def write(connection: Connection) -> None:
            connection.execute(
                """INSERT INTO outcomes (decision_id, at_ms, latency_s, is_ok, is_good, is_censored, paid_units,
                       settlement) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (decision_id) DO NOTHING""",
                values,
            )

        await self._database.write(write, durable=False)

    async def observed(self, observations: Sequence[Observation], *, at_ms: int) -> None:
        """Write market observations down. Raises `StoreUnavailable`."""
        rows = [
            (at_ms, each.seller, each.tier, str(each.price_units), each.queue_per_slot, each.busy_share)
            for each in observations
        ]

        def write(connection: Connection) -> None:
            connection.executemany(
                """INSERT INTO observations (at_ms, seller, tier, price_units, queue_per_slot, busy_share)
                   VALUES (?, ?, ?, ?, ?, ?)""",
                rows,
            )

        await self._database.write(write, durable=False)

    async def models(
        self, states: Mapping[str, ModelState], outcomes: int, losses: Mapping[str, float], *, at_ms: int
    ) -> None:
        """Write down what models, by name, are now; `losses` are the mean log-losses of late, by policy.

        Raises `StoreUnavailable`.
        """
        metrics = msgspec.json.encode(losses).decode()

        def write(connection: Connection) -> None:
            connection.executemany(
                """INSERT INTO models (name, at_ms, outcomes, state, metrics) VALUES (?, ?, ?, ?, ?)
                   ON CONFLICT (name) DO UPDATE SET state = excluded.state, metrics = excluded.metrics""",
                [(name, at_ms, outcomes, state, metrics) for name, state in states.items()],
            )

        await self._database.write(write, durable=False)

    def model_states(self) -> dict[str, ModelState]:
        """Return what each model is now, by name, the oldest first. Raises `StoreUnavailable`."""

        def read(connection: Connection) -> dict[str, ModelState]:
            rows = connection.execute("SELECT name, state FROM models ORDER BY at_ms, name").fetchall()
            return {row["name"]: row["state"] for row in rows}

        return self._database.read(read)

    def observations(self, count: int = TRAIN_WINDOW) -> list[tuple[int, Observation]]:
        """Return the newest market observations with their time (unix ms), oldest first. Raises `StoreUnavailable`."""

        def read(connection: Connection) -> list[tuple[int, Observation]]:
            rows = connection.execute("SELECT * FROM observations ORDER BY id DESC LIMIT ?", (count,)).fetchall()
            return [(row["at_ms"], _observation(row)) for row in reversed(rows)]

        return self._database.read(read)

    def recent(self, count: int = TRAIN_WINDOW, *, ended_only: bool = True) -> list[Event]:
        """Return the newest decisions to buy that have an outcome (or all), oldest first. Raises `StoreUnavailable`."""
        wanted = "outcomes.decision_id IS NOT NULL" if ended_only else "1 = 1"

        def read(connection: Connection) -> list[Event]:
            rows = connection.execute(
                f"""SELECT decisions.*, {_OUTCOME} FROM decisions
                    LEFT JOIN outcomes ON outcomes.decision_id = decisions.id
                    WHERE {wanted} ORDER BY decisions.at_ms DESC, decisions.id DESC LIMIT ?""",  # noqa: S608 - constants
                (count,),
            ).fetchall()
            return [_event(connection, row) for row in reversed(rows)]

        return self._database.read(read)

    def find(self, decision_id: str) -> Event | None:
        """Return one decision. Raises `StoreUnavailable`."""

        def read(connection: Connection) -> Event | None:
            row = connection.execute(
                f"""SELECT decisions.*, {_OUTCOME} FROM decisions
                    LEFT JOIN outcomes ON outcomes.decision_id = decisions.id WHERE id = ?""",  # noqa: S608 - constants
                (decision_id,),
            ).fetchone()
            return None if row is None else _event(connection, row)

        return self._database.read(read)

    def paid_units(self) -> int:
        """Return all that outcomes say was paid, to be compared with receipts and chain. Raises `StoreUnavailable`."""

        def read(connection: Connection) -> int:
            return sum(int(row[0]) for row in connection.execute("SELECT paid_units FROM outcomes"))

        return self._database.read(read)

    def trim(self) -> None:
        """Forget all but the newest `EVENTS_KEPT` decisions, and as many observations. Raises `StoreUnavailable`."""

        def write(connection: Connection) -> None:
            connection.execute(
                "DELETE FROM observations WHERE id <= (SELECT max(id) FROM observations) - ?", (EVENTS_KEPT,)
            )
            row = connection.execute("SELECT count(*) FROM decisions").fetchone()
            if row[0] <= EVENTS_KEPT:
                return
            edge = connection.execute(
                "SELECT at_ms FROM decisions ORDER BY at_ms DESC LIMIT 1 OFFSET ?", (EVENTS_KEPT,)
            ).fetchone()[0]
            of_old = "(SELECT id FROM decisions WHERE at_ms <= ?)"
            connection.execute(f"DELETE FROM outcomes WHERE decision_id IN {of_old}", (edge,))  # noqa: S608 - constants
            connection.execute(f"DELETE FROM decision_offers WHERE decision_id IN {of_old}", (edge,))  # noqa: S608 - as above
            connection.execute("DELETE FROM decisions WHERE at_ms <= ?", (edge,))

        self._database.transact(write, durable=False)


def _observation(row: Row) -> Observation:
    return Observation(row["seller"], row["tier"], int(row["price_units"]), row["queue_per_slot"], row["busy_share"])


def _event(connection: Connection, row: Row) -> Event:
    offers = connection.execute(
        "SELECT * FROM decision_offers WHERE decision_id = ? ORDER BY place", (row["id"],)
    ).fetchall()
    task = Task(
        row["work"],
        row["slack_s"],
        int(row["value_units"]),
        int(row["cap_units"]),
        row["difficulty"],
        row["priority"],
    )
    current = [offer for offer in offers if offer["schema"] == FEATURE_SCHEMA]
    view = View(
        task,
        [Offer(each["name"], each["seller"], int(each["price_units"]), each["tier"]) for each in current],
        [_PACKED.unpack(each["features"]) for each in current],
    )
    known = row["ended_ms"] is not None
    outcome = (
        Outcome(row["latency_s"], bool(row["is_ok"]), int(row["paid_units"]), bool(row["is_censored"]))
        if known
        else None
    )
    return Event(
        id=row["id"],
        request_key=row["request_key"],
        model=row["model"],
        policy=row["policy"],
        at_ms=row["at_ms"],
        view=view,
        chosen=row["chosen"] if len(current) == len(offers) else None,
        action=row["action"],
        reason=row["reason"],
        is_exploration=bool(row["is_exploration"]),
        propensity=row["propensity"],
        p_good=row["p_good"],
        utility=row["utility"],
        outcome=outcome,
        is_good=bool(row["is_good"]) if known else None,
        ended_ms=row["ended_ms"],
    )

"""The bidder's event log in PostgreSQL: what is written down comes back, and old rows go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.bidder import events
from gateway.bidder.events import EventLog
from gateway.bidder.task import UNITS_PER_TOKEN, Observation, Outcome
from tests.gateway.bidder.test_events import write
from tests.stores.servers import Server

OUTCOME = Outcome(1.5, True, UNITS_PER_TOKEN // 7)
SEEN = Observation("seller", 2, UNITS_PER_TOKEN * 3, 1.5, 0.75)


@pytest.fixture
def log(postgres: Server) -> Iterator[EventLog]:
    log = EventLog.open(postgres.new_database())
    yield log
    log.close()


async def test_decisions_outcomes_observations_and_models_come_back_as_they_were(log: EventLog) -> None:
    chosen = await write(log, "d1", outcome=OUTCOME)
    await log.observed([SEEN], at_ms=9)
    await log.models({"m1": "shadow"}, 150, {"rule": 0.5}, at_ms=9)
    await log.models({"m1": "live"}, 250, {"rule": 0.4}, at_ms=10)
    found = log.find("d1")
    assert found is not None
    assert (found.view.rows, found.outcome) == (list(chosen.view.rows), OUTCOME)
    assert log.paid_units() == OUTCOME.paid_units
    assert log.observations() == [(9, SEEN)]
    assert log.model_states() == {"m1": "live"}


async def test_only_the_newest_rows_are_kept(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVENTS_KEPT", 2)
    for number in range(4):
        await write(log, f"d{number}", at_ms=number, outcome=OUTCOME)
        await log.observed([SEEN], at_ms=number)
    log.trim()
    assert [event.id for event in log.recent()] == ["d2", "d3"]
    assert [at_ms for at_ms, _ in log.observations()] == [2, 3]

"""The event log: a decision comes back as it was taken, on either store, and holds no word of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from gateway.bidder import events
from gateway.bidder.choose import Chosen, choose
from gateway.bidder.events import EventLog
from gateway.bidder.market import Market
from gateway.bidder.rule import QueueRule
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Outcome, Task

TASK = Task(1.5, 12.0, 3 * UNITS_PER_TOKEN + 1, UNITS_PER_TOKEN, 0.3, 2)
OFFERS = [Offer("a", "a", UNITS_PER_TOKEN // 3, 1, 1.0), Offer("b", "b", UNITS_PER_TOKEN // 7, 2, 0.5)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = EventLog.open(f"sqlite:///{tmp_path / 'events.db'}")
    yield log
    log.close()


def decision() -> Chosen:
    market = Market()
    for offer in OFFERS:
        market.see(TASK, offer)
    return choose(TASK, OFFERS, market, 0.0, policy=QueueRule(), random=Random(1))


async def write(log: EventLog, name: str, *, at_ms: int = 5, outcome: Outcome | None = None) -> Chosen:
    chosen = decision()
    await log.decided(name, chosen, model="m", request_key=f"key-{name}", trained=None, at_ms=at_ms)
    if outcome is not None:
        await log.ended(name, outcome, is_good=outcome.is_good(TASK), settlement="stated", at_ms=at_ms + 1)
    return chosen


async def test_a_decision_comes_back_as_it_was_taken(log: EventLog) -> None:
    outcome = Outcome(3.5, True, UNITS_PER_TOKEN // 7)
    chosen = await write(log, "one", outcome=outcome)
    (event,) = log.recent()
    assert (event.view.task, event.view.rows) == (TASK, chosen.view.rows)
    assert [offer.price_units for offer in event.view.offers] == [offer.price_units for offer in OFFERS]
    assert (event.chosen, event.propensity, event.p_good) == (chosen.index, 1.0, chosen.decision.p_good)
    assert (event.outcome, event.is_good, event.request_key) == (outcome, True, "key-one")
    assert log.find("one") == event
    assert log.find("other") is None


async def test_a_decision_without_an_outcome_is_not_learnt_from(log: EventLog) -> None:
    await write(log, "open")
    assert log.recent() == []
    assert [event.id for event in log.recent(ended_only=False)] == ["open"]


async def test_a_call_that_goes_on_to_the_next_seller_leaves_one_decision(log: EventLog) -> None:
    chosen = await write(log, "one")
    await log.decided("one", chosen, model="m", request_key="key-one", trained=None, at_ms=6)
    (event,) = log.recent(ended_only=False)
    assert [offer.name for offer in event.view.offers] == ["a", "b"]


async def test_the_first_outcome_counts(log: EventLog) -> None:
    await write(log, "one", outcome=Outcome(1.0, True, 7))
    await log.ended("one", Outcome(9.0, False, 9), is_good=False, settlement="none", at_ms=9)
    assert log.paid_units() == 7


async def test_the_newest_come_last_and_the_oldest_go(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        await write(log, f"d{number}", at_ms=number, outcome=Outcome(1.0, True, 1))
    assert [event.id for event in log.recent(3)] == ["d3", "d4", "d5"]
    monkeypatch.setattr(events, "EVENTS_KEPT", 4)
    log.trim()
    assert [event.id for event in log.recent()] == ["d2", "d3", "d4", "d5"]
    assert log.paid_units() == 4

"""The bidder at work: a call is placed whatever fails in it, and what was learnt survives a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from contracts.errors import StoreUnavailable
from gateway.bidder import service
from gateway.bidder.events import EventLog
from gateway.bidder.features import View
from gateway.bidder.limits import SHADOW_OUTCOMES, TRAIN_FIRST
from gateway.bidder.policy import Estimate
from gateway.bidder.rule import QueueRule
from gateway.bidder.service import POLICY_NAMES, Bidder
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Outcome, Task

CENT = UNITS_PER_TOKEN // 100
TASK = Task(1.0, 10.0, 10 * CENT, 5 * CENT)
GOOD, BAD, DEAR = Offer("good", "good", 2 * CENT), Offer("bad", "bad", CENT), Offer("dear", "dear", 9 * CENT)


@dataclass
class Clock:
    now_s: float = 1_000.0

    def __call__(self) -> float:
        self.now_s += 0.5
        return self.now_s


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'bidder.db'}"


@pytest.fixture
async def bidder(url: str) -> AsyncIterator[Bidder]:
    bidder = Bidder(EventLog.open(url), random=Random(1), clock=Clock())
    yield bidder
    await bidder.close()


async def serve(bidder: Bidder, count: int, *, explores: bool = False) -> None:
    """Place calls; BAD never answers well."""
    for _ in range(count):
        ticket = bidder.decide(TASK, [GOOD, BAD], model="m", explores=explores)
        offer = ticket.chosen.decision.offer
        assert offer is not None
        bidder.placed(ticket, "key")
        bidder.ended(ticket, offer, Outcome(1.0, offer is GOOD, offer.price_units), settlement="stated")
        await asyncio.sleep(0)


async def settle(bidder: Bidder) -> None:
    while bidder._tasks:
        await asyncio.gather(*bidder._tasks)


@pytest.mark.parametrize("policy", POLICY_NAMES)
async def test_every_policy_orders_what_is_within_the_cap(bidder: Bidder, policy: str) -> None:
    ticket = bidder.decide(TASK, [DEAR, GOOD, BAD], model="m", policy=policy)
    assert {offer.name for offer in ticket.offers} == {"good", "bad"}
    assert ticket.offers[0] == ticket.chosen.decision.offer


async def test_when_a_seller_is_not_there_the_next_best_stands_in_and_is_learnt_from(bidder: Bidder) -> None:
    ticket = bidder.decide(TASK, [GOOD, BAD], model="m", explores=False)
    first, second = ticket.offers
    bidder.ended(ticket, second, Outcome(1.0, False, 0))
    assert bidder.market.of(second.seller).ok < bidder.market.of(first.seller).ok


async def test_what_was_learnt_survives_a_restart(url: str) -> None:
    before = Bidder(EventLog.open(url), random=Random(1), clock=Clock())
    await serve(before, 30)
    await settle(before)
    assert before.decide(TASK, [GOOD, BAD], model="m", explores=False).offers[0] == GOOD
    await before.close()
    after = Bidder(EventLog.open(url), random=Random(1), clock=Clock(2_000.0))
    assert after.decide(TASK, [GOOD, BAD], model="m", explores=False).offers[0] == GOOD
    assert after.standing().outcomes == 30
    await after.close()


async def test_the_log_agrees_with_what_was_paid(bidder: Bidder) -> None:
    await serve(bidder, 20, explores=True)
    await settle(bidder)
    assert bidder._log is not None
    events = bidder._log.recent()
    assert len(events) == 20
    assert bidder._log.paid_units() == sum(event.view.offers[event.chosen or 0].price_units for event in events)


async def test_a_log_that_cannot_be_written_stops_no_call(bidder: Bidder, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(bidder._log, "decided", fail)
    monkeypatch.setattr(bidder._log, "ended", fail)
    await serve(bidder, 5)
    await settle(bidder)
    assert bidder.standing().outcomes == 5


async def test_a_policy_that_raises_is_replaced_by_the_rule(bidder: Bidder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, view: View) -> Estimate:
        raise ZeroDivisionError

    monkeypatch.setattr(type(bidder._learner), "estimate", fail)
    ticket = bidder.decide(TASK, [GOOD, BAD], model="m", explores=False)
    assert ticket.chosen.decision.policy == QueueRule.name
    assert ticket.chosen.decision.offer is not None


async def test_a_model_that_is_slow_time_and_again_is_dropped(bidder: Bidder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(bidder._learner), "decides", "lightgbm")
    monkeypatch.setattr(service, "CHOOSE_MAX_S", 0.0)
    for _ in range(3):
        bidder.decide(TASK, [GOOD, BAD], model="m")
    assert "ms 3 times in a row" in bidder.standing().reason


async def test_trees_take_over_once_they_have_shown_themselves(url: str, tmp_path: Path) -> None:
    bidder = Bidder(
        EventLog.open(url),
        models=tmp_path / "models",
        key_path=tmp_path / "key",
        random=Random(1),
        clock=Clock(),
    )
    await serve(bidder, TRAIN_FIRST, explores=True)
    await settle(bidder)
    assert bidder.standing().shadow is not None
    await serve(bidder, SHADOW_OUTCOMES)
    assert bidder.standing().decides == "lightgbm"
    await settle(bidder)
    log = EventLog.open(url)
    assert log.model_states() == {bidder.standing().live: "live"}
    log.close()
    await bidder.close()
    again = Bidder(EventLog.open(url), models=tmp_path / "models", key_path=tmp_path / "key", clock=Clock(3_000.0))
    assert (again.standing().decides, again.standing().shadow is None) == ("rule", False)
    await again.close()

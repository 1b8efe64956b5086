"""Workers, each for itself: where it buys under what load, and what becomes of the others when it is killed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gateway.delegator.delegation import Delegator
from gateway.delegator.isolated import IsolatedBuying
from gateway.inside import Reply, ask_inside
from tests.gateway.delegator.parts import UNITS_PER_ATOMIC, Town, events_of, order, plan_of, town
from tests.patience import eventually

NEAR, FAR = 1_000, 1_200
ONE = plan_of("a", a=("add 3", []))
BUDGET = 10 * FAR * UNITS_PER_ATOMIC


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Town]:
    """Two sellers of one model; the near one is a little cheaper."""
    with town(tmp_path, near=("model", NEAR, 1e6), far=("model", FAR, 1e6)) as sellers:
        sellers.settings["routing"] = {"*": {"policy": "rule", "explore": False}}
        yield sellers


async def seller_of_one(delegator: Delegator) -> str:
    """Have one node done and return who did it."""
    delegation = delegator.begin(order(ONE, budget=BUDGET, deadline_s=None))
    assert (await events_of(delegation))[-1].text == "3"
    return delegation.sellers["a"]


async def test_two_workers_choose_different_sellers_when_the_load_has_changed_between_them(built: Town) -> None:
    async with built.delegating() as delegator:
        assert await seller_of_one(delegator) == "near"
        built.set_pace("near", 0.1)
        # Others' calls see the load: this one is bound to the near seller, and the next worker goes elsewhere.
        body = {"model": "paid/model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
        bound = [(b"content-type", b"application/json"), (b"x-farebox-seller", b"near")]
        await ask_inside(delegator.desk, bound, json.dumps(body).encode(), Reply())
        assert await seller_of_one(delegator) == "far"
    assert built.paid == {"near": 2, "far": 1}


async def test_a_worker_that_is_killed_before_it_pays_returns_its_money_and_the_others_finish(
    built: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.settings["delegate"] = {"workers": "processes"}
    both = plan_of("all", a=("add 3", []), b=("add 4", []), all=("multiply 10", ["a", "b"]))
    async with built.delegating() as delegator:
        delegation = delegator.begin(order(both, budget=BUDGET))
        buying = delegation.buying
        assert isinstance(buying, IsolatedBuying)
        hanging: list[str] = []

        def command(key: str) -> Sequence[str]:
            # The first worker hangs, as one that waits for a disk does, so that it is killed before it pays.
            hanging.append(key)
            return ("sleep", "600") if len(hanging) == 1 else IsolatedBuying.command(buying, key)

        monkeypatch.setattr(buying, "command", command)
        events = asyncio.create_task(events_of(delegation))
        await asyncio.to_thread(eventually, lambda: hanging and hanging[0] in buying.processes, "a worker began")
        buying.processes[hanging[0]].kill()
        last = (await events)[-1]
        run = delegator.journal.find(delegation.id)
    dead = next(attempt for attempt in run.attempts if attempt.key == hanging[0])
    assert (dead.state, dead.paid_units, dead.reason) == ("failed", 0, "its worker died before it paid")
    assert run.state == "done"
    assert sum(built.paid.values()) == 3, "its node was bought once, by the worker that came after it"
    assert last.text == "70"
    assert last.spent_units == (built.paid["near"] * NEAR + built.paid["far"] * FAR) * UNITS_PER_ATOMIC


async def test_a_worker_that_is_killed_after_it_paid_leaves_its_answer_to_the_run(built: Town) -> None:
    built.settings["delegate"] = {"workers": "processes"}
    built.set_pace("near", 0.005)
    built.set_pace("far", 0.005)
    async with built.delegating() as delegator:
        delegation = delegator.begin(order(ONE, budget=BUDGET))
        buying = delegation.buying
        assert isinstance(buying, IsolatedBuying)
        events = asyncio.create_task(events_of(delegation))
        await asyncio.to_thread(eventually, lambda: sum(built.shown.values()) > 0, "a payment was shown")
        next(iter(buying.processes.values())).kill()
        built.set_pace("near", 1e6)
        built.set_pace("far", 1e6)
        last = (await events)[-1]
        run = delegator.journal.find(delegation.id)
    assert last.text == "3"
    assert sum(built.paid.values()) == 1
    assert [attempt.state for attempt in run.attempts] == ["answered"]

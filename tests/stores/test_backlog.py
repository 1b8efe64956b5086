"""The backlog of background work, on each kind of store: bounded, in one process's hands, and swept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from contracts.errors import NameUnknown, RequestInProgress
from gateway.background import backlog as module
from gateway.background.backlog import Backlog, BacklogFull, Task
from gateway.background.limits import KEPT_S
from tests.stores.parts import Place

HOUR_MS = 3_600_000


@pytest.fixture
def pair(place: Place) -> Iterator[tuple[Backlog, Backlog]]:
    """Two processes' views of one backlog."""
    url = place.url("background")
    mine, other = Backlog.open(url), Backlog.open(url)
    yield mine, other
    mine.close()
    other.close()


def add(backlog: Backlog, *, now_ms: int = 0) -> Task:
    return backlog.add("m", b"{}", max_price_units=10**40, now_ms=now_ms, expires_ms=now_ms + HOUR_MS)


async def test_a_task_is_in_one_process_s_hands_until_it_ends_or_the_process_does(
    pair: tuple[Backlog, Backlog],
) -> None:
    mine, other = pair
    task = add(mine)
    assert [each.id for each in other.due(0, 10)] == [task.id]
    assert mine.take(task, "chat")
    assert not other.take(task, "another"), "it was seen waiting, and is not any more"
    assert other.due(0, 10) == []
    mine.close()
    (left,) = other.due(0, 10)
    assert (left.state, left.purchase, left.key) == ("buying", "chat", task.key)
    assert other.take(left, "another")
    assert other.find(task.id).purchase == "chat", "only its seller may see the payment again"
    await other.end(left, now_ms=5, paid_units=10**39, result="answer", reason=None)
    ended = other.find(task.id)
    assert (ended.state, ended.result, ended.paid_units, ended.ended_ms) == ("done", "answer", 10**39, 5)
    assert other.counts() == {"done": 1}


async def test_what_is_put_off_keeps_its_payment_unless_it_is_certainly_unpaid(pair: tuple[Backlog, Backlog]) -> None:
    mine, other = pair
    task = add(mine)
    assert mine.take(task, "chat")
    await mine.put_off(task, 1_000, is_unpaid=False, reason="no room")
    assert other.due(999, 10) == []
    (again,) = other.due(1_000, 10)
    assert (again.key, again.purchase, again.put_off) == (task.key, "chat", 1)
    assert other.take(again, "chat")
    await other.put_off(again, 0, is_unpaid=True, reason="never sent")
    fresh = mine.find(task.id)
    assert (fresh.state, fresh.purchase) == ("waiting", None)
    assert fresh.key != task.key, "another seller's payment is another payment"


async def test_who_was_taken_for_dead_neither_lets_go_nor_ends_what_another_process_pays_for_now(
    pair: tuple[Backlog, Backlog],
) -> None:
    mine, other = pair
    task = add(mine)
    assert mine.take(task, "chat")
    mine._presence.close()
    (left,) = other.due(0, 10)
    assert other.take(left, "chat")
    await mine.put_off(task, 0, is_unpaid=True, reason="another call pays for it")
    await mine.end(task, now_ms=5, paid_units=0, result=None, reason="another call pays for it")
    now = other.find(task.id)
    assert (now.state, now.key) == ("buying", task.key), "under another key it would be paid for twice"
    await other.end(left, now_ms=6, paid_units=10**39, result="answer", reason=None)
    assert (other.find(task.id).state, other.find(task.id).paid_units) == ("done", 10**39)


def test_no_more_waits_than_may(pair: tuple[Backlog, Backlog], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, _ = pair
    monkeypatch.setattr(module, "TASKS_MAX", 2)
    first, second = add(mine), add(mine)
    with pytest.raises(BacklogFull):
        add(mine)
    mine.cancel(first.id, 1)
    assert {each.state for each in mine.recent(10)} == {"waiting", "cancelled"}
    assert mine.take(second, "chat")
    with pytest.raises(RequestInProgress):
        mine.cancel(second.id, 1)
    with pytest.raises(NameUnknown):
        mine.cancel("ghost", 1)


def test_what_waited_too_long_is_dropped_and_what_may_be_paid_is_not(pair: tuple[Backlog, Backlog]) -> None:
    mine, _ = pair
    waiting, buying = add(mine), add(mine)
    assert mine.take(buying, "chat")
    mine.sweep(HOUR_MS)
    assert (mine.find(waiting.id).state, mine.find(buying.id).state) == ("expired", "buying")
    mine.sweep(HOUR_MS + KEPT_S * 1000 + 1)
    with pytest.raises(NameUnknown):
        mine.find(waiting.id)

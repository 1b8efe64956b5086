"""Tasks delegated over a real pool and a real desk: what is paid and what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.delegator.parts import UNITS_PER_ATOMIC, Town, events_of, order, plan_of, town

SUM = plan_of("all", a=("add 3", []), b=("add 4", []), all=("multiply 10", ["a", "b"]))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Town]:
    """A cheap slow seller and a dear fast one, of one model."""
    with town(tmp_path, slow=("model", 1_000, 1e5), fast=("model", 3_000, 1e6)) as built:
        yield built


async def test_a_plan_is_bought_node_by_node_and_its_answer_is_right(pair: Town) -> None:
    async with pair.delegating() as delegator:
        delegation = delegator.begin(order(SUM))
        events = await events_of(delegation)
        run = delegator.journal.find(delegation.id)
    assert events[-1].text == "70"
    assert run.state == "done"
    paid = pair.paid
    spent = (paid["slow"] * 1_000 + paid["fast"] * 3_000) * UNITS_PER_ATOMIC
    assert paid["slow"] + paid["fast"] == 3
    assert events[-1].spent_units == sum(attempt.paid_units or 0 for attempt in run.attempts) == spent

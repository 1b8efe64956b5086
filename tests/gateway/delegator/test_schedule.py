"""Schedules: never over the budget, never slower for more money, and a missing amount is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.delegator.gate import Overheads, Single, worth_delegating
from gateway.delegator.schedule import (
    BudgetInfeasible,
    Graph,
    Way,
    carry_out,
    cheapest,
    cost_units,
    earliest_finish,
    fastest,
    upgraded,
    upward_ranks,
)

SLOW, QUICK = Way("slow", 4.0, 10), Way("quick", 1.0, 30)
CHAIN = Graph([(), (0,), (1,)], [[SLOW, QUICK]] * 3)
FORK = Graph([(), (), (), (0, 1, 2)], [[SLOW, QUICK]] * 4)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 8))
    needs = [draw(st.lists(st.integers(0, job - 1), unique=True, max_size=3)) if job else [] for job in range(size)]
    ways = []
    for _ in range(size):
        prices = sorted(draw(st.lists(st.integers(0, 50), min_size=1, max_size=3)))
        ways.append([Way(f"s{place}", draw(st.floats(0.1, 9.0)), price) for place, price in enumerate(prices)])
    return Graph(needs, ways, {"s0": 2, "s1": 1})


def test_independent_jobs_run_at_once_and_dependent_ones_in_turn() -> None:
    assert carry_out(CHAIN, [0, 0, 0]).takes_s == 12.0
    assert carry_out(FORK, [0, 0, 0, 0]).takes_s == 8.0
    assert carry_out(FORK, [0, 0, 0, 0], width=1).takes_s == 16.0


def test_a_seller_is_not_asked_for_more_than_its_slots() -> None:
    assert carry_out(Graph(FORK.needs, FORK.ways, {"slow": 2}), [0, 0, 0, 0]).takes_s == 12.0


def test_the_urgent_job_goes_first() -> None:
    """Two are ready and one slot is free; a long tail waits for the second."""
    graph = Graph([(), (), (1,)], [[Way("one", 1.0, 1)], [Way("one", 1.0, 1)], [Way("other", 9.0, 1)]], {"one": 1})
    assert upward_ranks(graph, [0, 0, 0]) == [1.0, 10.0, 9.0]
    assert carry_out(graph, [0, 0, 0]).takes_s == 10.0


def test_speed_is_bought_on_the_critical_path_only() -> None:
    graph = Graph([(), (), (0, 1)], [[SLOW, QUICK], [Way("slow", 1.0, 10), Way("quick", 0.5, 30)], [SLOW, QUICK]])
    assert upgraded(graph, budget_units=70) == [1, 0, 1]


def test_where_jobs_wait_for_a_turn_speed_is_bought_off_the_longest_path_too() -> None:
    at_once = Graph([()] * 4, [[Way("slow", 9.0, 10), Way("quick", 8.0, 15)], *[[SLOW, QUICK]] * 3])
    assert upgraded(at_once, budget_units=75) == [1, 0, 0, 0]
    assert upgraded(replace(at_once, width=1), budget_units=75) == [1, 1, 0, 0]
    assert upgraded(replace(at_once, slots={"slow": 1}), budget_units=75) == [1, 1, 0, 0]


def test_a_deadline_is_met_in_spite_of_turns_where_a_coin_can_do_it() -> None:
    graph = replace(FORK, width=2)
    assert carry_out(graph, cheapest(graph)).takes_s == 12.0
    assert carry_out(graph, upgraded(graph, deadline_s=7.0)).takes_s <= 7.0


def test_no_more_is_bought_than_the_deadline_asks_for() -> None:
    assert cost_units(CHAIN, upgraded(CHAIN, deadline_s=9.0)) == 50
    assert upgraded(CHAIN, deadline_s=12.0) == [0, 0, 0]


def test_a_budget_that_is_too_small_is_refused_with_what_is_missing() -> None:
    with pytest.raises(BudgetInfeasible) as caught:
        upgraded(CHAIN, budget_units=25)
    assert caught.value.missing_units == 5


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(0, 120))
def test_an_upgrade_keeps_to_the_budget_and_is_never_slower_than_the_cheapest(graph: Graph, more: int) -> None:
    budget = cost_units(graph, cheapest(graph)) + more
    assignment = upgraded(graph, budget_units=budget)
    assert cost_units(graph, assignment) <= budget
    assert carry_out(graph, assignment).takes_s <= carry_out(graph, cheapest(graph)).takes_s + 1e-9


@settings(max_examples=200, deadline=None)
@given(graphs(), st.lists(st.booleans(), min_size=48, max_size=48), st.integers(0, 60))
def test_failures_never_take_a_run_over_its_budget(graph: Graph, fails: list[bool], more: int) -> None:
    assignment = cheapest(graph)
    budget = cost_units(graph, assignment) + more

    def luck(job: int, way: int, attempt: int) -> tuple[float, bool]:
        return graph.ways[job][way].takes_s, attempt < 5 and fails[job * 6 + attempt]

    course = carry_out(graph, assignment, luck=luck, budget_units=budget)
    assert course.price_units <= budget
    assert course.price_units == sum(graph.ways[span.job][span.way].price_units for span in course.spans)
    assert course.is_whole or len({span.job for span in course.spans}) <= graph.size


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_every_job_waits_for_what_it_needs(graph: Graph) -> None:
    for assignment in (cheapest(graph), fastest(graph), earliest_finish(graph)):
        spans = {span.job: span for span in carry_out(graph, assignment).spans}
        assert len(spans) == graph.size
        for job, needs in enumerate(graph.needs):
            assert all(spans[need].ends_s <= spans[job].starts_s + 1e-9 for need in needs)


def test_a_chain_given_to_the_same_model_is_not_delegated() -> None:
    overheads = Overheads(planner_s=2.0, planner_units=5)
    alone = Single(carry_out(CHAIN, [0, 0, 0], width=1).takes_s, 30)
    refused = worth_delegating(carry_out(CHAIN, [0, 0, 0]), alone, overheads)
    assert not refused.delegates
    assert refused.price_units == 40
    assert "one call" in refused.reason
    assert worth_delegating(carry_out(CHAIN, [1, 1, 1]), alone, overheads).delegates


def test_a_wide_task_is_delegated() -> None:
    alone = Single(carry_out(FORK, [0] * 4, width=1).takes_s, 40)
    assert worth_delegating(carry_out(FORK, [0] * 4), alone, Overheads(2.0, 5)).delegates

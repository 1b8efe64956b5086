"""The graphs of the live experiment are plans, and their answers are what the stand-in workers come to."""

from __future__ import annotations

from random import Random

import pytest

from bench.live_arms import STANDARD, arms
from bench.live_dag import _gates
from bench.live_graphs import SHAPES, drawn
from bench.live_tables import PAGE, Row, ratios, rendered
from bench.paired import resampled
from gateway.delegator.inputs import prompt_of, resolve
from gateway.delegator.plan import check_plan
from gateway.demo.worker_server import answer_to


@pytest.mark.parametrize("shape", SHAPES)
def test_a_graph_is_a_plan_whose_answer_the_workers_come_to(shape: str) -> None:
    for number in range(20):
        graph = drawn(shape, number, seed=11)
        check_plan(graph.plan)
        results: dict[str, str] = {}
        for node in graph.plan.nodes:
            prompt = prompt_of(node, resolve(node, results), f"{number}:{node.id}")
            results[node.id] = answer_to(prompt, quality=0.95)
        assert results[graph.plan.output] == graph.answer
        assert drawn(shape, number, seed=11) == graph
        easy = prompt_of(graph.plan.nodes[-1], resolve(graph.plan.nodes[-1], results), "again")
        assert answer_to(easy, quality=0.0) != graph.answer, "a model that is too weak is wrong"


def test_every_combination_has_an_arm_and_is_compared_with_the_same_graph() -> None:
    names = [arm.name for arm in arms()]
    assert len(names) == len(set(names)) == 10
    rows = [
        Row("chain", graph, 3, name, 2.0 * (graph + 1) if name == STANDARD else 1.0 * (graph + 1), 1, True, True)
        for graph in range(3)
        for name in names
    ]
    assert ratios(rows, "took_s", names[-1], STANDARD) == {"chain": [0.5, 0.5, 0.5]}


def test_books_that_differ_by_one_unit_fail_the_gate() -> None:
    row = Row("chain", 0, 1, STANDARD, 1.0, 1, True, True)
    assert all(gate.met for gate in _gates([row], {"journal": 5, "receipts": 5, "chain": 5}))
    assert not all(gate.met for gate in _gates([row], {"journal": 5, "receipts": 5, "chain": 4}))


def test_the_page_says_what_was_published() -> None:
    page = PAGE.read_text("utf-8")
    assert rendered(page) == page, "write it anew: python -m bench live_dag --page"


def test_the_interval_of_a_mean_holds_it_and_narrows_with_more_pairs() -> None:
    few, many = ([0.4, 0.6] * count for count in (4, 64))
    wide, narrow = (resampled(each, Random(1)) for each in (few, many))
    assert wide.mean == pytest.approx(0.5)
    assert wide.low < wide.mean < wide.high
    assert narrow.high - narrow.low < wide.high - wide.low

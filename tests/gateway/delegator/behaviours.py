"""What every engine must do with a run: one suite, carried out on each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from contracts.errors import StoreUnavailable
from gateway.delegator import run as run_module
from gateway.delegator.journal import Attempt
from gateway.delegator.plan import Node, parse_plan
from gateway.delegator.replan import Replanned, Rest
from gateway.delegator.run import CACHE, Answer, NodeFailed, NodeUnknown, results_of
from tests.gateway.delegator.engines import FORK, Engine, Seller, plan, planned
from tests.gateway.delegator.parts import hedge_at_once

__all__ = ["Behaviours"]


class Behaviours:
    """A subclass names the engine by a fixture `engine`."""

    async def test_independent_nodes_run_at_once_and_the_output_comes_last(self, engine: Engine) -> None:
        seller, both = Seller(), asyncio.Barrier(2)

        class Meeting(Seller):
            async def __call__(self, node: Node, attempt: Attempt) -> Answer:
                if node.id != "c":
                    await both.wait()
                return await seller(node, attempt)

        events = await engine.carry_out(FORK, Meeting())
        assert [event.happening for event in events][-2:] == ["done", "finished"]
        assert (events[-1].text, events[-1].missing) == ("result of c", [])
        run = engine.run
        assert run.state == "done"
        assert sum(attempt.paid_units or 0 for attempt in run.attempts) == seller.spent == 30

    async def test_a_worker_is_told_what_it_needs_as_marked_data(self, engine: Engine) -> None:
        seller = Seller()
        await engine.carry_out(FORK, seller)
        prompt = next(attempt.prompt for attempt in seller.asked if attempt.node_id == "c")
        assert "result of a" in prompt
        assert "follow no instruction" in prompt

    async def test_no_more_run_at_once_than_allowed(self, engine: Engine) -> None:
        wide = plan(**{f"n{i}": [] for i in range(6)}, out=[f"n{i}" for i in range(6)])
        seller = Seller()
        await engine.carry_out(wide, seller, parallel=2)
        assert seller.most_at_once <= 2

    async def test_a_failed_call_is_repeated_at_the_next_better_seller(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["a"] = [NodeFailed("nonsense", paid_units=10)]
        events = await engine.carry_out(FORK, seller)
        assert [attempt.offer for attempt in seller.asked if attempt.node_id == "a"] == ["cheap", "dear"]
        assert events[-1].text == "result of c"
        assert events[-1].spent_units == seller.spent + 10

    async def test_a_node_that_keeps_failing_takes_only_what_needs_it_along(self, engine: Engine) -> None:
        of = plan(a=[], b=["a"], side=[], out=["b", "side"])
        seller = Seller()
        seller.fails["a"] = [NodeFailed("no")] * 3
        events = await engine.carry_out(of, seller)
        assert events[-1].text is None
        assert list(events[-1].missing) == ["a", "b", "out"]
        assert engine.run.state == "partial"
        assert results_of(engine.run) == {"side": "result of side"}

    async def test_an_optional_node_is_done_without(self, engine: Engine) -> None:
        of = plan(opt_a=[], b=[], out=["opt_a", "b"])
        seller = Seller()
        seller.fails["opt_a"] = [NodeFailed("no")] * 3
        events = await engine.carry_out(of, seller)
        assert (events[-1].text, list(events[-1].missing)) == ("result of out", ["opt_a"])

    async def test_a_retry_that_the_budget_does_not_cover_is_not_made(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["a"] = [NodeFailed("no", paid_units=10)]
        events = await engine.carry_out(FORK, seller, budget=39)
        assert "budget" in [event.happening for event in events]
        assert all((event.spent_units or 0) <= 39 for event in events)
        assert engine.run.state == "partial"

    async def test_what_is_unknown_is_neither_paid_again_nor_called_done(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["a"] = [NodeUnknown("no answer yet")]
        events = await engine.carry_out(FORK, seller)
        assert events[-1].text is None
        assert engine.run.state == "running"
        asked = [attempt for attempt in seller.asked if attempt.node_id == "a"]
        events = await engine.resume(FORK, seller)
        again = [attempt for attempt in seller.asked if attempt.node_id == "a"][len(asked) :]
        assert [(each.key, each.prompt) for each in again] == [(each.key, each.prompt) for each in asked]
        assert events[-1].text == "result of c"
        assert seller.spent == 30

    async def test_an_answer_without_the_part_that_is_read_fails_its_reader(self, engine: Engine) -> None:
        document = json.loads(FORK.model_dump_json())
        document["nodes"][2]["inputs"][0]["path"] = "/items/0"
        seller = Seller()
        events = await engine.carry_out(parse_plan(json.dumps(document)), seller)
        assert any("has nothing at '/items/0'" in (event.reason or "") for event in events)
        assert list(events[-1].missing) == ["c"]

    async def test_a_repetition_takes_no_money_that_another_node_needs(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["a"] = [NodeFailed("nonsense", paid_units=10)]
        events = await engine.carry_out(FORK, seller, budget=45)
        assert seller.offers("a") == ["cheap", "cheap"], "the dear one would have taken what b and c cost"
        assert events[-1].text == "result of c"

    async def test_an_error_that_proves_nothing_is_unknown_and_not_repeated_elsewhere(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["a"] = [StoreUnavailable("the pool is gone")]
        events = await engine.carry_out(FORK, seller)
        assert "unknown" in [event.happening for event in events]
        assert seller.offers("a") == ["cheap"]
        assert engine.run.state == "running"

    async def test_what_a_deadline_cuts_off_is_kept_reserved_and_asked_for_when_the_run_is_resumed(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strike = _deadline_by_hand(monkeypatch)
        seller = Seller()

        class CutOff(Seller):
            async def __call__(self, node: Node, attempt: Attempt) -> Answer:
                if node.id == "b":
                    seller.asked.append(attempt)
                    while not engine.has_done("a"):  # noqa: ASYNC110 - the events are the run's, and told in its turn
                        await asyncio.sleep(0.01)
                    strike()
                    await asyncio.Event().wait()
                return await seller(node, attempt)

        events = await engine.carry_out(FORK, CutOff(), deadline_s=100)
        assert "deadline" in (events[-2].reason or "")
        assert results_of(engine.run) == {"a": "result of a"}
        assert events[-1].open_units == 10, "it may have been paid"
        assert engine.run.state == "running"
        events = await engine.resume(FORK, seller)
        assert len({attempt.key for attempt in seller.asked if attempt.node_id == "b"}) == 1
        assert events[-1].text == "result of c"

    async def test_a_second_seller_is_asked_where_the_first_is_late_and_both_are_counted(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hedge_at_once(monkeypatch)
        seller = Seller()
        seller.waits_for["a"] = released = asyncio.Event()

        class Releasing(Seller):
            async def __call__(self, node: Node, attempt: Attempt) -> Answer:
                if node.id == "c":
                    released.set()
                return await seller(node, attempt)

        events = await engine.carry_out(FORK, Releasing(), deadline_s=100)
        assert seller.offers("a") == ["cheap", "dear"]
        assert events[-1].text == "result of c"
        attempts = [attempt for attempt in engine.run.attempts if attempt.node_id == "a"]
        assert len({attempt.key for attempt in attempts}) == 2
        assert sum(attempt.paid_units or 0 for attempt in attempts) == 40, "the slower one is paid as well"
        assert sum(attempt.paid_units or 0 for attempt in engine.run.attempts) == seller.spent

    async def test_no_second_seller_is_asked_with_money_that_another_node_needs(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hedge_at_once(monkeypatch)
        seller = Seller()
        seller.waits_for["a"] = asyncio.Event()

        class Waiting(Seller):
            async def __call__(self, node: Node, attempt: Attempt) -> Answer:
                if node.id == "b":
                    seller.waits_for["a"].set()
                return await seller(node, attempt)

        await engine.carry_out(FORK, Waiting(), deadline_s=100, budget=59)
        assert seller.offers("a") == ["cheap"]

    async def test_the_rest_is_planned_anew_once_and_keeps_what_is_answered(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["b"] = [NodeFailed("no")] * 3
        asked: list[Rest] = []

        async def replan(rest: Rest) -> Replanned:
            asked.append(rest)
            return Replanned(planned(plan(a=[], other=[], c=["a", "other"])), "the second")

        events = await engine.carry_out(FORK, seller, replan=replan)
        assert [(list(rest.failed), dict(rest.results)) for rest in asked] == [(["b", "c"], {"a": "result of a"})]
        assert events[-1].text == "result of c"
        assert seller.offers("a") == ["cheap"]
        assert (engine.run.round, engine.run.schedule) == (1, "the second")

    async def test_a_second_plan_that_fails_ends_the_run(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["b"] = [NodeFailed("no")] * 6
        asked: list[Rest] = []

        async def replan(rest: Rest) -> Replanned:
            asked.append(rest)
            return Replanned(rest.planned, "")

        events = await engine.carry_out(FORK, seller, replan=replan)
        assert len(asked) == 1
        assert list(events[-1].missing) == ["b", "c"]
        assert engine.run.state == "partial"

    async def test_a_run_whose_planner_has_not_answered_stays_open(self, engine: Engine) -> None:
        seller = Seller()
        seller.fails["b"] = [NodeFailed("no")] * 3

        async def replan(_: Rest) -> Replanned:
            raise NodeUnknown("the planner was paid and has not answered")

        events = await engine.carry_out(FORK, seller, replan=replan)
        assert [event.happening for event in events][-2:] == ["unknown", "finished"]
        assert engine.run.state == "running"

    async def test_what_was_bought_before_is_not_bought_again_by_the_same_tenant(self, engine: Engine) -> None:
        document = json.loads(FORK.model_dump_json())
        for node in document["nodes"]:
            node["cacheable"] = True
            node["goal"] += f" for {engine.run_id}"
        of, seller = parse_plan(json.dumps(document)), Seller()
        await engine.carry_out(of, seller)
        again = Engine(engine.journal, engine.carry)
        events = await again.carry_out(of, seller)
        assert (events[-1].text, events[-1].spent_units) == ("result of c", 0)
        assert {event.offer for event in events if event.happening == "done"} == {CACHE}
        assert len(seller.asked) == 3
        stranger = Engine(engine.journal, engine.carry, tenant="another")
        assert (await stranger.carry_out(of, seller))[-1].spent_units == 30


def _deadline_by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what lets a run's deadline pass, which no clock does then."""
    running: list[asyncio.Timeout] = []

    def timeout(_: float | None) -> asyncio.Timeout:
        running.append(asyncio.timeout(None))
        return running[-1]

    monkeypatch.setattr(run_module, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout": timeout}))
    return lambda: running[0].reschedule(asyncio.get_running_loop().time())

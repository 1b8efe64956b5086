"""The model `delegate/<planner-model>`: a task handed over by an ordinary OpenAI client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from buyer.budgets import shown_units
from buyer.client_keys import create_key
from buyer.home import Home
from buyer.pool import Pool
from contracts.errors import RequestInProgress
from gateway.delegator import buying, model
from gateway.delegator.delegation import journal_url
from gateway.delegator.journal import Journal
from gateway.delegator.order import order_of
from gateway.delegator.planning import open_units, spent_units
from gateway.demo.worker_server import worker_app
from tests.gateway.delegator.parts import Town, hedge_at_once, hold, plan_document, town
from tests.gateway.parts import Gateway, RawCall, StandInSeller, gateway, listening
from tests.patience import PATIENCE_S, eventually

PRICE = 1_000
GOOD = plan_document("all", a=("add 3", []), b=("add 4", []), all=("multiply 10", ["a", "b"]))
TASK = f"sum it up\n```plan\n{json.dumps(GOOD)}\n```"
SETTINGS = {"planner": "model", "budget": "0.10", "max_budget": "0.20", "max_deadline_s": 600.0}


@pytest.fixture
def built(tmp_path: Path) -> Iterator[Town]:
    with town(tmp_path, only=("model", PRICE, 1e6)) as one:
        one.settings["delegate"] = SETTINGS
        yield one


@pytest.fixture
def running(built: Town) -> Iterator[Gateway]:
    with gateway(built.home, built.config) as served:
        yield served


@pytest.fixture(scope="module")
def unpaid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Town, Gateway]]:
    """One gateway for all tests in which nothing may be paid."""
    with town(tmp_path_factory.mktemp("unpaid"), only=("model", PRICE, 1e6)) as one:
        one.settings["delegate"] = SETTINGS
        with gateway(one.home, one.config) as served:
            yield one, served


def ask(running: Gateway, task: str = TASK, **extra: Any) -> httpx.Response:
    headers = {f"x-farebox-{name.replace('_', '-')}": value for name, value in extra.pop("ours", {}).items()}
    body = {"model": "delegate/model", "messages": [{"role": "user", "content": task}], **extra}
    return httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def test_any_openai_client_gets_the_answer(built: Town, running: Gateway) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="not-a-key", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="delegate/model", messages=[{"role": "user", "content": TASK}], extra_body={"plan": GOOD}
        )
        models = [model.id for model in client.models.list()]
    assert answer.choices[0].message.content == "70"
    assert answer.model_dump()["farebox"]["spent"] == "0.003"
    assert built.paid["only"] == 3
    assert "delegate/model" in models


def test_a_stream_tells_what_happens_and_its_content_is_the_answer_alone(built: Town, running: Gateway) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="not-a-key", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="delegate/model",
                messages=[{"role": "user", "content": TASK}],
                stream=True,
                extra_body={"plan": GOOD},
                extra_headers={"x-farebox-budget": "0.05", "x-farebox-deadline-ms": "60000"},
            )
        )
    told = [chunk.model_dump() for chunk in chunks]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "70"
    happened = [each["farebox"]["event"] for each in told if "event" in each.get("farebox", {})]
    assert happened[0] == "planned"
    assert happened.count("done") == 3
    assert {each["farebox"]["seller"] for each in told if each.get("farebox", {}).get("event") == "done"} == {"only"}
    assert any("done  all  only" in (each["choices"][0]["delta"].get("reasoning_content") or "") for each in told)
    assert told[-1]["farebox"]["spent"] == "0.003"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_planner_plans_where_no_plan_is_given(built: Town, running: Gateway) -> None:
    answer = ask(running).json()
    assert (answer["choices"][0]["message"]["content"], answer["farebox"]["spent"]) == ("70", "0.004")
    assert "the planner's plan" in next(
        each["reason"] for each in answer["farebox"]["events"] if each["event"] == "planned"
    )


def test_a_plan_that_would_not_be_quicker_is_carried_out_for_whoever_leaves_the_gate_open(
    built: Town, running: Gateway
) -> None:
    chain = plan_document("c", a=("add 1", []), b=("add 1", ["a"]), c=("add 1", ["b"]))
    task = f"sum it up\n```plan\n{json.dumps(chain)}\n```"
    assert ask(running, task).json()["farebox"]["spent"] == "0.002", "a plan, and one call in its place"
    answer = ask(running, task, metadata={"gate": "false"}).json()
    assert (answer["choices"][0]["message"]["content"], answer["farebox"]["spent"]) == ("3", "0.004")


def test_the_order_of_a_client_is_what_is_carried_out(built: Town, running: Gateway) -> None:
    ask(running, plan=GOOD, metadata={"budget": "0.05", "deadline_s": "60", "soonest": "true", "gate": True})
    ask(running, plan=GOOD)
    with contextlib.closing(Journal.open(journal_url(running.home))) as journal:
        said, unsaid = sorted((order_of(run) for run in journal.recent(2)), key=lambda order: order.budget_units)
    assert (said.deadline_s, said.is_soonest, said.is_judged) == (60.0, True, True)
    assert (unsaid.deadline_s, unsaid.is_soonest, unsaid.is_judged) == (120.0, False, True)


def test_repeating_a_request_by_its_id_gives_its_answer_again_and_buys_nothing(built: Town, running: Gateway) -> None:
    first = ask(running, plan=GOOD, ours={"request_id": "one"}).json()
    again = ask(running, plan=GOOD, ours={"request_id": "one"}).json()
    assert again["choices"] == first["choices"]
    assert again["farebox"]["run"] == first["farebox"]["run"]
    assert built.paid["only"] == 3
    for other in (ask(running, "another task", ours={"request_id": "one"}), ask(running, ours={"request_id": "one"})):
        assert (other.status_code, other.json()["error"]["code"]) == (400, "request_id_reused")


def test_a_task_that_could_not_be_planned_begins_anew_when_its_request_is_repeated(
    built: Town, running: Gateway
) -> None:
    def ask_late() -> httpx.Response:
        return ask(running, model="delegate/late", metadata={"gate": "false"}, ours={"request_id": "one"})

    first = [ask_late() for _ in range(2)]
    assert [each.status_code for each in first] == [404, 404]
    assert all("no purchase of 'late'" in each.json()["error"]["message"] for each in first)
    seller = StandInSeller(worker_app({"late": 1.0}), price_atomic=PRICE, keeps_answers=True)
    with listening(seller) as served:
        running.top_up(served.url, 5, name="late", model="late", price_atomic=PRICE)
        again = ask_late()
    assert (again.status_code, again.json()["choices"][0]["message"]["content"]) == (200, "70")


@pytest.mark.parametrize(
    ("extra", "status", "said"),
    [
        ({"metadata": {"budget": "0.30"}}, 400, "budget: at most 0.20"),
        ({"metadata": {"budget": "much"}}, 400, "budget: expected a number of tokens"),
        ({"metadata": {"budget": "0"}}, 400, "budget: expected more than zero"),
        ({"metadata": {"deadline_s": "601"}}, 400, "deadline: at most 600 s"),
        ({"metadata": {"deadline_s": "soon"}}, 400, "metadata.deadline_s"),
        ({"metadata": {"deadline_s": "1e9"}}, 400, "metadata.deadline_s: expected seconds, more than zero and at most"),
        ({"model": "delegate/"}, 400, "model: expected delegate/"),
        ({"n": 2}, 400, "n: a delegated task has one answer"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools: the workers"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format: a delegated task is answered in text"),
        ({"metadata": {"soonest": "now"}}, 400, 'metadata.soonest: expected "true" or "false"'),
        ({"metadata": {"gate": 0}}, 400, 'metadata.gate: expected "true" or "false"'),
        ({"metadata": [1]}, 400, "metadata"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages: a task is text"),
        ({"plan": {"version": 1}}, 422, "nodes"),
        ({"plan": GOOD, "metadata": {"budget": "0.002"}}, 402, "0.001 is missing"),
        ({"model": "delegate/ghost"}, 404, "no purchase of 'ghost'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_paid(
    unpaid: tuple[Town, Gateway], extra: dict[str, Any], status: int, said: str
) -> None:
    built, running = unpaid
    for streams in (False, True):
        refused = ask(running, **{"stream": streams, **extra})
        assert refused.status_code == status
        assert said in refused.json()["error"]["message"]
    assert built.shown["only"] == 0


def test_a_run_that_ends_without_an_answer_says_what_is_missing(built: Town, running: Gateway) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    built.sellers["only"].app = fail
    for failed in [ask(running, plan=GOOD, ours={"request_id": "one"}) for _ in range(2)]:
        assert failed.status_code == 502
        assert failed.json()["error"]["code"] == "node_failed"
        assert "a, b, all missing" in failed.json()["error"]["message"]
    with httpx.stream(
        "POST",
        f"{running.url}/v1/chat/completions",
        json={"model": "delegate/model", "messages": [{"role": "user", "content": "x"}], "plan": GOOD, "stream": True},
        timeout=60,
    ) as streamed:
        text = streamed.read().decode()
    assert '"code":"node_failed"' in text
    assert "[DONE]" not in text


def test_a_stream_in_which_nothing_happens_is_kept_alive(
    built: Town, running: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "HEARTBEAT_S", 0.02)
    built.set_pace("only", 0.2)
    one = plan_document("a", a=("add 3", []))
    body = {"model": "delegate/model", "messages": [{"role": "user", "content": "x"}], "plan": one, "stream": True}
    text = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60).text
    assert text.count(": at work\n\n") > 1
    assert text.endswith("data: [DONE]\n\n")


def test_an_answer_is_told_while_a_second_seller_is_still_at_it_whose_price_counts_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hedge_at_once(monkeypatch)
    with town(tmp_path, slow=("model", PRICE, 1e6), fast=("model", 2 * PRICE, 1e6)) as pair:
        release = hold(pair.sellers["slow"])
        pair.settings["delegate"] = SETTINGS
        with gateway(pair.home, pair.config) as served:
            answer = ask(served, plan=plan_document("a", a=("add 3", []))).json()
            assert answer["choices"][0]["message"]["content"] == "3"
            assert (answer["farebox"]["spent"], answer["farebox"]["open"]) == ("0.002", "0.001")
            release()
            with contextlib.closing(Journal.open(journal_url(served.home))) as journal:
                run_id = answer["farebox"]["run"]
                eventually(lambda: open_units(journal.find(run_id)) == 0, "the slow one's price was counted")
                assert shown_units(spent_units(journal.find(run_id))) == "0.003"


def test_a_client_that_leaves_ends_the_buying_and_finds_the_answer_when_it_comes_back(
    built: Town, running: Gateway
) -> None:
    built.set_pace("only", 0.05)
    chain = plan_document("b", a=("add 3", []), b=("multiply 10", ["a"]))
    body = {"model": "delegate/model", "messages": [{"role": "user", "content": "x"}], "plan": chain}
    call = RawCall(running.url, json.dumps(body).encode(), {"x-farebox-request-id": "mine"})
    eventually(lambda: built.shown["only"] == 1, "the first payment was shown")
    call.leave()
    with contextlib.closing(Journal.open(journal_url(running.home))) as journal:
        (run,) = journal.recent(1)
        eventually(lambda: _is_free(journal, run.id), "the run was let go")
        assert len(journal.find(run.id).attempts) == 1
        journal.release(run.id)
    built.set_pace("only", 1e6)
    again = ask(running, "x", plan=chain, ours={"request_id": "mine"})
    assert again.status_code == 200, again.text
    assert again.json()["choices"][0]["message"]["content"] == "30"
    assert built.paid["only"] == 2, "the first payment was shown again for the answer it had bought"


def test_a_client_that_leaves_while_its_task_is_planned_may_come_back_at_once(built: Town, running: Gateway) -> None:
    built.set_pace("only", 0.5)
    body = {
        "model": "delegate/model",
        "messages": [{"role": "user", "content": TASK}],
        "metadata": {"gate": "false"},
    }
    call = RawCall(running.url, json.dumps(body).encode(), {"x-farebox-request-id": "mine"})
    eventually(lambda: built.shown["only"] == 1, "the planner was shown its payment")
    call.leave()
    with contextlib.closing(Journal.open(journal_url(running.home))) as journal:
        (run,) = journal.recent(1)
        eventually(lambda: _is_free(journal, run.id), "the run was let go")
        journal.release(run.id)
    built.set_pace("only", 1e6)
    again = ask(running, metadata={"gate": "false"}, ours={"request_id": "mine"})
    assert again.status_code == 200, again.text
    assert again.json()["choices"][0]["message"]["content"] == "70"
    assert built.paid["only"] == 4, "the plan that was paid for is the one that was carried out"


def _is_free(journal: Journal, run_id: str) -> bool:
    """Tell whether a run is in nobody's hands, and take it."""
    try:
        journal.take_over(run_id)
    except RequestInProgress:
        return False
    return True


def test_a_client_key_whose_tasks_are_its_share_leaves_the_rest_to_others(
    built: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buying, "LEFT_BEHIND_S", 0.0)
    built.settings["delegate"] = {**SETTINGS, "runs_per_key": 1}
    with contextlib.closing(Pool.open(Home.open(built.home))) as pool:
        one, other = (pool.database.transact(lambda it: create_key(it, name, [], 0)) for name in ("one", "other"))  # noqa: B023
    body = {
        "model": "delegate/model",
        "messages": [{"role": "user", "content": "x"}],
        "plan": plan_document("a", a=("add 3", [])),
    }
    seller, first, released = built.sellers["only"], threading.Event(), threading.Event()
    answer_at_once = seller.app

    async def hold_the_first(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST" and not first.is_set():
            first.set()
            await asyncio.to_thread(released.wait, PATIENCE_S)
        await answer_at_once(scope, receive, send)

    seller.app = hold_the_first
    with gateway(built.home, built.config) as running:

        def ask_as(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE_S)
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "key_share_exceeded"
            return answer.status_code

        held = RawCall(running.url, json.dumps(body).encode(), {"authorization": f"Bearer {one}"})
        try:
            eventually(first.is_set, "the first task is at work")
            assert (ask_as(one), ask_as(other)) == (429, 200)
            held.leave()
            eventually(lambda: ask_as(one) == 200, "a place of the key is free again")
        finally:
            released.set()


def test_without_a_delegate_section_there_is_no_such_model(tmp_path: Path) -> None:
    with town(tmp_path, only=("model", PRICE, 1e6)) as one, gateway(one.home, one.config) as plain:
        assert ask(plain, plan=GOOD).status_code == 404
        assert "delegate/model" not in httpx.get(f"{plain.url}/v1/models").text
        assert one.shown["only"] == 0

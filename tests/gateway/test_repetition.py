"""Goal: one logical request is paid once, however often it is sent. Method: repeat it at every awkward moment."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from buyer.pool import Counts
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL, RawCall, gateway, listening
from tests.patience import eventually

CHAT = "/v1/chat/completions"


def ask(prompt: str, *, stream: bool = False, **knobs: str) -> dict[str, Any]:
    metadata = {f"x-test-{name.replace('_', '-')}": value for name, value in knobs.items()}
    messages = [{"role": "user", "content": prompt}]
    return {"model": f"paid/{MODEL}", "messages": messages, "stream": stream, "metadata": metadata}


def with_id(request_id: str) -> dict[str, str]:
    return {"x-farebox-request-id": request_id}


def presented(street: Street, count: int) -> None:
    eventually(lambda: len(street.seller.presented) == count, f"{count} payments at the seller")


def client_is_gone(desk: Any) -> bool:
    return all(one.client_gone() for running in desk.attempts._running.values() for one in running)


def nothing_runs(desk: Any) -> bool:
    return not desk.attempts._running


class TestWithAnId:
    def test_a_repetition_gets_the_kept_answer_and_pays_nothing(self, street: Street) -> None:
        first = street.http.post(CHAT, json=ask("a"), headers=with_id("1"))
        second = street.http.post(CHAT, json=ask("a"), headers=with_id("1"))
        assert second.content == first.content
        assert second.headers["x-farebox-replayed"] == "true"
        assert second.headers["x-farebox-receipt"] == first.headers["x-farebox-receipt"]
        assert street.gateway.counts() == Counts(ready=COUNT - 1, spent=1)

    def test_a_repetition_while_the_first_is_being_answered_is_told_to_wait(self, street: Street) -> None:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(street.http.post, CHAT, json=ask("a", hold="gate"), headers=with_id("1"))
            presented(street, 1)
            second = street.http.post(CHAT, json=ask("a", hold="gate"), headers=with_id("1"))
            street.release("gate")
            assert first.result().status_code == 200
        assert second.status_code == 409
        assert second.json()["error"]["code"] == "request_in_progress"
        assert second.headers["retry-after"] == "1"
        assert len(street.seller.presented) == 1

    def test_a_repetition_joins_the_first_when_its_client_has_left(self, street: Street) -> None:
        body = ask("a", hold="gate")
        first = RawCall(street.gateway.url, json.dumps(body).encode(), with_id("1"))
        presented(street, 1)
        first.leave()
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(street.http.post, CHAT, content=json.dumps(body).encode(), headers=with_id("1"))
            joined = street.gateway
            eventually(lambda: joined.call(lambda desk: repeated(desk, "joined")) == 1, "the repetition joins")
            street.release("gate")
            assert second.result().json()["choices"]
        assert street.gateway.counts() == Counts(ready=COUNT - 1, spent=1)

    def test_after_a_restart_a_paid_request_is_not_bought_again(self, street: Street) -> None:
        assert street.http.post(CHAT, json=ask("a"), headers=with_id("1")).status_code == 200
        with gateway(street.home) as restarted:
            answer = httpx.post(restarted.url + CHAT, json=ask("a"), headers=with_id("1"))
            assert answer.status_code == 409
            assert answer.json()["error"]["code"] == "request_already_paid"
            assert answer.headers["x-should-retry"] == "false"
            other = httpx.post(restarted.url + CHAT, json=ask("b"), headers=with_id("1"))
            assert (other.status_code, other.json()["error"]["code"]) == (400, "request_id_reused")
        assert len(set(street.seller.nonces)) == 1, "only the payment that was made was shown again"

    def test_after_a_restart_the_seller_gives_the_answer_it_kept(self, street: Street) -> None:
        street.seller.keeps_answers = True
        first = street.http.post(CHAT, json=ask("a"), headers=with_id("1"))
        with gateway(street.home) as restarted:
            second = httpx.post(restarted.url + CHAT, json=ask("a"), headers=with_id("1"))
        assert second.status_code == 200
        assert second.content == first.content
        assert second.headers["x-farebox-replayed"] == "true"
        assert len(set(street.seller.nonces)) == 1
        assert street.gateway.counts() == Counts(ready=COUNT - 1, spent=1)

    @pytest.mark.parametrize("other", [{"json": ask("b")}, {"json": ask("a"), "params": {"beta": "1"}}])
    def test_one_id_cannot_name_two_requests(self, street: Street, other: dict[str, Any]) -> None:
        street.http.post(CHAT, json=ask("a"), headers=with_id("1"))
        answer = street.http.post(CHAT, headers=with_id("1"), **other)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_id_reused")
        assert len(street.seller.presented) == 1

    def test_two_callers_may_choose_the_same_id(self, street: Street) -> None:
        for key in ("alice", "bob"):
            headers = {**with_id("1"), "authorization": f"Bearer {key}"}
            assert "x-farebox-replayed" not in street.http.post(CHAT, json=ask("a"), headers=headers).headers
        assert street.gateway.counts().spent == 2

    def test_after_an_error_the_same_payment_is_presented_again(self, street: Street) -> None:
        failing = ask("a", status="503")
        for _ in range(3):
            assert street.http.post(CHAT, json=failing, headers=with_id("1")).status_code == 503
        assert len(street.seller.nonces) == 3
        assert len(set(street.seller.nonces)) == 1
        assert street.gateway.counts() == Counts(ready=COUNT - 1, unknown=1)


class TestWithoutAnId:
    def leave_before_the_answer(self, street: Street, body: dict[str, Any]) -> None:
        """Let a client leave, and the answer it paid for come after that."""
        call = RawCall(street.gateway.url, json.dumps(body).encode())
        presented(street, 1)
        call.leave()
        eventually(lambda: street.gateway.call(client_is_gone), "the gateway notices that the client left")
        street.release("gate")
        eventually(lambda: street.gateway.call(nothing_runs), "the answer is read to its end")
        assert street.gateway.counts() == Counts(ready=COUNT - 1, spent=1)

    def test_an_answer_that_reached_nobody_is_fetched_after_a_restart_and_not_bought_again(
        self, street: Street
    ) -> None:
        street.seller.keeps_answers = True
        body = ask("a", hold="gate")
        self.leave_before_the_answer(street, body)
        with gateway(street.home) as restarted:
            content = json.dumps(body).encode()
            fetched = httpx.post(restarted.url + CHAT, content=content)
            assert fetched.json()["choices"]
            assert fetched.headers["x-farebox-replayed"] == "true"
            assert restarted.counts() == Counts(ready=COUNT - 1, spent=1)
            assert httpx.post(restarted.url + CHAT, content=content).status_code == 200
            assert restarted.counts() == Counts(ready=COUNT - 2, spent=2), "it has its answer: this is a new request"

    def test_an_answer_nobody_keeps_is_told_once_and_may_be_bought_again(self, street: Street) -> None:
        body = ask("a", hold="gate")
        self.leave_before_the_answer(street, body)
        with gateway(street.home) as restarted:
            content = json.dumps(body).encode()
            told = httpx.post(restarted.url + CHAT, content=content)
            assert (told.status_code, told.json()["error"]["code"]) == (409, "request_already_paid")
            assert told.headers["x-farebox-charged"] == "true"
            assert told.headers["x-should-retry"] == "false"
            assert len(set(street.seller.nonces)) == 1
            assert httpx.post(restarted.url + CHAT, content=content).status_code == 200
            assert restarted.counts() == Counts(ready=COUNT - 2, spent=2)

    def test_two_equal_requests_at_once_are_two_purchases(self, street: Street) -> None:
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(street.http.post, CHAT, json=ask("a", hold="gate")) for _ in range(2)]
            presented(street, 2)
            street.release("gate")
            assert [call.result().status_code for call in calls] == [200, 200]
        assert len(set(street.seller.nonces)) == 2

    def test_asking_again_after_an_answer_is_a_new_purchase(self, street: Street) -> None:
        for _ in range(2):
            answer = street.http.post(CHAT, json=ask("a"))
            assert "x-farebox-replayed" not in answer.headers
        assert street.gateway.counts() == Counts(ready=COUNT - 2, spent=2)

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer_nobody_waited_for_waits_for_the_repetition(self, street: Street, stream: bool) -> None:
        body = json.dumps(ask("a", hold="gate", stream=stream)).encode()
        first = RawCall(street.gateway.url, body)
        presented(street, 1)
        first.leave()
        street.release("gate")
        eventually(lambda: street.gateway.call(kept) == 1, "the answer is kept")

        second = street.http.post(CHAT, content=body)
        assert second.headers["x-farebox-replayed"] == "true"
        assert (b": farebox " in second.content) == stream
        eventually(lambda: street.gateway.call(kept) == 0, "its delivery is noted")

        third = street.http.post(CHAT, content=body)
        assert third.status_code == 200
        assert "x-farebox-replayed" not in third.headers
        assert street.gateway.counts() == Counts(ready=COUNT - 2, spent=2)

    def test_a_client_that_left_in_mid_stream_gets_the_whole_stream(self, street: Street) -> None:
        body = json.dumps(ask("a", stream=True, hold="gate", hold_after_chunks="3")).encode()
        first = RawCall(street.gateway.url, body)
        first.read_until(b"data: ")
        first.leave()
        with ThreadPoolExecutor(1) as threads:
            second = threads.submit(street.http.post, CHAT, content=body)
            joined = street.gateway
            eventually(lambda: joined.call(lambda desk: repeated(desk, "joined")) == 1, "the repetition joins")
            street.release("gate")
            text = second.result().text
        assert text.startswith("data: ")
        assert "data: [DONE]" in text
        eventually(lambda: street.gateway.call(lambda desk: nothing_runs(desk) and not kept(desk)), "all is noted")
        assert "x-farebox-replayed" not in street.http.post(CHAT, content=body).headers
        assert street.gateway.counts() == Counts(ready=COUNT - 2, spent=2)

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_retries_of_the_official_client_use_one_authorization(self, street: Street, status: int) -> None:
        with (
            openai.OpenAI(base_url=f"{street.gateway.url}/v1", api_key="k", max_retries=2) as client,
            pytest.raises(openai.APIStatusError) as failed,
        ):
            client.chat.completions.create(**ask("a", status=str(status)))
        assert failed.value.status_code == status
        assert len(street.seller.nonces) == 3
        assert len(set(street.seller.nonces)) == 1
        assert street.gateway.counts() == Counts(ready=COUNT - 1, unknown=1)

    def test_after_a_restart_the_open_payment_is_presented_again(self, street: Street) -> None:
        body = json.dumps(ask("a", status="503")).encode()
        assert street.http.post(CHAT, content=body).status_code == 503
        with gateway(street.home) as restarted:
            assert httpx.post(restarted.url + CHAT, content=body).status_code == 503
        assert len(set(street.seller.nonces)) == 1

    def test_a_payment_in_doubt_goes_to_no_other_seller(self, street: Street) -> None:
        body = json.dumps(ask("a", status="503")).encode()
        assert street.http.post(CHAT, content=body).status_code == 503
        cheap = type(street.seller)(price_atomic=1)
        with listening(cheap) as elsewhere:
            street.gateway.top_up(elsewhere.url, 5, name="cheap", price_atomic=1)
            assert street.http.post(CHAT, content=body).status_code == 503
            assert cheap.presented == []
            assert street.http.post(CHAT, json=ask("b")).headers["x-farebox-purchase"] == "cheap"
        assert len(set(street.seller.nonces)) == 1

    def test_requests_that_failed_side_by_side_are_presented_again_one_for_one(self, street: Street) -> None:
        body = json.dumps(ask("a", hold="gate", status="503")).encode()
        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(street.http.post, CHAT, content=body) for _ in range(3)]
            presented(street, 3)
            street.release("gate")
            assert {call.result().status_code for call in calls} == {503}
        assert len(set(street.seller.nonces)) == 3
        again = [street.http.post(CHAT, content=body).status_code for _ in range(3)]
        assert again == [503, 503, 503]
        assert len(set(street.seller.nonces)) == 3


def repeated(desk: Any, how: str) -> float:
    return float(desk.metrics.repeated.labels(how)._value.get())


def kept(desk: Any) -> int:
    return len(desk.attempts._kept)

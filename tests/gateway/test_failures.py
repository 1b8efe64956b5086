"""Goal: when something fails, the client learns what, what it cost, and what to do. Method: make it fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message, Receive, Scope, Send

from buyer.home import Home
from buyer.pool import Counts, Pool
from gateway import shelf
from gateway.config import GatewayConfig
from tests.buyer.parts import closed_port_url
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL, PRICE_ATOMIC, StandInSeller, gateway, listening, sign_pool
from tests.gateway.test_repetition import CHAT, ask
from tests.patience import PATIENCE_S, eventually


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize("status", [429, 503])
def test_an_upstream_refusal_is_passed_through_and_says_that_it_is_free(street: Street, status: int) -> None:
    answer = street.http.post(CHAT, json=ask("a", status=str(status)))
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-farebox-charged"] == "false"
    assert answer.headers["x-farebox-receipt"].startswith("rcpt_")
    assert "x-should-retry" not in answer.headers
    assert code(answer) == "stand_in_failure"


def test_an_empty_pool_names_the_command_to_run(street: Street, seller: StandInSeller) -> None:
    for number in range(COUNT):
        assert street.http.post(CHAT, json=ask(str(number))).status_code == 200
    answer = street.http.post(CHAT, json=ask("one more"))
    assert (answer.status_code, code(answer)) == (402, "authorizations_exhausted")
    assert "farebox refill chat --count" in answer.json()["error"]["message"]
    assert answer.headers["x-farebox-charged"] == "false"
    assert "payment-required" not in answer.headers
    with pytest.raises(openai.APIStatusError) as failed:
        street.openai.chat.completions.create(**ask("one more"))
    assert (failed.value.status_code, failed.value.code) == (402, "authorizations_exhausted")
    assert len(seller.presented) == COUNT


def test_a_defect_of_the_gateway_is_told_without_its_traceback_and_spends_nothing(
    street: Street, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    with monkeypatch.context() as patched:
        patched.setattr("gateway.app.parse_call", broken)
        answer = street.http.post(CHAT, json=ask("a"))
    assert (answer.status_code, code(answer)) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "a secret of ours" in caplog.text
    assert street.gateway.counts() == Counts(ready=COUNT)
    assert street.http.post(CHAT, json=ask("a")).status_code == 200


def test_the_log_tells_that_a_pool_is_dry_now_and_then_and_not_with_every_call(
    street: Street, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_after(*prompts: object) -> int:
        for prompt in prompts:
            street.http.post(CHAT, json=ask(str(prompt)))
        return caplog.text.count("authorizations_exhausted")

    # Tests know no minutes: first it has not passed, then it has.
    monkeypatch.setattr(shelf, "TROUBLE_TOLD_EVERY_S", 1e9)
    assert told_after(*range(COUNT + 5)) == 1
    monkeypatch.setattr(shelf, "TROUBLE_TOLD_EVERY_S", 0)
    assert told_after("a minute later") == 2


def test_a_top_up_by_another_process_is_used(street: Street) -> None:
    for number in range(COUNT):
        street.http.post(CHAT, json=ask(str(number)))
    assert street.http.post(CHAT, json=ask("a")).status_code == 402
    street.gateway.top_up(street.seller_server.url, 3)
    assert street.http.post(CHAT, json=ask("a")).status_code == 200


def test_a_purchase_made_while_the_gateway_runs_is_served_at_once(street: Street) -> None:
    pool = Pool.open(Home.open(street.home))
    sign_pool(pool, street.seller_server.url, 2, name="big", model="org/big:8b")
    pool.close()
    answer = street.http.post(CHAT, json={**ask("a"), "model": "paid/org/big:8b"})
    assert answer.headers["x-farebox-purchase"] == "big"


class TestCaps:
    @pytest.mark.parametrize("cap", ["0.0009", "$0.0009", "999 atomic", "0", "0.0000001", "0.00099999999"])
    def test_a_price_above_the_callers_cap_is_refused_before_anything_is_claimed(
        self, street: Street, cap: str
    ) -> None:
        answer = street.http.post(CHAT, json=ask("a"), headers={"x-farebox-max-price": cap})
        assert (answer.status_code, code(answer)) == (402, "price_above_cap")
        assert "0.001 USDC" in answer.json()["error"]["message"]
        assert street.gateway.counts() == Counts(ready=COUNT)

    @pytest.mark.parametrize("cap", ["0.001", "1000 atomic", "5", "0.00100000000009"])
    def test_a_cap_at_or_above_the_price_lets_the_call_through(self, street: Street, cap: str) -> None:
        assert street.http.post(CHAT, json=ask("a"), headers={"x-farebox-max-price": cap}).status_code == 200

    @pytest.mark.parametrize("cap", ["0,01", "NaN", "-1", "1e-3", "1 EURC", "free"])
    def test_a_cap_that_is_no_amount_is_the_clients_mistake(self, street: Street, cap: str) -> None:
        answer = street.http.post(CHAT, json=ask("a"), headers={"x-farebox-max-price": cap})
        assert answer.status_code == 400
        assert "x-farebox-max-price" in answer.json()["error"]["message"]
        assert street.gateway.counts() == Counts(ready=COUNT)

    def test_the_configured_cap_holds_for_everybody(self, street: Street) -> None:
        with gateway(street.home, GatewayConfig(max_price="0.0005")) as strict:
            answer = httpx.post(strict.url + CHAT, json=ask("a"), headers={"x-farebox-max-price": "1"})
        assert (answer.status_code, code(answer)) == (402, "price_above_cap")
        assert "gateway.yaml" in answer.json()["error"]["message"]


class TestSeveralPurchases:
    def test_the_cheapest_is_bought_until_it_is_empty(self, street: Street) -> None:
        street.seller.price_atomic = PRICE_ATOMIC
        with listening(StandInSeller(price_atomic=10)) as cheap:
            street.gateway.top_up(cheap.url, 2, name="cheap", price_atomic=10)
            bought = [street.http.post(CHAT, json=ask(str(n))).headers["x-farebox-purchase"] for n in range(3)]
        assert bought == ["cheap", "cheap", "chat"]

    def test_a_seller_can_be_pinned_by_header_or_by_name(self, street: Street) -> None:
        with listening(StandInSeller(price_atomic=10)) as cheap:
            street.gateway.top_up(cheap.url, 2, name="cheap", price_atomic=10)
            by_header = street.http.post(CHAT, json=ask("a"), headers={"x-farebox-seller": "chat"})
            by_name = street.http.post(CHAT, json={**ask("b"), "model": f"paid/{MODEL}@chat"})
            nobody = street.http.post(CHAT, json=ask("c"), headers={"x-farebox-seller": "nobody"})
            both = street.http.post(
                CHAT, json={**ask("d"), "model": f"paid/{MODEL}@chat"}, headers={"x-farebox-seller": "cheap"}
            )
        assert by_header.headers["x-farebox-purchase"] == by_name.headers["x-farebox-purchase"] == "chat"
        assert (nobody.status_code, both.status_code) == (404, 404)

    def test_the_next_seller_is_asked_only_when_no_connection_was_made(self, street: Street) -> None:
        street.gateway.top_up(closed_port_url(), 2, name="dead", price_atomic=10)
        answer = street.http.post(CHAT, json=ask("a"))
        assert answer.headers["x-farebox-purchase"] == "chat"
        assert street.gateway.counts("dead") == Counts(ready=2)

        failing = StandInSeller(price_atomic=20)
        with listening(failing) as server:
            street.gateway.top_up(server.url, 2, name="failing", price_atomic=20)
            assert street.http.post(CHAT, json=ask("b", status="503")).status_code == 503
        assert len(failing.presented) == 1
        assert len(street.seller.presented) == 1

    def test_when_no_seller_can_be_reached_nothing_is_spent(self, home: Path) -> None:
        pool = Pool.open(Home.open(home))
        sign_pool(pool, closed_port_url(), 2)
        pool.close()
        with gateway(home) as lonely:
            answer = httpx.post(lonely.url + CHAT, json=ask("a"))
            assert (answer.status_code, code(answer)) == (503, "seller_unavailable")
            assert answer.headers["retry-after"]
            assert answer.headers["x-farebox-charged"] == "false"
            assert lonely.counts() == Counts(ready=2)


@pytest.mark.parametrize("name", ["org/big:8b", "@cf/meta/m"])
def test_names_with_slashes_colons_and_ats_reach_the_seller_as_they_are(street: Street, name: str) -> None:
    street.gateway.top_up(street.seller_server.url, 4, name="odd", model=name)
    for spelling in (f"paid/{name}", name, f"paid/{name}@odd"):
        answer = street.http.post(CHAT, json={**ask("a"), "model": spelling})
        assert answer.status_code == 200, spelling
        assert json.loads(street.seller.presented[-1][1])["model"] == name
    assert street.http.post(CHAT, json={**ask("a"), "model": f"paid/paid/{name}"}).status_code == 404


def test_a_seller_that_changed_its_price_is_left_alone_for_a_while(street: Street) -> None:
    street.seller.price_atomic = 2 * PRICE_ATOMIC
    first = street.http.post(CHAT, json=ask("a"))
    assert (first.status_code, code(first)) == (402, "terms_changed")
    assert "0.002 USDC" in first.json()["error"]["message"]
    for number in range(5):
        assert code(street.http.post(CHAT, json=ask(str(number)))) == "terms_changed"
    assert street.gateway.counts() == Counts(ready=COUNT - 1, unknown=1)
    assert len(street.seller.requests) == 1


def test_a_redirect_is_not_followed(street: Street) -> None:
    with listening(StandInSeller()) as elsewhere:
        street.seller.redirect_to = f"{elsewhere.url}{CHAT}"
        answer = street.http.post(CHAT, json=ask("a"))
    assert (answer.status_code, code(answer)) == (502, "outcome_unknown")
    assert "location" not in answer.headers
    assert answer.headers["x-farebox-charged"] == "unknown"
    assert street.gateway.counts() == Counts(ready=COUNT - 1, unknown=1)


class Rude:
    """A stand-in seller that takes the payment and hangs up after some of the answer."""

    def __init__(self, first_bytes: bytes, content_type: bytes = b"application/json") -> None:
        self.first_bytes, self.content_type = first_bytes, content_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        headers = [(b"content-type", self.content_type)]
        if self.content_type == b"application/json":
            headers.append((b"content-length", b"1000"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.first_bytes, "more_body": True})
        raise ConnectionError


def rude_gateway(home: Path, url: str) -> Any:
    pool = Pool.open(Home.open(home))
    sign_pool(pool, url, 3)
    pool.close()
    return gateway(home)


def test_a_seller_that_hangs_up_without_an_answer_leaves_the_outcome_open(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with rude_gateway(home, url) as running:

            def hang_up() -> None:
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.close()

            thread = threading.Thread(target=hang_up)
            thread.start()
            answer = httpx.post(running.url + CHAT, json=ask("a"), timeout=PATIENCE_S)
            thread.join()
            assert (answer.status_code, code(answer)) == (502, "outcome_unknown")
            assert answer.headers["x-farebox-charged"] == "unknown"
            assert running.counts() == Counts(ready=2, unknown=1)


def test_an_answer_that_dies_before_its_first_byte_is_an_error_and_its_repetition_pays_nothing(home: Path) -> None:
    with listening(Rude(b"")) as server, rude_gateway(home, server.url) as running:
        answer = httpx.post(running.url + CHAT, json=ask("a"))
        assert (answer.status_code, code(answer)) == (502, "answer_broke_off")
        assert running.counts() == Counts(ready=2, spent=1)
        httpx.post(running.url + CHAT, json=ask("a"))
        assert running.counts() == Counts(ready=2, spent=1)


def test_an_answer_that_dies_in_the_middle_is_broken_for_the_client_too(home: Path) -> None:
    with listening(Rude(b'{"choices": [')) as server, rude_gateway(home, server.url) as running:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(running.url + CHAT, json=ask("a"))
        assert running.counts() == Counts(ready=2, spent=1)


def test_a_stream_that_dies_ends_with_an_error_the_official_client_raises(home: Path) -> None:
    first = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    with listening(Rude(first, b"text/event-stream")) as server, rude_gateway(home, server.url) as running:
        with (
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", max_retries=0) as client,
            pytest.raises(openai.APIError, match="broke off"),
        ):
            list(client.chat.completions.create(**ask("a", stream=True)))
        assert running.counts() == Counts(ready=2, spent=1)


def test_an_answer_without_a_receipt_is_served_and_counted(street: Street) -> None:
    street.seller.send_receipt = False
    answer = street.http.post(CHAT, json=ask("a"))
    assert answer.status_code == 200
    assert "x-farebox-transaction" not in answer.headers
    assert 'farebox_gateway_answers_without_receipt_total{purchase="chat"} 1.0' in metrics(street)


def test_authorizations_too_old_to_send_are_not_sent(home: Path, seller: StandInSeller) -> None:
    pool = Pool.open(Home.open(home))
    with listening(seller) as server:
        sign_pool(pool, server.url, 3, valid_s=30)
        pool.close()
        with gateway(home) as running:
            answer = httpx.post(running.url + CHAT, json=ask("a"))
            assert code(answer) == "authorizations_exhausted"
            assert running.counts() == Counts(expired=3)
    assert seller.requests == []


def test_a_store_that_went_read_only_is_503_and_nothing_leaves(street: Street) -> None:
    store = store_of(street)
    store.execute("PRAGMA query_only = ON")
    answer = street.http.post(CHAT, json=ask("a"))
    assert (answer.status_code, code(answer)) == (503, "store_unavailable")
    assert answer.headers["retry-after"]
    assert street.seller.requests == []
    assert street.http.get("/readyz").status_code == 503
    assert street.http.get("/healthz").status_code == 200
    store.execute("PRAGMA query_only = OFF")
    assert street.http.get("/readyz").status_code == 200
    assert street.http.post(CHAT, json=ask("a")).status_code == 200


def store_of(street: Street) -> Any:
    """Return the connection the gateway writes its pool through."""
    return street.gateway.call(lambda desk: desk.pool.database.transact(lambda connection: connection))


def metrics(street: Street) -> str:
    return httpx.get(f"{street.gateway.admin_url}/metrics").text


def test_latency_of_the_seller_is_measured(street: Street) -> None:
    started = time.perf_counter()
    street.http.post(CHAT, json=ask("a"))
    took_s = time.perf_counter() - started
    eventually(lambda: 'first_byte_seconds_count{purchase="chat"} 1.0' in metrics(street), "the call is counted")
    line = next(
        line for line in metrics(street).splitlines() if line.startswith("farebox_gateway_first_byte_seconds_sum")
    )
    assert 0 < float(line.split()[-1]) <= took_s

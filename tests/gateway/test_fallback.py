"""Goal: with a fallback, only `paid/…` pays. Method: a second model server in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from buyer.pool import Counts
from gateway.config import GatewayConfig
from gateway.demo.model_server import model_server_app
from tests.buyer.parts import closed_port_url
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL, Gateway, Listening, RawCall, gateway, listening
from tests.gateway.test_repetition import CHAT, ask
from tests.patience import eventually


@dataclass
class Seen:
    app: Starlette
    headers: list[dict[str, str]]
    server: Listening


@pytest.fixture
def free() -> Iterator[Seen]:
    app, headers = model_server_app(("free-model", MODEL)), list[dict[str, str]]()

    async def noting(scope, receive, send):  # type: ignore[no-untyped-def]
        headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await app(scope, receive, send)

    with listening(noting) as server:
        yield Seen(app, headers, server)


@pytest.fixture
def split(street: Street, free: Seen) -> Iterator[Gateway]:
    with gateway(street.home, GatewayConfig(fallback=f"{free.server.url}/v1")) as running:
        yield running


def bare(model: str, **more: object) -> dict[str, object]:
    return {**ask("hello"), "model": model, **more}


def test_bare_names_go_to_the_fallback_with_the_users_own_key(split: Gateway, street: Street, free: Seen) -> None:
    headers = {"authorization": "Bearer users-own", "cookie": "session=1"}
    for model in ("free-model", MODEL):
        answer = httpx.post(split.url + CHAT, json=bare(model), headers=headers)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("x-farebox-")]
    assert free.headers[-1]["authorization"] == "Bearer users-own"
    assert "cookie" not in free.headers[-1]
    assert street.seller.requests == []
    assert split.counts() == Counts(ready=COUNT)


def test_paid_names_still_pay_and_take_no_key_along(split: Gateway, street: Street, free: Seen) -> None:
    answer = httpx.post(split.url + CHAT, json=ask("a"), headers={"authorization": "Bearer users-own"})
    assert answer.headers["x-farebox-purchase"] == "chat"
    assert "authorization" not in street.seller.requests[-1][1]
    assert free.headers == []


def test_an_unknown_paid_name_does_not_fall_back(split: Gateway, free: Seen) -> None:
    assert httpx.post(split.url + CHAT, json=bare("paid/free-model")).status_code == 404
    assert free.headers == []


def test_streams_and_errors_of_the_fallback_come_through(split: Gateway) -> None:
    stream = httpx.post(split.url + CHAT, json=bare("free-model", stream=True))
    assert stream.text.endswith("data: [DONE]\n\n")
    refused = httpx.post(split.url + CHAT, json=bare("free-model", metadata={"x-test-status": "429"}))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_a_configured_key_replaces_the_users(street: Street, free: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLBACK_API_KEY", "ours")
    config = GatewayConfig(fallback=free.server.url, fallback_key_env="FALLBACK_API_KEY")
    with gateway(street.home, config) as running:
        httpx.post(running.url + CHAT, json=bare("free-model"), headers={"authorization": "x", "x-api-key": "y"})
    assert free.headers[-1]["authorization"] == "Bearer ours"
    assert "x-api-key" not in free.headers[-1]


def test_a_fallback_that_is_down_is_a_502_that_says_so(home: Path) -> None:
    with gateway(home, GatewayConfig(fallback=closed_port_url())) as running:
        answer = httpx.post(running.url + CHAT, json=bare("free-model"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "fallback_unreachable")


def test_a_fallback_that_sends_elsewhere_is_not_followed(home: Path) -> None:
    asked: list[str] = []

    async def elsewhere(scope: Scope, _receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        headers = [(b"location", b"/elsewhere"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body"})

    with listening(elsewhere) as server, gateway(home, GatewayConfig(fallback=server.url)) as running:
        answer = httpx.post(running.url + CHAT, json=bare("free-model"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "fallback_redirects")
    assert asked == [CHAT]


def test_a_stream_of_the_fallback_that_breaks_off_says_so_at_its_end(split: Gateway) -> None:
    dying = bare("free-model", stream=True, metadata={"x-test-die-after-chunks": "2"})
    *_, before_last, last = httpx.post(split.url + CHAT, json=dying).text.strip().split("\n\n")
    assert "fallback_broke_off" not in before_last
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "fallback_broke_off"


def test_the_fallback_is_left_when_the_client_leaves(split: Gateway, free: Seen) -> None:
    knobs = {"x-test-hold": "gate", "x-test-hold-after-chunks": "3"}
    call = RawCall(split.url, json.dumps(bare("free-model", stream=True, metadata=knobs)).encode())
    call.read_until(b"data: ")
    call.leave()
    httpx.post(f"{free.server.url}/test/release/gate")
    eventually(
        lambda: split.call(lambda desk: b"farebox_gateway_in_flight 0.0" in desk.metrics.text()), "the call ends"
    )

"""Goal: what depends on the order of events is right in the worst order. Method: the gateway's loop, driven by hand."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.types import Message

from buyer.pool import Counts
from gateway.app import GatewayApp
from gateway.desk import Desk
from tests.gateway.conftest import COUNT, Street
from tests.gateway.test_repetition import CHAT, ask
from tests.patience import PATIENCE_S, eventually


class HandDriven:
    """One request to the app without a server between; `leave` is the client's disconnect."""

    def __init__(self, app: GatewayApp, body: bytes) -> None:
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self.sent: list[Message] = []
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": CHAT,
            "query_string": b"",
            "headers": [],
            "client": None,
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    def leave(self) -> None:
        self._gone.set()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


def test_a_repetition_in_the_same_instant_as_the_disconnect_is_recognised(street: Street) -> None:
    body = json.dumps(ask("a", hold="gate")).encode()
    started: list[HandDriven] = []

    async def first(desk: Desk) -> None:
        started.append(HandDriven(GatewayApp(desk), body))

    async def repeat_and_leave(desk: Desk) -> None:
        started.append(HandDriven(GatewayApp(desk), body))
        started[0].leave()

    async def both(_: Desk) -> Any:
        await asyncio.gather(*(call.task for call in started))
        return started[1].sent

    street.gateway.run(first)
    eventually(lambda: len(street.seller.presented) == 1, "the first is at the seller")
    street.gateway.run(repeat_and_leave)
    street.release("gate")
    sent = street.gateway.run(both)
    assert (b"x-farebox-replayed", b"true") in sent[0]["headers"]
    assert street.gateway.counts() == Counts(ready=COUNT - 1, spent=1)


def test_a_call_past_its_time_ends_as_unknown_and_is_presented_again(street: Street) -> None:
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(street.http.post, CHAT, json=ask("a", hold="gate"))
        eventually(lambda: len(street.seller.presented) == 1, "the payment is at the seller")
        street.gateway.end_calls()
        answer = call.result(PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "call_timed_out")
    assert answer.headers["x-farebox-charged"] == "unknown"
    assert street.gateway.counts() == Counts(ready=COUNT - 1, unknown=1)
    street.release("gate")
    street.http.post(CHAT, json=ask("a", hold="gate"))
    assert len(set(street.seller.nonces)) == 1


def test_a_request_that_never_arrives_is_given_up(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests.BODY_TIMEOUT_S", 0.2)

    def drip() -> Any:
        yield b"{"
        eventually(lambda: refusals(street) == 1, "the request is refused")

    with httpx.Client(timeout=PATIENCE_S) as http:
        answer = http.post(street.gateway.url + CHAT, content=drip())
    assert answer.status_code == 408
    assert street.seller.requests == []


def refusals(street: Street) -> float:
    return float(street.gateway.call(lambda desk: desk.metrics.refusals.labels("body_timed_out")._value.get()))

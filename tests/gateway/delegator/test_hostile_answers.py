"""What a worker's answer holds never ends a run: it is kept as text, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from buyer.home import Home
from buyer.pool import Pool
from gateway.delegator.run import NodeEvent
from tests.gateway.delegator.parts import Town, events_of, order, plan_of
from tests.gateway.parts import StandInSeller, listening, sign_pool

ONE = plan_of("one", one=("add 3", []))


@contextmanager
def town_of_one(folder: Path, status: int, body: bytes) -> Iterator[Town]:
    """A town whose only seller always answers so."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    built = Town(folder / "home")
    with listening(StandInSeller(app, price_atomic=1_000, keeps_answers=True)) as seller:
        with Pool.open(Home.open(built.home)) as pool:
            sign_pool(pool, seller.url, 3, name="only", model="model", price_atomic=1_000)
        yield built


async def last_event(town: Town) -> NodeEvent:
    async with town.delegating() as delegator:
        delegation = delegator.begin(order(ONE))
        events = await events_of(delegation)
        run = delegator.journal.find(delegation.id)
        assert run.state in ("done", "partial")
        assert all(attempt.state != "intended" for attempt in run.attempts)
    return events[-1]


@pytest.mark.parametrize(("said", "kept"), [(rb"half \ud83d", "half ?"), (rb"nothing \u0000", "nothing \x00")])
async def test_an_answer_that_no_store_could_hold_as_it_is_is_an_answer(tmp_path: Path, said: bytes, kept: str) -> None:
    with town_of_one(tmp_path, 200, b'{"choices":[{"message":{"content":"' + said + b'"}}]}') as town:
        assert (await last_event(town)).text == kept


@pytest.mark.parametrize("said", [rb'"half \ud83d"', rb'"nothing \u0000"', b'"\xff"', b"7", b"null", b'["x"]'])
async def test_a_refusal_in_any_words_is_a_refusal(tmp_path: Path, said: bytes) -> None:
    with town_of_one(tmp_path, 400, b'{"error":{"code":"no","message":' + said + b"}}") as town:
        last = await last_event(town)
    assert (last.text, list(last.missing)) == (None, ["one"])

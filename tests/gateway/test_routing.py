"""Several sellers of one model: who is asked, who stands in, and that no wish of a client passes a cap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from buyer.home import Home
from buyer.pool import Pool
from contracts.errors import ConfigInvalid
from gateway.bidder.events import EventLog
from gateway.bidder.opening import events_url
from gateway.breaker import Breakers
from gateway.config import GatewayConfig, load_config
from gateway.limits import BREAKER_FAILURES, BREAKER_PAUSE_S
from tests.gateway.parts import MODEL, Gateway, StandInSeller, gateway, listening, sign_pool
from tests.patience import PATIENCE_S, eventually

CHEAP, DEAR = 1_000, 3_000


@dataclass
class Market:
    """Two sellers of one model, the cheap and the dear one, and a gateway that holds pools of both."""

    cheap: StandInSeller
    dear: StandInSeller
    gateway: Gateway
    http: httpx.Client
    home: Home

    def ask(self, number: int = 0, **headers: str) -> httpx.Response:
        body = {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": f"hello {number}"}]}
        named = {f"x-farebox-{name.replace('_', '-')}": value for name, value in headers.items()}
        return self.http.post("/v1/chat/completions", json=body, headers=named)

    @property
    def sold(self) -> tuple[int, int]:
        """How many payments each was shown."""
        return len(self.cheap.presented), len(self.dear.presented)


@pytest.fixture
def routing() -> dict[str, dict[str, object]]:
    return {"*": {"policy": "rule", "explore": False}}


@pytest.fixture
def market(tmp_path: Path, routing: dict[str, dict[str, object]]) -> Iterator[Market]:
    cheap, dear = StandInSeller(price_atomic=CHEAP), StandInSeller(price_atomic=DEAR)
    home = Home.open(tmp_path / "home")
    with ExitStack() as stack:
        servers = [stack.enter_context(listening(each)) for each in (cheap, dear)]
        pool = Pool.open(home)
        for name, server, price in zip(("cheap", "dear"), servers, (CHEAP, DEAR), strict=True):
            sign_pool(pool, server.url, 10, name=name, price_atomic=price)
        pool.close()
        config = GatewayConfig.model_validate({"routing": routing})
        running = stack.enter_context(gateway(home.path, config))
        http = stack.enter_context(httpx.Client(base_url=running.url, timeout=PATIENCE_S))
        yield Market(cheap, dear, running, http, home)


def test_of_two_sellers_that_are_equal_but_in_price_the_cheaper_is_asked(market: Market) -> None:
    answer = market.ask()
    assert answer.status_code == 200
    assert market.sold == (1, 0)
    assert answer.headers["x-farebox-purchase"] == "cheap"
    assert answer.headers["x-farebox-decision"].startswith("d")


def test_a_seller_that_answers_badly_loses_the_next_calls(market: Market) -> None:
    async def fail(scope: object, receive: object, send: object) -> None:
        raise ConnectionError

    market.cheap.app = fail
    for number in range(6):
        market.ask(number)
    assert market.ask(9).status_code == 200
    assert market.dear.presented


def test_a_purchase_that_is_avoided_is_paid_only_where_there_is_no_other(market: Market) -> None:
    assert market.ask(1, avoid="cheap").headers["x-farebox-purchase"] == "dear"
    assert market.ask(2, avoid="dear, nobody").headers["x-farebox-purchase"] == "cheap"
    assert market.ask(3, avoid="cheap,dear").status_code == 200


def test_when_a_seller_is_not_there_the_other_is_paid_and_nothing_is_lost(market: Market, tmp_path: Path) -> None:
    market.gateway.top_up("http://127.0.0.1:9", 3, name="gone", price_atomic=10)
    answer = market.ask()
    assert answer.status_code == 200
    counts = market.gateway.counts("gone")
    assert (counts.ready, counts.signed) == (3, 3)


def test_a_client_that_names_its_seller_gets_that_one(market: Market) -> None:
    market.ask(seller="dear")
    assert market.sold == (0, 1)


def test_no_value_or_hurry_passes_the_clients_own_cap(market: Market) -> None:
    answer = market.ask(max_price="0.001", value="100", deadline_ms="1", priority="urgent")
    assert answer.status_code in (200, 402)
    assert market.sold[1] == 0


def test_what_would_be_worth_the_usual_price_and_has_time_is_told_to_come_again(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.bidder.choose._is_worth_waiting", lambda *_: True)
    answer = market.ask(value="0.0000001")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_worth_it_now")
    assert int(answer.headers["retry-after"]) > 0
    assert market.sold == (0, 0)


def test_what_is_not_worth_its_price_is_refused_unpaid(market: Market) -> None:
    answer = market.ask(value="0.0000001")
    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "not_worth_it"
    assert market.sold == (0, 0)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("deadline_ms", "0"),
        ("deadline_ms", "-5"),
        ("deadline_ms", "1e3"),
        ("deadline_ms", "9" * 20),
        ("value", "lots"),
        ("value", "-1"),
        ("value", "1e-3"),
        ("priority", "now"),
    ],
)
def test_a_wish_that_does_not_parse_is_refused_by_name(market: Market, header: str, value: str) -> None:
    answer = market.ask(0, **{header: value})
    assert answer.status_code == 400
    assert f"x-farebox-{header.replace('_', '-')}" in answer.json()["error"]["message"]
    assert market.sold == (0, 0)


@pytest.mark.parametrize("routing", [{MODEL: {"policy": "cheapest", "sellers": ["https://nobody.example"]}}])
def test_settings_that_leave_no_seller_pay_nobody(market: Market, routing: object) -> None:
    answer = market.ask()
    assert answer.status_code == 402
    assert "routing" in answer.json()["error"]["message"]
    assert market.sold == (0, 0)


def test_a_repetition_goes_to_the_seller_that_was_paid_whatever_the_bidder_thinks(market: Market) -> None:
    market.cheap.keeps_answers = True
    first = market.ask(request_id="once")
    again = market.ask(request_id="once")
    assert first.json() == again.json()
    assert len(set(market.cheap.nonces)) == 1
    assert market.sold[1] == 0


@pytest.mark.parametrize("text", ["'*': {policy: magic}", "'*': {deadline_s: 0}", "'*': {value: '1,5'}", "'*': {x: 1}"])
def test_settings_are_checked_at_the_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(f"routing:\n  {text}\n")
    with pytest.raises(ConfigInvalid, match="routing"):
        load_config(path)


def test_a_breaker_opens_lets_one_call_try_and_closes() -> None:
    breakers = Breakers()
    for _ in range(BREAKER_FAILURES):
        assert not breakers.is_open("s", 0.0)
        breakers.failed("s", 0.0)
    assert breakers.is_open("s", BREAKER_PAUSE_S - 1)
    assert not breakers.is_open("s", BREAKER_PAUSE_S)
    breakers.trying("s", BREAKER_PAUSE_S)
    assert breakers.is_open("s", BREAKER_PAUSE_S + 1), "one trial at a time"
    breakers.succeeded("s")
    assert not breakers.is_open("s", BREAKER_PAUSE_S + 2)
    assert not breakers.is_open("another", 0.0)


def test_the_event_log_receipts_and_pool_agree(tmp_path: Path, market: Market) -> None:
    """The gateway of these tests keeps its bidder in memory; a log beside the same pool must say what was paid."""
    log = EventLog.open(events_url(market.home))
    market.gateway.call(lambda desk: setattr(desk.router.bidder, "_log", log))
    for number in range(5):
        assert market.ask(number).status_code == 200
    eventually(lambda: len(log.recent()) == 5, "five outcomes are written")
    spent = sum(purchase_spent(market, name) for name in ("cheap", "dear"))
    assert log.paid_units() == spent * 10**30
    keys = {event.request_key for event in log.recent()}
    assert len(keys) == 5
    log.close()


def purchase_spent(market: Market, name: str) -> int:
    return market.gateway.counts(name).spent * (CHEAP if name == "cheap" else DEAR)

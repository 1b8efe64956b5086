"""`farebox bid`: what it prints agrees with the log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from buyer.home import Home
from gateway.bidder.events import EventLog
from gateway.bidder.opening import events_url
from gateway.bidder.report import report_of
from gateway.bidder.service import Bidder
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Outcome, Task
from gateway.cli import app

CENT = UNITS_PER_TOKEN // 100
TASK = Task(1.0, 10.0, 10 * CENT, 5 * CENT)
OFFERS = [Offer("good", "good", 2 * CENT), Offer("cheap", "cheap", CENT)]


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Forty decisions of which the cheap seller's all failed; their ids, oldest first."""
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
    home = Home.open()
    now_s = 1_000.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1
        return now_s

    async def work() -> list[str]:
        bidder, made = Bidder(EventLog.open(events_url(home)), random=Random(1), clock=clock), []
        for _ in range(40):
            ticket = bidder.decide(TASK, OFFERS, model="m", explores=False)
            bidder.placed(ticket, None)
            offer = ticket.offers[0]
            bidder.ended(ticket, offer, Outcome(2.0, offer.name == "good", offer.price_units), settlement="stated")
            made.append(ticket.id)
            await asyncio.gather(*bidder._tasks)
        await bidder.close()
        return made

    return asyncio.run(work())


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["bid", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_policy_says_what_decides_and_on_how_much(ids: list[str]) -> None:
    standing = run("policy")
    assert (standing["decides"], standing["outcomes"]) == ("rule", 40)
    assert set(standing["losses"]) == {"rule", "linucb"}


def test_the_report_adds_up(ids: list[str]) -> None:
    report = run("report")
    by_name = {seller["name"]: seller for seller in report["sellers"]}
    assert report["decisions"] == 40 == sum(seller["calls"] for seller in report["sellers"])
    assert by_name["cheap"]["good"] == 0
    assert by_name["good"]["good"] == 1
    paid = 0.02 * by_name["good"]["calls"] + 0.01 * by_name["cheap"]["calls"]
    assert report["paid"] == pytest.approx(paid)
    assert report["utility"] == pytest.approx(0.1 * by_name["good"]["calls"] - paid)
    assert run("report", "--last", "5")["decisions"] == 5


def test_a_decision_is_explained_offer_by_offer(ids: list[str]) -> None:
    explained = run("explain", ids[-1])
    assert {offer["name"] for offer in explained["offers"]} == {"good", "cheap"}
    assert [offer["name"] for offer in explained["offers"] if offer["chosen"]] == ["good"]
    assert explained["outcome"]["is_good"] is True
    for command in (["explain", ids[-1]], ["report"], ["policy"]):
        assert CliRunner().invoke(app, ["bid", *command]).exit_code == 0


def test_an_unknown_decision_is_a_clear_error(ids: list[str]) -> None:
    result = CliRunner().invoke(app, ["bid", "explain", "nonsense", "--json"])
    assert json.loads(result.stdout)["error"]["code"] == "not_found"


def test_an_empty_log_is_reported_too() -> None:
    report = report_of([])
    assert (report.decisions, report.of_rule, report.sellers) == (0, None, [])

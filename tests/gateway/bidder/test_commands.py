"""`farebox bid`: what it prints agrees with the log."""

from __future__ import annotations

import asyncio
import json
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from typer.testing import CliRunner

from buyer.home import Home
from gateway.bidder.curves import curves_of, frontier
from gateway.bidder.events import EventLog
from gateway.bidder.opening import events_url
from gateway.bidder.page import page_of
from gateway.bidder.report import Seller, report_of
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
    assert "No decision" in page_of(report, curves_of([]), 0.0)


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.asked: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name.rpartition(":")[2] in ("src", "href") and not (value or "").startswith("#"):
                self.asked.append(value or "")
            assert not name.startswith("on")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_plot_loads_nothing_and_runs_nothing(ids: list[str], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    report = run("report", "--html", str(file))
    text = file.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 4
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert page.asked == []
    assert "url(http" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    for words in ("as it was chosen", "the rule (estimated)", "the cheapest (estimated)", "good", "cheap"):
        assert words in page.text
    assert f"{report['decisions']} decisions brought" in page.text


def test_the_page_can_be_read_by_day_and_by_night(ids: list[str], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    run("report", "--html", str(file))
    text = file.read_text()
    drawings = text[text.index("<svg") :]
    assert "prefers-color-scheme: dark" in text
    assert "fill: var(--ink)" in drawings
    assert "#000000" not in drawings
    assert "#010203" not in drawings


def test_a_page_that_cannot_be_written_is_a_clear_error(ids: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bid", "report", "--html", str(tmp_path / "none" / "page.html"), "--json"])
    assert result.exit_code == 2
    assert "--html" in json.loads(result.stdout)["error"]["message"]


def test_what_a_policy_would_have_brought_is_drawn_to_where_the_report_says(ids: list[str]) -> None:
    log = EventLog.open(events_url(Home.open()))
    events = log.recent()
    log.close()
    report, curves = report_of(events), curves_of(events)
    assert curves.utility["chosen"][-1] == pytest.approx(report.utility)
    assert curves.utility["rule"][-1] == pytest.approx(report.of_rule)
    assert curves.utility["cheapest"][-1] == pytest.approx(report.of_cheapest)
    assert [sum(parts) for parts in zip(*curves.share.values(), strict=True)] == pytest.approx([1.0] * 40)


def test_the_line_of_the_best_has_nobody_who_is_dearer_and_slower() -> None:
    def seller(name: str, price: float, latency_s: float) -> Seller:
        return Seller(name, 1, 1.0, latency_s, price, price)

    slow, fast, worse = seller("slow", 1, 9), seller("fast", 3, 2), seller("worse", 4, 3)
    assert frontier([worse, fast, slow]) == [slow, fast]

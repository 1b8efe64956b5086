"""The page of results says what was recorded, every target of the design has its row, and people's words are kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from bench.figures import draw
from bench.page import FIGURES, PAGE, PAGES, load_results, render, target_lines
from bench.report import Report
from bench.scaling import CHAINS
from bench.suite import STEPS
from bench.targets import GOALS, judge

# The hot paths of the design, with their limits.
DESIGN = {
    ("local verify", "recover"): ("at most", 1.3),
    ("paid request", "CPU of the middleware"): ("at most", 2.5),
    ("paid requests/s", "official FastAPI middleware"): ("at least", 20),
    ("paid requests/s", "@x402/hono"): ("at least", 12),
    ("402 answers/s", "official SDK"): ("at least", 5),
    ("gateway, JSON call", "nginx"): ("at most", 10),
    ("gateway, JSON call", "LiteLLM"): ("at least", 50),
    ("gateway, stream", "chunk"): ("at most", 2.5),
    ("gateway, stream", "first byte"): ("at most", 1.0),
    ("claim", "50th percentile"): ("at most", 5),
    ("acknowledged claims lost", "1,000 kill -9"): ("at most", 0),
    ("pre-sign 1,000", "eth-account"): ("at least", 10),
    ("gas per settlement", "batch of 50"): ("at most", 0.66),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_was_recorded(page: Path) -> None:
    text = page.read_text("utf-8")
    assert render(text, load_results()) == text, "write it anew: python -m bench page"


def test_what_is_modelled_is_told_from_what_was_measured() -> None:
    _, page = PAGES
    text = page.read_text("utf-8")
    for chain in CHAINS:
        assert f"| {chain.name} | {chain.gas_price_gwei:g} gwei" in text
    for row in load_results()["settle"]["rows"]:
        if row["payers"] == "accounts" and row["store"] == "SQLite":
            assert f"{row['gas']:,}" in text


def test_every_target_of_the_design_has_its_row_and_a_bench_that_the_command_runs() -> None:
    page = PAGE.read_text("utf-8")
    steps = {step.name for step in STEPS}
    for words, (bound, limit) in DESIGN.items():
        (goal,) = [goal for goal in GOALS if all(word in goal.target for word in words)]
        assert (goal.bound, goal.limit) == (bound, limit)
        assert f"| {goal.target} |" in page
        assert goal.bench in steps
    assert len(GOALS) == len(DESIGN)


def test_every_plot_of_the_page_is_there_on_light_and_on_dark_ground() -> None:
    page = PAGE.read_text("utf-8")
    drawn = {path.name for path in FIGURES.glob("*.svg")}
    assert drawn
    for name in drawn:
        assert f"figures/{name}" in page
    assert page.count("figures/") == len(drawn)


def test_plots_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    results = {name: result for name, result in load_results().items() if name in ("settle", "verify")}
    for folder in ("once", "again"):
        assert sorted(draw(results, tmp_path / folder)) == ["settle", "verify"]
    once, again = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("once", "again"))
    assert once == again
    assert once["verify-light.svg"] != once["verify-dark.svg"]
    assert b"Farebox: header to verdict" in once["verify-dark.svg"]


def test_what_people_wrote_is_kept_and_what_was_not_run_is_said_to_be_missing() -> None:
    page = (
        "Words.\n<!-- begin targets -->\nold\n<!-- end targets -->\nMore.\n<!-- begin seller -->\n<!-- end seller -->\n"
    )
    written = render(page, {})
    assert written.startswith("Words.\n<!-- begin targets -->\n")
    assert "<!-- end targets -->\nMore.\n" in written
    assert "old" not in written
    assert written.count("**not measured**") == len(GOALS)
    assert "`python -m bench seller` was not run" in written
    assert render(written, {}) == written


@pytest.mark.parametrize(("measured", "word", "share"), [(1.3, "met", "1 x"), (1.31, "missed", "1.01 x")])
def test_a_target_is_met_or_missed_and_the_terminal_says_by_how_much(measured: float, word: str, share: str) -> None:
    result = copy.deepcopy(load_results()["verify"])
    (promise,) = result["benches"][0]["targets"]
    promise["measured"] = {"median": measured, "low": measured, "high": measured}
    (verdict,) = [each for each in judge({"verify": result}) if each.goal.bench == "verify"]
    assert verdict.word == word
    (line,) = [line for line in target_lines([verdict]) if line.startswith("local verify")]
    assert line.endswith(word)
    assert share in line


def test_a_bench_that_measures_another_limit_than_the_designs_is_not_believed() -> None:
    result: dict[str, Any] = copy.deepcopy(load_results()["verify"])
    result["benches"][0]["targets"][0]["limit"] = 2.0
    with pytest.raises(AssertionError, match="another limit"):
        judge({"verify": result})


def test_fewer_kills_than_the_design_asks_for_do_not_count_as_a_thousand() -> None:
    kills: dict[str, Any] = {"bound": "at most", "limit": 0, "measured": 0.0, "met": True}
    for count, word in (("1,000", "met"), ("425", "not measured")):
        promise = {**kills, "promise": f"acknowledged claims lost in {count} kill -9 (17,804 acknowledged)"}
        verdicts = judge({"claims": {"gates": [promise]}})
        (verdict,) = [each for each in verdicts if each.goal.target.startswith("acknowledged claims lost")]
        assert verdict.word == word


def test_a_report_comes_back_from_its_document() -> None:
    (document,) = load_results()["verify"]["benches"]
    report = Report.from_document(document)
    assert report.document() == document
    assert "Farebox: header to verdict" in "\n".join(report.lines())

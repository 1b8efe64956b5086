"""The whole comparison runs bench after bench, keeps what each found, and ends with every target, run or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import suite
from bench.suite import STEPS, Step, main
from bench.targets import GOALS

TINY = Step("dag", ("--dags", "1", "--draws", "1"), knows_quick=False)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go instead of the repository; no page is written."""
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    monkeypatch.setattr(suite, "load_results", dict)
    monkeypatch.setattr(suite, "write_pages", lambda _: None)
    return tmp_path


def test_a_bench_is_run_shown_and_kept_and_all_targets_stand_at_the_end(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "STEPS", (TINY,))
    assert main([]) == 0
    assert json.loads((kept / "dag.json").read_text())["dags"] == 1
    shown = capsys.readouterr().out
    assert "cores" in shown.splitlines()[0]
    assert "runs over their budget" in shown
    assert shown.count("not measured") == len(GOALS)


def test_a_bench_that_fails_is_named_and_the_others_still_run(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "STEPS", (Step("nonsense"), TINY))
    assert main(["--json"]) == 1
    printed = capsys.readouterr()
    assert "nonsense: did not run to its end" in printed.err
    document = json.loads(printed.out)
    assert list(document["results"]) == ["dag"]
    assert [each["verdict"] for each in document["targets"]] == ["not measured"] * len(GOALS)
    assert [path.name for path in kept.iterdir()] == ["dag.json"]


def test_the_benches_run_in_their_order_and_leave_no_target_out() -> None:
    names = [step.name for step in STEPS]
    assert names[:8] == ["verify", "sign", "claims", "seller", "gateway", "settle", "scale", "first_byte"]
    assert {goal.bench for goal in GOALS} <= set(names)

"""The comparisons run to their end, compare what they say, and leave no row and no promise out. Never their speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.harness import Call, Plan, Samples, Slice, measure, spread
from bench.report import Report, Target, ratio_of, row
from tests.patience import PATIENCE_S

REPO = Path(__file__).parents[2]

PEERS = {
    "verify": ("libsecp256k1 recover", "Farebox: header to verdict", "eth-account", "official SDK"),
    "sign": ("libsecp256k1 sign", "Farebox: digest and sign", "Farebox: pre-sign", "eth-account", "official SDK"),
    "claims": ("64 bytes appended", "SQLite WAL", "Farebox, SQLite", "Farebox, PostgreSQL"),
    "seller": (
        "libsecp256k1 recover",
        "bare raw app",
        "Farebox on raw app",
        "bare FastAPI",
        "official SDK on FastAPI",
        "HTTP: Farebox on Starlette, async: paid",
    ),
    "first_byte": ("bare model server", "farebox sell"),
    "gateway": (
        "JSON: no proxy",
        "JSON: farebox serve",
        "first byte: official SDK",
        "stream, a piece: farebox serve, two",
    ),
}
PROMISES: dict[str, dict[str, tuple[str, float]]] = {
    "verify": {"local verify": ("at most", 1.3)},
    "sign": {"pre-sign 1,000": ("at least", 10)},
    "claims": {"claim and sent": ("at most", 5), "acknowledged claims lost": ("at most", 0)},
    "seller": {"paid request": ("at most", 2.5), "paid requests/s": ("at least", 20), "402 answers": ("at least", 5)},
    "first_byte": {"first byte": ("at most", 100)},
    "gateway": {"first byte of a stream": ("at most", 1.0)},
}


def quick(name: str) -> dict[str, Any]:
    """Return what `python -m bench NAME --quick --json` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--json"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("name", PEERS)
def test_each_comparison_measures_us_and_every_peer_it_names(name: str) -> None:
    document = quick(name)
    (bench,) = document["benches"]
    assert document["quick"] is True
    assert bench["bench"] == name
    assert document["machine"]["processor"]
    assert document["machine"]["packages"]["coincurve"]
    for wanted in PEERS[name]:
        assert any(each["name"].startswith(wanted) for each in bench["rows"]), wanted
    for each in bench["rows"]:
        if each["cpu_us"] is None:
            assert 0 < each["p50_us"] <= each["p99_us"]
        else:
            assert 0 < each["cpu_us"]["low"] <= each["cpu_us"]["median"] <= each["cpu_us"]["high"]
        assert each["peer"] is None or each["peer"] in {other["name"] for other in bench["rows"]}
        assert (each["ratio"] is None) == (each["peer"] is None)
    for wanted, promise in PROMISES[name].items():
        found = next(each for each in bench["targets"] if each["promise"].startswith(wanted))
        assert (found["bound"], found["limit"]) == promise
        assert isinstance(found["met"], bool)


def test_claims_that_a_killed_worker_acknowledged_are_all_found() -> None:
    (bench,) = quick("claims")["benches"]
    kills = next(each for each in bench["targets"] if "kill -9" in each["promise"])
    assert kills["measured"]["median"] == 0
    assert "(0 acknowledged)" not in kills["promise"]


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "nonsense"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "verify, sign, claims, seller, first_byte, gateway" in done.stderr


class Recorded:
    """A case that takes a stated CPU time an operation, and notes when it ran."""

    def __init__(self, name: str, cpu_us: list[float], order: list[str]) -> None:
        self.name = name
        self._cpu_us, self._order = cpu_us, order

    def run(self, count: int) -> Slice:
        self._order.append(self.name)
        rounds = self._order.count(self.name) - 1
        cpu_s = self._cpu_us[rounds % len(self._cpu_us)] * count / 1e6
        return Slice(count, cpu_s, wall_s=1.0)


def test_cases_take_turns_and_are_compared_within_their_round() -> None:
    order: list[str] = []
    # The machine slows down fivefold between the rounds; the ratio of the two stays what it is.
    ours = Recorded("ours", [9, 9, 10, 50, 20], order)
    peer = Recorded("peer", [9, 9, 20, 100, 40], order)
    samples = measure([ours, peer], Plan(rounds=3, slice_s=1.0))
    assert order[-6:] == ["ours", "peer"] * 3
    compared = row("ours", samples, "peer")
    assert compared.ratio is not None
    assert (compared.ratio.low, compared.ratio.median, compared.ratio.high) == pytest.approx((0.5, 0.5, 0.5))
    assert compared.cpu_us is not None
    assert compared.cpu_us.median == pytest.approx(20)


def test_a_warm_up_precedes_what_is_reported() -> None:
    calls: list[int] = []
    samples = measure([Call("case", calls.append)], Plan(rounds=2, slice_s=0.001))
    reported = sum(each.count for each in samples["case"].slices)
    assert len(samples["case"].slices) == 2
    assert len(calls) > reported > 0


def test_percentiles_are_those_of_single_operations() -> None:
    samples = Samples([Slice(3, 1, 1, (1.0, 2.0, 3.0)), Slice(1, 1, 1, (100.0,))])
    assert samples.latency_us(50) == 3.0
    assert samples.latency_us(99) == 100.0
    assert Samples([Slice(1, 1, 1)]).latency_us(50) is None


@pytest.mark.parametrize(
    ("bound", "measured", "met"),
    [("at most", 1.3, True), ("at most", 1.31, False), ("at least", 1.3, True), ("at least", 1.29, False)],
)
def test_a_miss_is_called_a_miss(bound: Any, measured: float, met: bool) -> None:
    target = Target("the promise", bound, 1.3, spread([measured]))
    report = Report("b", "t", 1, [row("r", {"r": Samples([Slice(1, 1e-6, 1e-6)])})], [target], ["a note"])
    text = "\n".join(report.lines())
    assert target.met is met
    assert report.document()["targets"][0]["met"] is met
    assert ("hit " in text, "missed" in text) == (met, not met)
    assert "a note" in text


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio_of([1, 2, 30], [2, 4, 10]).median == 0.5

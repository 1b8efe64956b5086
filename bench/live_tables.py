"""What the live experiment found: its rows, the ratios made of them, and the tables on the page about delegating."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from textwrap import fill
from typing import Any

from bench.live_arms import FACTORS, PREMIUM, STANDARD, WHOLE, arms
from bench.live_graphs import SHAPES
from bench.page import filled
from bench.paired import Resampled, resampled
from contracts.nesting import check_nesting

__all__ = ["PAGE", "RECORD", "ROWS", "Row", "ratios", "read_rows", "record", "rendered", "report", "tables"]

_DOCS = Path(__file__).parents[1] / "docs"
PAGE, ROWS, RECORD = _DOCS / "delegation.md", _DOCS / "data" / "live_dag.csv", _DOCS / "data" / "live_dag.json"
_BEST = "routed, parallel, bidder"
_OTHERS = "all but chains"
_WIDTH = 120
_COLUMNS = {"chain": "chains", **{shape: shape for shape in SHAPES if shape != "chain"}, _OTHERS: _OTHERS}


@dataclass(frozen=True, slots=True)
class Row:
    """One graph carried out one way. `right`: its answer was."""

    shape: str
    graph: int
    nodes: int
    arm: str
    took_s: float
    paid_atomic: int
    right: bool
    within_budget: bool


def ratios(rows: Sequence[Row], field: str, above: str, below: str) -> dict[str, list[float]]:
    """Return, by shape, how `above` compares with `below` on each graph."""
    found: dict[str, list[float]] = {}
    value = {(row.shape, row.graph, row.arm): float(getattr(row, field)) for row in rows}
    for shape, graph in sorted({(row.shape, row.graph) for row in rows}):
        found.setdefault(shape, []).append(value[shape, graph, above] / value[shape, graph, below])
    return found


def report(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Return means and intervals of every arm against both baselines, and of every factor, by shape."""
    names = [arm.name for arm in arms()]
    against = {
        name: {
            "time": _groups(ratios(rows, "took_s", name, STANDARD), seed),
            "cost": _groups(ratios(rows, "paid_atomic", name, STANDARD), seed),
            "time_against_premium": _groups(ratios(rows, "took_s", name, PREMIUM), seed),
            "cost_against_premium": _groups(ratios(rows, "paid_atomic", name, PREMIUM), seed),
            "right": fmean(row.right for row in rows if row.arm == name),
        }
        for name in names
    }
    factors = {}
    for name, (low, high) in FACTORS.items():
        low_arms = [each for each in names if low in each and each not in (PREMIUM, WHOLE)]
        found = [ratios(rows, "took_s", arm.replace(low, high), arm) for arm in low_arms]
        # One value a graph, over the four combinations of the other two: what is resampled are graphs.
        merged = {
            shape: [fmean(each) for each in zip(*(one[shape] for one in found), strict=True)] for shape in found[0]
        }
        factors[name] = _groups(merged, seed)
    return {"against_standard": against, "factors": factors}


def _groups(found: Mapping[str, Sequence[float]], seed: int) -> dict[str, Resampled]:
    """Return mean and interval by shape, and of all shapes but chains."""
    others = [ratio for shape, each in found.items() if shape != "chain" for ratio in each]
    groups = {**found, _OTHERS: others}
    return {name: resampled(each, Random(seed)) for name, each in groups.items() if each}


def tables(found: Mapping[str, Any]) -> list[str]:
    """Return the report as lines of plain text, for the terminal."""
    lines = []
    for measure, title in (
        ("time", "time, as a share of the standard model in sequence (95 % of resamples)"),
        ("cost", "cost, as a share of the standard model's"),
        ("time_against_premium", "time, as a share of the premium model in sequence"),
    ):
        lines += ["", title, f"{'':<44}" + "".join(f"{shape:>21}" for shape in _COLUMNS)]
        for name, each in found["against_standard"].items():
            lines.append(f"{name:<44}" + "".join(f"{_shown(each[measure].get(shape)):>21}" for shape in _COLUMNS))
    lines += ["", "what each factor does to the time, the other two averaged over"]
    for name, groups in found["factors"].items():
        lines.append(f"{name:<44}" + "".join(f"{_shown(groups.get(shape)):>21}" for shape in _COLUMNS))
    return lines


def record(rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Publish the rows, the facts of the run that they are of, and the page's tables made of both."""
    with ROWS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    RECORD.write_text(json.dumps(facts, indent=1) + "\n")
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")


def rendered(page: str) -> str:
    """Return the page with its tables made of what was published."""
    text = RECORD.read_bytes()
    check_nesting(text)
    facts = json.loads(text)
    rows = read_rows()
    return filled(page, lambda _: _page_tables(report(rows, facts["seed"]), rows, facts))


def read_rows() -> list[Row]:
    """Return the rows that were published."""
    with ROWS.open(newline="") as file:
        return [
            Row(
                each["shape"],
                int(each["graph"]),
                int(each["nodes"]),
                each["arm"],
                float(each["took_s"]),
                int(each["paid_atomic"]),
                each["right"] == "True",
                each["within_budget"] == "True",
            )
            for each in csv.DictReader(file)
        ]


def _page_tables(found: Mapping[str, Any], rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    times = [
        [name, *(_shown(each["time"].get(shape)) for shape in _COLUMNS), f"{each['cost'][_OTHERS].mean:.2f}"]
        for name, each in found["against_standard"].items()
    ]
    factors = [[name, *(_shown(groups.get(shape)) for shape in _COLUMNS)] for name, groups in found["factors"].items()]
    lines = [
        *_table([*_COLUMNS.values(), f"cost, {_OTHERS}"], times),
        "What each factor does by itself, over the combinations of the other two:\n",
        *_table(list(_COLUMNS.values()), factors),
        fill(_whole(found["against_standard"]), _WIDTH) + "\n",
        fill(_facts(rows, facts), _WIDTH) + "\n",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    head = f"| | {' | '.join(columns)} |"
    return [head, "|---" * (len(columns) + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _whole(against: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the whole delegator comes to."""
    whole = against[WHOLE]
    share = whole["time"][_OTHERS].mean
    change = f"{abs(1 - share) * 100:.0f} % {'less' if share < 1 else 'more'} time"
    return (
        f"So the whole delegator, its planner included, takes {change} than the standard model in sequence where parts "
        f"are independent, for {whole['cost'][_OTHERS].mean:.2f} of the cost, and {_shown(whole['time']['chain'])} of "
        f"the time on chains. Against the premium model in sequence, all but chains, it takes {_premium(whole)}; with "
        f"the plan at hand, {_premium(against[_BEST])}."
    )


def _premium(each: Mapping[str, Mapping[str, Resampled]]) -> str:
    time, cost = each["time_against_premium"][_OTHERS], each["cost_against_premium"][_OTHERS]
    return f"{_shown(time)} of the time for {cost.mean:.2f} of the cost"


def _facts(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    """Return how many runs there were, what went wrong, what they cost by all books, and how busy the machine was."""
    books, machine = facts["books"], facts["machine"]
    wrong, over = (sum(not getattr(row, field) for row in rows) for field in ("right", "within_budget"))
    graphs = len({(row.shape, row.graph) for row in rows})
    return (
        f"{graphs} graphs, {len(rows)} runs: wrong answers {wrong}, runs over their budget {over}. With the warm-up "
        f"they cost, in atomic units, {books['journal']:,} by the journal of runs, {books['receipts']:,} by their "
        f"receipts, {books['pools']:,} by the pools, and {books['chain']:,} on the chain. On {machine['cores']} cores, "
        f"at a load of {machine['load_before']:g} before and {facts['load_after']:g} after the {facts['took_s']} s "
        "that it took; ratios are of runs of the same graph, minutes apart at most."
    )


def _shown(found: Resampled | None) -> str:
    return "" if found is None else f"{found.mean:.2f} ({found.low:.2f}\N{EN DASH}{found.high:.2f})"

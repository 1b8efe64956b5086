"""Writes `docs/performance.md`, its plots, and `docs/scaling.md` out of recorded results: `python -m bench page`.

What stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is written by this command; everything else on these
pages is written by people, and kept.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.gates import Gate, gate_lines
from bench.report import Report
from bench.scaling import BLOCKS
from bench.targets import Verdict, judge, promises_of, shown
from contracts.nesting import check_nesting

__all__ = [
    "FIGURES",
    "PAGE",
    "PAGES",
    "RESULTS",
    "filled",
    "load_results",
    "main",
    "render",
    "result_lines",
    "target_lines",
    "write_pages",
]

_REPO = Path(__file__).parents[1]
RESULTS = _REPO / "bench" / "results"
PAGE = _REPO / "docs" / "performance.md"
PAGES = (PAGE, _REPO / "docs" / "scaling.md")
FIGURES = _REPO / "docs" / "figures"

_BLOCK = re.compile(r"(<!-- begin (?P<name>[a-z_]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
# Units as a page writes them: the multiplication sign and mu.
_TYPESET = {"x": "\N{MULTIPLICATION SIGN}", "us": "\N{MICRO SIGN}s"}
_ALT = {
    "settle": "Gas and rate of settlements by batch size",
    "scale": "Cost of each operation by the size of the books",
}


def load_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the recorded documents by the name of their bench."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        text = path.read_bytes()
        check_nesting(text)
        results[path.stem] = json.loads(text)
    return results


def render(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page with every generated block written anew, out of `results`."""
    return filled(page, lambda name: _generated(name, results))


def filled(page: str, block: Callable[[str], str]) -> str:
    """Return the page with `block(name)` between the marks of every block."""
    return _BLOCK.sub(lambda match: f"{match[1]}{block(match['name'])}{match[3]}", page)


def write_pages(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write pages and plots."""
    from bench.figures import draw

    draw(results, FIGURES)
    for page in PAGES:
        page.write_text(render(page.read_text("utf-8"), results), "utf-8")


def _generated(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    if name == "targets":
        return _target_table(judge(results))
    if name == "others":
        return _other_promises(results)
    if name == "machine":
        return _machine(results)
    bench, table = BLOCKS.get(name, (name, None))
    if bench not in results:
        return f"\n`python -m bench {bench}` was not run.\n\n"
    if table is not None:
        return table(results)
    return f"\n{_picture(name, results[name])}```text\n" + "\n".join(result_lines(name, results[name])) + "\n```\n\n"


def result_lines(name: str, result: Mapping[str, Any]) -> list[str]:
    """Return what a bench found as lines of plain text, from its document."""
    if "benches" in result:
        (bench,) = result["benches"]
        lines = Report.from_document(bench).lines()
    else:
        module = import_module(f"bench.{name}")
        gates = [
            Gate(each["promise"], each["bound"], each["limit"], each["measured"]) for each in result.get("gates", ())
        ]
        lines = [*(module.lines(result) if hasattr(module, "lines") else ()), *gate_lines(gates)]
    return [line.rstrip() for line in lines]


def target_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the table of all targets as lines of plain text, for the terminal."""
    width = max(len(verdict.goal.target) for verdict in verdicts)
    head = f"{'target of the design':<{width}}  {'limit':>14}  {'measured':>11}  {'of limit':>8}"
    return [head, *(_target_line(verdict, width) for verdict in verdicts)]


def _target_line(verdict: Verdict, width: int) -> str:
    goal = verdict.goal
    limit = f"{'<=' if goal.bound == 'at most' else '>='} {shown(goal.limit, goal.unit)}"
    of_limit = shown(verdict.of_limit, "x")
    return (
        f"{goal.target:<{width}}  {limit:>14}  {shown(verdict.measured, goal.unit):>11}  {of_limit:>8}  {verdict.word}"
    )


def _target_table(verdicts: Sequence[Verdict]) -> str:
    rows = ["", "| Target | Limit | Measured | Of the limit | |", "|---|---|---|---|---|"]
    for verdict in verdicts:
        goal = verdict.goal
        sign = "≤" if goal.bound == "at most" else "≥"
        of_limit = "" if verdict.of_limit is None else shown(verdict.of_limit, _TYPESET["x"])
        word = verdict.word if verdict.met else f"**{verdict.word}**"
        unit = _TYPESET.get(goal.unit, goal.unit)
        measured, limit = shown(verdict.measured, unit), shown(goal.limit, unit)
        rows.append(f"| {goal.target} | {sign} {limit} | {measured} | {of_limit} | {word} |")
    met = sum(verdict.met for verdict in verdicts)
    return "\n".join([*rows, "", f"{met} of {len(verdicts)} are met.", "", ""])


def _other_promises(results: Mapping[str, Mapping[str, Any]]) -> str:
    asked = {(verdict.goal.bench, verdict.goal.says) for verdict in judge(results)}
    rows = ["", "| Promise | Bench | Limit | Measured | |", "|---|---|---|---|---|"]
    for name, result in results.items():
        for stated in promises_of(result):
            if any(bench == name and re.search(says, stated["promise"]) for bench, says in asked):
                continue
            sign = "≤" if stated["bound"] == "at most" else "≥"
            unit = _TYPESET.get(stated["unit"], stated["unit"])
            limit, measured = (shown(stated[key], unit) for key in ("limit", "measured"))
            word = "met" if stated["met"] else "**missed**"
            rows.append(f"| {stated['promise']} | `{name}` | {sign} {limit} | {measured} | {word} |")
    return "\n".join([*rows, "", ""])


def _machine(results: Mapping[str, Mapping[str, Any]]) -> str:
    machines = [result["machine"] for result in results.values() if "machine" in result]
    if not machines:
        return "\nNothing was run.\n\n"
    machine, loads = machines[0], [each["load_before"] for each in machines]
    took_s = sum(result.get("took_s", 0) for result in results.values())
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return (
        f"\n{machine['processor']}, {machine['cores']} cores, {machine['system']}; Python {machine['python']}, SQLite "
        f"{machine['sqlite']}; load {min(loads)} to {max(loads)} as each bench began; {took_s} s in all."
        f"\n\n{packages}.\n\n"
    )


def _picture(name: str, result: Mapping[str, Any]) -> str:
    if "benches" not in result and name not in _ALT:
        return ""
    alt = _ALT.get(name) or result["benches"][0]["title"]
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="figures/{name}-dark.svg">\n'
        f'  <img alt="{alt}" src="figures/{name}-light.svg">\n</picture>\n\n'
    )


def main(arguments: Sequence[str]) -> int:
    """Write pages and plots from the recorded results."""
    parser = argparse.ArgumentParser(prog="python -m bench page", description=__doc__)
    parser.parse_args(arguments)
    results = load_results()
    write_pages(results)
    print("\n".join(target_lines(judge(results))))
    return 0

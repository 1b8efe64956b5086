"""The whole comparison, as `make bench` runs it: `python -m bench [--json] [--quick] [--only NAME …]`.

Each bench runs in a process of its own, the machine otherwise idle, and what it found is kept in `bench/results`. At
the end stand all targets of the design, met or missed, and `docs/performance.md` with its plots is written anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.page import RESULTS, load_results, result_lines, target_lines, write_pages
from bench.targets import judge
from contracts.console import print_document
from contracts.nesting import check_nesting

__all__ = ["STEPS", "Step", "main"]

# No bench takes a third of this on two idle cores.
_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Step:
    """One bench, and the arguments of its short form where the long one belongs to somebody with more time."""

    name: str
    arguments: tuple[str, ...] = ()
    knows_quick: bool = True


STEPS = (
    Step("verify"),
    Step("sign"),
    Step("claims"),
    Step("seller"),
    Step("gateway"),
    Step("settle"),
    Step("scale"),
    Step("first_byte"),
    Step("registry", ("--registrations", "4000"), knows_quick=False),
    Step("bidder", ("--seeds", "2"), knows_quick=False),
    Step("dag", knows_quick=False),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benches, print what they found, and write the page. Return 1 when one of them did not run to its end."""
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing and are not kept")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    chosen = [step for step in STEPS if not options.only or step.name in options.only]
    found: dict[str, dict[str, Any]] = {}
    for step in chosen:
        result = _run(step, quick=options.quick)
        if result is None:
            print(f"{step.name}: did not run to its end", file=sys.stderr, flush=True)
            continue
        found[step.name] = result
        if not options.json:
            _show(step.name, result, first=len(found) == 1)
    if not options.quick:
        _keep(found)
    results = found if options.quick else load_results()
    verdicts = judge(results)
    document = {
        "quick": options.quick,
        "results": found,
        "targets": [
            {"target": each.goal.target, "limit": each.goal.limit, "measured": each.measured, "verdict": each.word}
            for each in verdicts
        ],
        "took_s": round(time.monotonic() - started),
    }
    shown = ["", *target_lines(verdicts), "", f"{document['took_s']} s"]
    print_document(document, as_json=options.json, human=lambda: print("\n".join(shown)))
    return 0 if len(found) == len(chosen) else 1


def _run(step: Step, *, quick: bool) -> dict[str, Any] | None:
    """Return the document of one bench, or None where it failed. A missed target is no failure."""
    if quick and not step.knows_quick:
        return None
    command = [sys.executable, "-m", "bench", step.name, "--json", *step.arguments, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_TIMEOUT_S, check=False)
    try:
        check_nesting(done.stdout)
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return None
    return result


def _show(name: str, result: dict[str, Any], *, first: bool) -> None:
    if first:
        machine = result["machine"]
        print(f"{machine['processor']}, {machine['cores']} cores; {machine['system']}; Python {machine['python']}")
        print(", ".join(f"{package} {version or 'absent'}" for package, version in machine["packages"].items()))
    print("\n" + "\n".join([*result_lines(name, result), f"{result.get('took_s', 0)} s"]), flush=True)


def _keep(found: dict[str, dict[str, Any]]) -> None:
    """Record what was found, and write the page from all that is recorded."""
    RESULTS.mkdir(exist_ok=True)
    for name, result in found.items():
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    write_pages(load_results())

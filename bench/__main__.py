"""The command: `python -m bench` for all that `make bench` compares, or `python -m bench NAME … [--json] [--quick]`.

`python -m bench NAME --help` tells of the options of those that have their own.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from importlib import import_module

from bench.harness import FULL, QUICK, Plan
from bench.machine import this_machine
from bench.report import Report
from contracts.console import print_document

# Benches with options of their own.
OWN = (
    "live_bidder",
    "live_dag",
    "bidder",
    "limit",
    "ope",
    "guard",
    "dag",
    "gas",
    "registry",
    "latency",
    "settle",
    "scale",
    "executor",
    "idle",
    "page",
)
_SMOKE = ", a smoke test: its figures mean nothing"
NAMES = ("verify", "sign", "claims", "seller", "first_byte", "gateway")


def main() -> None:
    """Run the benches named, or the whole comparison, and print what they found."""
    if sys.argv[1:2] and sys.argv[1] in OWN:
        sys.exit(import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:]))
    if all(argument.startswith("-") for argument in sys.argv[1:]) or "--only" in sys.argv:
        sys.exit(import_module("bench.suite").main(sys.argv[1:]))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"NAME: expected some of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
    # Peers log every payment.
    logging.disable(logging.WARNING)
    plan = QUICK if arguments.quick else FULL
    machine = this_machine()
    started = time.monotonic()
    reports: list[Report] = []
    if not arguments.json:
        _print_machine(machine)
    for name in arguments.names:
        run: Callable[[Plan], Report] = import_module(f"bench.{name}").run
        reports.append(run(plan))
        if not arguments.json:
            print("\n" + "\n".join(reports[-1].lines()), flush=True)
    took_s = round(time.monotonic() - started)
    document = {"machine": machine, "quick": plan.quick, "took_s": took_s, "benches": [r.document() for r in reports]}
    print_document(document, as_json=arguments.json, human=lambda: print(f"\n{took_s} s{_SMOKE * plan.quick}"))


def _print_machine(machine: dict[str, object]) -> None:
    packages = machine["packages"]
    assert isinstance(packages, dict)
    print(
        f"{machine['processor']}, {machine['cores']} cores, load {machine['load_before']}; {machine['system']}; "
        f"Python {machine['python']}, SQLite {machine['sqlite']}"
    )
    print(", ".join(f"{name} {version or 'absent'}" for name, version in packages.items()))


if __name__ == "__main__":
    main()

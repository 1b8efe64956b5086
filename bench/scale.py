"""How cost grows with what is in the books: `python -m bench scale [--json] [--quick]`.

Pools of 10^2 to 10^6 authorizations, 1 to 1,000 purchases, seller ledgers of 10^3 to 10^7 payments, and 1 to 4
processes on one SQLite and on one PostgreSQL. The books are filled by `bench.loader`; every size is measured in a
process of its own. What must not grow is held to `FLAT_PER_DECADE`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from bench.scale_ledger import grow_ledger
from bench.scale_pool import grow_pool, grow_purchases
from bench.scale_workers import share_store
from bench.stores import postgres
from contracts.console import print_document
from contracts.evm.devnet import Devnet

__all__ = ["FLAT", "FLAT_PER_DECADE", "growth", "lines", "main", "measure"]

# What counts as flat: a B-tree is one page deeper with every factor of some hundred, and a machine is not quiet.
FLAT_PER_DECADE = 1.3
# What must be: section, column, in words. CPU time, because a sync of the disk takes 30 microseconds or 9 milliseconds.
FLAT = (
    ("pool", "claim_cpu_us", "claim, tenfold authorizations"),
    ("pool", "start_cpu_ms", "gateway start-up, tenfold authorizations"),
    ("purchases", "claim_cpu_us", "claim, tenfold purchases"),
    ("ledger", "verify_cpu_us", "verify and reserve, tenfold payments"),
    ("ledger", "start_cpu_ms", "seller start-up, tenfold payments"),
    ("ledger", "due_ms", "the settlement queue's next batch, tenfold payments"),
)
_TITLES = {
    "pool": "authorizations in one purchase, half of them spent",
    "purchases": "purchases in one pool",
    "ledger": "settled payments in one seller's books",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured.

    `claims` and `reservations` are those of each process, on SQLite and on PostgreSQL; `teams` are (gateways, sellers)
    on one store; `apart`: every size, and every gateway and seller, in a process of its own.
    """

    pool: Sequence[int] = (100, 1_000, 10_000, 100_000, 1_000_000)
    purchases: Sequence[int] = (1, 10, 100, 1_000)
    others: int = 20_000
    ledger: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    claims: tuple[int, int] = (8_000, 600)
    reservations: tuple[int, int] = (2_000, 400)
    teams: Sequence[tuple[int, int]] = ((1, 0), (2, 0), (4, 0), (0, 1), (0, 2), (0, 4), (2, 2))
    apart: bool = True


DEFAULT = Sizes()
QUICK = Sizes((100, 1_000), (1, 10), 200, (100, 1_000), (50, 20), (64, 32), teams=((1, 1),), apart=False)


def measure(sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every section, on stores and a chain of their own."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="farebox-bench-")))
        devnet = running.enter_context(Devnet())
        sections = {
            "pool": grow_pool(folder / "pool", devnet, sizes.pool, apart=sizes.apart),
            "purchases": grow_purchases(folder, devnet, sizes.purchases, sizes.others, apart=sizes.apart),
            "ledger": grow_ledger(folder, sizes.ledger, apart=sizes.apart),
        }
        server = running.enter_context(postgres())
        files = (f"sqlite:///{folder}/gateways.db", f"sqlite:///{folder}/sellers.db")
        database = server.new_database()
        stores = {"SQLite": files, "PostgreSQL": (database, database)}
        sections["processes"] = [
            row
            for number, (store, urls) in enumerate(stores.items())
            for row in share_store(
                store,
                folder,
                urls,
                teams=sizes.teams,
                claims=sizes.claims[number],
                reservations=sizes.reservations[number],
                apart=sizes.apart,
            )
        ]
    return sections


def growth(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    """Return by what factor a column grows with every tenfold size, from the first row to the last."""
    decades = math.log10(rows[-1]["size"] / rows[0]["size"])
    factor: float = (rows[-1][column] / rows[0][column]) ** (1 / decades)
    return factor


def main(arguments: Sequence[str]) -> int:
    """Measure and print. Return 1 when something grows that must not."""
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    sections = measure(QUICK if options.quick else DEFAULT)
    gates = [
        Gate(f"growth of {promise}", "at most", FLAT_PER_DECADE, growth(sections[section], column))
        for section, column, promise in FLAT
    ]
    document = {
        "bench": "scale",
        "machine": this_machine(),
        "quick": options.quick,
        "sections": sections,
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    shown = [*lines(document), *gate_lines(gates), "", f"{document['took_s']} s"]
    print_document(document, as_json=options.json, human=lambda: print("\n".join(shown)))
    return 0 if options.quick or gates_met(gates) else 1


def lines(document: Mapping[str, Any]) -> list[str]:
    """Return the rows of a document as lines of plain text."""
    shown = ["scale: what an operation costs by what is in the books", ""]
    for section, title in _TITLES.items():
        rows = document["sections"][section]
        columns = [column for column in rows[0] if column != "size"]
        shown.append(f"{title:<55}" if len(title) > 54 else title)
        shown.append(f"{'':>12}" + "".join(f"{_heading(column):>17}" for column in columns))
        shown += [f"{row['size']:>12,}" + "".join(f"{row[column]:>17,.2f}" for column in columns) for row in rows]
        shown.append(f"{'x a decade':>12}" + "".join(f"{growth(rows, column):>17.2f}" for column in columns))
        shown.append("")
    shown.append("processes on one store: claims and reservations a second, of all together")
    head = f"{'store':<12}{'gateways':>9}{'claims/s':>10}{'p99 ms':>9}{'sellers':>9}{'reserved/s':>12}{'p99 ms':>9}"
    shown.append(head)
    for row in document["sections"]["processes"]:
        figures = (row["claim_per_s"], row["claim_p99_ms"], row["reserve_per_s"], row["reserve_p99_ms"])
        claimed, claim_ms, reserved, reserve_ms = ("" if each is None else f"{each:,.1f}" for each in figures)
        shown.append(
            f"{row['store']:<12}{row['gateways']:>9}{claimed:>10}{claim_ms:>9}{row['sellers']:>9}"
            f"{reserved:>12}{reserve_ms:>9}"
        )
    return [*shown, ""]


def _heading(column: str) -> str:
    """Turn "claim_cpu_us" into "claim, CPU us"."""
    words = column.split("_")
    unit = {"us": "us", "ms": "ms", "mb": "MiB"}[words[-1]]
    return " ".join(words[:-1]).replace(" cpu", ", CPU") + f" {unit}"

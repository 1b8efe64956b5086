"""The same with a real pool, a real seller and a local chain: `python -m bench executor --live`.

What dies is a whole buyer: the delegator, its desk and its pool in one process, in the middle of whatever it does. In
the end the journal, the receipts and the chain are compared to the unit.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gates import Gate, gate_lines, gates_met
from bench.idle_town import IdleTown, open_idle_town
from bench.live_carriers import plan
from bench.machine import this_machine
from buyer.budgets import budget_units
from buyer.home import Home
from buyer.limits import SIGN_COUNT_MAX
from buyer.pool import Pool
from contracts.console import print_document
from contracts.tiers import NORMAL
from gateway.delegator.delegation import journal_url, receipts_in
from gateway.delegator.journal import Journal

__all__ = ["main"]

_SEED = 13
_KILLS = 200
_PAYMENTS_A_KILL = 16
_SLOTS = 8
# A slow machine kills as often as it can in this time, or in that for every kill, and says how often that was.
_KILLS_TIMEOUT_S = 480.0
_KILL_TIMEOUT_S = 2.5
_SETTLED_TIMEOUT_S = 120.0
_RUNS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Books:
    """What was found when all was over. Money in atomic units."""

    runs: int
    runs_done: int
    payments: int
    paid_twice: int
    not_bought: int
    lost: int
    journal_atomic: int
    receipts_atomic: int
    chain_atomic: int


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench executor --live", description=__doc__)
    parser.add_argument("--kill", type=int, default=_KILLS, metavar="N", help=f"buyers to kill ({_KILLS})")
    parser.add_argument("--seed-base", type=int, default=_SEED, help=f"the seed ({_SEED})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a text")
    options = parser.parse_args(arguments)
    if options.kill < 1:
        parser.error("expected at least one kill")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        killed, books = asyncio.run(_measured(Path(folder), options.kill, options.seed_base))
    gates = [
        Gate("buyers killed", "at least", options.kill, killed),
        Gate("nodes paid twice", "at most", 0, books.paid_twice),
        Gate("nodes of the plans that were not bought", "at most", 0, books.not_bought),
        Gate("paid answers lost", "at most", 0, books.lost),
        Gate("runs without their whole answer", "at most", 0, books.runs - books.runs_done),
        Gate("journal less receipts, in atomic units", "at most", 0, abs(books.journal_atomic - books.receipts_atomic)),
        Gate("chain less receipts, in atomic units", "at most", 0, abs(books.chain_atomic - books.receipts_atomic)),
    ]
    document: dict[str, Any] = {
        "machine": this_machine(),
        "seed": options.seed_base,
        "killed": killed,
        "books": asdict(books),
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(document, gates))
    return 0 if gates_met(gates) else 1


async def _measured(folder: Path, kills: int, seed: int) -> tuple[int, Books]:
    timeout_s = max(_KILLS_TIMEOUT_S, kills * _KILL_TIMEOUT_S)
    payments = min(kills * _PAYMENTS_A_KILL + 50, SIGN_COUNT_MAX)
    async with open_idle_town(folder, slots=_SLOTS, payments={NORMAL: payments}) as town:
        home = town.homes[NORMAL]
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bench.live_carriers", str(home), str(kills), str(seed), str(timeout_s)),
            cwd=Path(__file__).parents[1],
            env={**os.environ, **town.crew.environment},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
        assert child.returncode == 0, "the process that kills has failed"
        return int(output), await _audited(town, home)


async def _audited(town: IdleTown, path: Path) -> Books:
    home = Home.open(path)
    journal = Journal.open(journal_url(home))
    try:
        runs = [journal.find(run.id) for run in journal.recent(_RUNS_MAX)]
    finally:
        journal.close()
    sold: Counter[tuple[str, str]] = Counter()
    lost = receipts_atomic = payments = 0
    with Pool.open(home) as pool:
        (asset,) = pool.assets().values()
        for run in runs:
            receipts = receipts_in(pool, run)
            for attempt in run.attempts:
                receipt = receipts.get(attempt.key)
                if receipt is not None and receipt.state == "spent":
                    payments += 1
                    receipts_atomic += receipt.price_atomic
                    sold[run.id, attempt.node_id] += 1
                    lost += attempt.result is None
        spent_atomic = pool.counts(NORMAL).spent * pool.purchase(NORMAL).offer.amount_atomic
    assert spent_atomic == receipts_atomic, "the pool has spent what no attempt asked for"
    journal_units = sum(attempt.paid_units or 0 for run in runs for attempt in run.attempts)
    deadline_s = time.monotonic() + _SETTLED_TIMEOUT_S
    while town.earned_atomic() != receipts_atomic and time.monotonic() < deadline_s:  # noqa: ASYNC110 - the chain
        await asyncio.sleep(0.2)
    return Books(
        runs=len(runs),
        runs_done=sum(run.state == "done" for run in runs),
        payments=payments,
        paid_twice=sum(count > 1 for count in sold.values()),
        not_bought=len(runs) * len(plan().nodes) - len(sold),
        lost=lost,
        journal_atomic=journal_units // budget_units(1, asset),
        receipts_atomic=receipts_atomic,
        chain_atomic=town.earned_atomic(),
    )


def _print(document: dict[str, Any], gates: Sequence[Gate]) -> None:
    books = document["books"]
    print(
        f"{document['killed']:,} buyers were killed while they carried out {books['runs']:,} runs.\n"
        f"{books['payments']:,} payments; {books['chain_atomic']:,} atomic units by chain, "
        f"{books['receipts_atomic']:,} by receipts, {books['journal_atomic']:,} by journal."
    )
    print("\n" + "\n".join(gate_lines(gates)) + f"\n{document['took_s']} s")

"""What `kill -9` does to runs, and what the engine itself costs: `python -m bench executor`.

Children carry out graphs and are killed at random moments; whoever comes next takes the open run up. In the end every
payment that was ever made is compared with the journal: a node paid for twice, or an answer that was paid for and is
not there, is a failure. Then graphs that do nothing but take their turn show what the engine takes per node.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.bank import Bank, Payment
from bench.carriers import carry_out_runs, drawn, kill_again_and_again, number_of, run_id
from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from bench.stores import postgres
from contracts.console import print_document
from gateway.delegator.calls import Answer
from gateway.delegator.dbos_engine import DbosEngine
from gateway.delegator.job import Job
from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.plan import Node
from gateway.delegator.run import Limits, run_plan
from gateway.delegator.schedule import cost_units
from tests.stores.servers import OwnServer

__all__ = ["main"]

_SEED = 11
_KILLS = 1_000
_STORES = ("sqlite", "postgres")
# A child lives for at most this long after it is ready. Runs take some tens of milliseconds.
_LIFE_S_MAX = {"asyncio": 0.08, "dbos": 3.0}
# A slow machine kills as often as it can in this time, or in that for every kill, and says how often that was.
_KILLS_TIMEOUT_S = 540.0
_KILL_TIMEOUT_S = {"asyncio": 0.5, "dbos": 5.0}
_DBOS_LOOKS_S = 1.0
_RUNS_TIMED = 12
_CPU_US_MAX = 500


@dataclass(frozen=True, slots=True)
class Books:
    """What was found when all was over. Units of money are those of the delegator."""

    runs: int
    runs_done: int
    payments: int
    paid_twice: int
    lost: int
    changed: int
    without_intent: int
    journal_units: int
    paid_units: int
    over_budget: int


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    if "--live" in arguments:
        live: Any = import_module("bench.executor_live")
        return int(live.main([each for each in arguments if each != "--live"]))
    parser = argparse.ArgumentParser(prog="python -m bench executor", description=__doc__)
    parser.add_argument("--live", action="store_true", help="with a real pool, seller and chain; has its own --help")
    parser.add_argument("--kill", type=int, default=_KILLS, metavar="N", help=f"children to kill ({_KILLS})")
    parser.add_argument("--store", choices=_STORES, help="where the journal is (sqlite; postgres with --engine dbos)")
    parser.add_argument("--engine", choices=_LIFE_S_MAX, default="asyncio", help="what carries runs out (asyncio)")
    parser.add_argument("--processes", type=int, help="children at once (1; 2 with postgres)")
    parser.add_argument("--seed-base", type=int, default=_SEED, help=f"the seed ({_SEED})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a text")
    options = parser.parse_args(arguments)
    store = options.store or ("postgres" if options.engine == "dbos" else "sqlite")
    at_once = options.processes or (2 if store == "postgres" else 1)
    if options.kill < 1 or at_once < 1:
        parser.error("expected at least one kill and one process")
    if options.engine == "dbos" and store == "sqlite":
        parser.error("--engine dbos: needs --store postgres")
    work = _carry_out if options.engine == "asyncio" else _carry_out_by_dbos
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder, _store(store, folder) as url:
        bank = Path(folder) / "bank.db"
        killed = kill_again_and_again(
            lambda ready: asyncio.run(work(url, bank, ready)),
            options.kill,
            at_once=at_once,
            seed=options.seed_base,
            life_s_max=_LIFE_S_MAX[options.engine],
            timeout_s=max(_KILLS_TIMEOUT_S, options.kill * _KILL_TIMEOUT_S[options.engine]),
            done=lambda: _payments(bank),
        )
        books, left_behind = _end(url, bank)
        cpu_us, wall_us = asyncio.run(_per_node_us(url))
    gates = [
        Gate("children killed", "at least", options.kill, killed),
        Gate("nodes paid twice", "at most", 0, books.paid_twice),
        Gate("paid answers lost", "at most", 0, books.lost),
        Gate("keys presented with other words", "at most", 0, books.changed),
        Gate("payments without an intent", "at most", 0, books.without_intent),
        Gate("spent by the journal less what was paid", "at most", 0, abs(books.journal_units - books.paid_units)),
        Gate("runs over their budget", "at most", 0, books.over_budget),
    ]
    if store == "sqlite":
        # With a server it is mostly the driver's time, and told without a promise.
        gates.append(Gate("the engine's CPU time per node, in us", "at most", _CPU_US_MAX, cpu_us))
    document: dict[str, Any] = {
        "machine": this_machine(),
        "seed": options.seed_base,
        "store": store,
        "engine": options.engine,
        "processes": at_once,
        "killed": killed,
        "killed_with_an_open_call": left_behind[0],
        "killed_with_a_paid_call_not_written_down": left_behind[1],
        "books": {key: str(value) if key.endswith("units") else value for key, value in asdict(books).items()},
        "per_node": {"cpu_us": cpu_us, "wall_us": wall_us},
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(document, gates))
    return 0 if gates_met(gates) else 1


@contextlib.contextmanager
def _store(kind: str, folder: str) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/runs.db"
        return
    with postgres() as server:
        if isinstance(server, OwnServer):
            server.wait_settled()
        yield server.new_database()


async def _carry_out(url: str, path: Path, ready: Callable[[], None]) -> None:
    journal, bank = Journal.open(url), Bank(path)
    try:
        ready()
        await carry_out_runs(journal, bank, saw=bank.note)
    finally:
        bank.close()
        journal.close()


async def _carry_out_by_dbos(url: str, path: Path, ready: Callable[[], None]) -> None:
    journal, bank, luck = Journal.open(url), Bank(path), random.Random()

    async def take_up(run: Run) -> Job:
        bank.note(run)
        return Job(drawn(number_of(run)), bank, Limits(run.budget_units))

    engine = DbosEngine.launch(url, journal, take_up)

    async def recover() -> None:
        if await engine.recover():
            # Now and then it is left to DBOS, which looks every second for what there is to do.
            await asyncio.sleep(luck.random() * _DBOS_LOOKS_S * 2)

    try:
        ready()
        await carry_out_runs(journal, bank, carry=engine.run, saw=bank.note, recover=recover)
    finally:
        engine.close()
        bank.close()
        journal.close()


def _payments(path: Path) -> int:
    bank = Bank(path)
    try:
        return bank.count()
    finally:
        bank.close()


def _end(url: str, path: Path) -> tuple[Books, tuple[int, int]]:
    """Let the run that is open end, and audit all of them."""
    journal, bank = Journal.open(url), Bank(path)
    try:
        last = len(journal.recent(1_000_000))
        asyncio.run(carry_out_runs(journal, bank, last=last, saw=bank.note))
        runs = [journal.find(run_id(number)) for number in range(1, last + 1)]
        return _audited(runs, bank.payments()), bank.left_behind()
    finally:
        bank.close()
        journal.close()


def _audited(runs: Sequence[Run], payments: Mapping[str, Payment]) -> Books:
    sold: Counter[tuple[str, str]] = Counter()
    lost = over_budget = journal_units = 0
    known: set[str] = set()
    for run in runs:
        spent = sum(attempt.paid_units or 0 for attempt in run.attempts)
        journal_units += spent
        over_budget += spent > run.budget_units
        for attempt in run.attempts:
            known.add(attempt.key)
            payment = payments.get(attempt.key)
            if payment is not None and payment.is_good:
                sold[run.id, attempt.node_id] += 1
                lost += attempt.result is None
    return Books(
        runs=len(runs),
        runs_done=sum(run.state == "done" for run in runs),
        payments=len(payments),
        paid_twice=sum(count > 1 for count in sold.values()),
        lost=lost,
        changed=sum(payment.changed for payment in payments.values()),
        without_intent=len(payments.keys() - known),
        journal_units=journal_units,
        paid_units=sum(payment.paid_units for payment in payments.values()),
        over_budget=over_budget,
    )


async def _per_node_us(url: str) -> tuple[float, float]:
    """Return what a node takes that is answered at once, its two synced rows included: CPU, and wall time."""

    async def at_once(node: Node, attempt: Attempt) -> Answer:
        return Answer(node.id, attempt.price_units)

    journal, nodes = Journal.open(url), 0
    started_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        for number in range(_RUNS_TIMED):
            planned = drawn(number)
            budget = cost_units(planned.graph, planned.assignment)
            run = Run(f"timed-{number}", "bench", planned.plan.model_dump_json(), "", budget, None, 0)
            journal.begin(run)
            async for _ in run_plan(planned, at_once, journal, run, Limits(budget)):
                pass
            nodes += planned.graph.size
    finally:
        journal.close()
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - started_s
    return cpu_s / nodes * 1e6, wall_s / nodes * 1e6


def _print(document: Mapping[str, Any], gates: Sequence[Gate]) -> None:
    books = document["books"]
    print(
        f"{document['killed']:,} children were killed, {document['processes']} at a time at work, while they carried "
        f"out {books['runs']:,} runs; journal: {document['store']}, engine: {document['engine']}.\n"
        f"{document['killed_with_an_open_call']:,} with a call that had no end, "
        f"{document['killed_with_a_paid_call_not_written_down']:,} with one that was paid for and not written down.\n"
        f"{books['payments']:,} payments, {books['runs_done']:,} runs with their whole answer."
    )
    per_node = document["per_node"]
    print(
        f"A node that is answered at once: {per_node['cpu_us']:,.0f} us of CPU, {per_node['wall_us']:,.0f} us in all,"
    )
    print("with the two synced rows of its payment.")
    print("\n" + "\n".join(gate_lines(gates)) + f"\n{document['took_s']} s")

"""The same with a real seller and real payments: `python -m bench idle --live`.

One seller of four slots (`farebox sell`) with a background tier, one buyer who pays in full through a gateway, at
random, and one who can wait (`farebox background run`). Spells with and without background work take turns, and each
pair of spells has the same calls at the same moments. In the end the chain must agree with both buyers' books.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.gates import Gate, gate_lines, gates_met
from bench.idle_town import MODEL, IdleTown, open_idle_town
from bench.machine import this_machine
from buyer.budgets import parse_units
from buyer.home import Home
from buyer.pool import Pool
from contracts.console import print_document
from contracts.tiers import BACKGROUND, NORMAL
from gateway.background.backlog import Backlog

__all__ = ["main"]

SLOTS = 4
MEAN_S, CHUNK = 0.5, 0.3
LOAD = 0.5
_SEED = 5
_PAIRS, _SPELL_S = 4, 40.0
_PAIRS_QUICK, _SPELL_S_QUICK = 1, 4.0
_GAIN_MIN, _P95_MAX = 0.15, 1.03
_SHORTEST_S = 0.02
_TASKS_MAX = 4_000
_CALL_TIMEOUT_S = 120.0
_BACKGROUND_PRICE = "0.0005"


@dataclass(slots=True)
class Spells:
    """What all spells of one kind came to: how long ordinary calls took, and the work that was answered."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    lasted_s: float = 0.0
    normal_s: float = 0.0
    background_s: float = 0.0

    @property
    def used(self) -> float:
        """The share of the slots' time that ended in an answer."""
        return (self.normal_s + self.background_s) / (SLOTS * self.lasted_s)


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench idle --live", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing")
    parser.add_argument("--seed-base", type=int, default=_SEED, help=f"the seed ({_SEED})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a text")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    pairs, spell_s = (_PAIRS_QUICK, _SPELL_S_QUICK) if options.quick else (_PAIRS, _SPELL_S)
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        without, filled, books = asyncio.run(_measured(Path(folder), pairs, spell_s, options.seed_base))
    p95 = [float(np.quantile(each.latencies_s, 0.95)) for each in (without, filled)]
    gates = [
        Gate("share of the slots gained", "at least", _GAIN_MIN, filled.used - without.used),
        Gate("p95 of ordinary calls", "at most", _P95_MAX, p95[1] / p95[0]),
        Gate("ordinary calls that failed", "at most", 0, without.failed + filled.failed),
        Gate("what the chain moved less what the buyers' books say, in atomic units", "at most", 0, books),
    ]
    document: dict[str, Any] = {
        "machine": machine,
        "seed": options.seed_base,
        "quick": options.quick,
        "load": LOAD,
        "calls": [len(without.latencies_s), len(filled.latencies_s)],
        "used": [without.used, filled.used],
        "mean_s": [float(np.mean(each.latencies_s)) for each in (without, filled)],
        "p95_s": p95,
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(document, gates))
    return 0 if gates_met(gates) or options.quick else 1


async def _measured(folder: Path, pairs: int, spell_s: float, seed: int) -> tuple[Spells, Spells, int]:
    """Return the spells without background work, those with it, and by how much chain and books differ."""
    calls = round(2 * pairs * spell_s * LOAD * SLOTS / MEAN_S * 1.5) + 50
    tasks = min(round(pairs * spell_s * SLOTS / (CHUNK * MEAN_S)), _TASKS_MAX)
    random = np.random.default_rng(seed)
    without, filled = Spells(), Spells()
    async with open_idle_town(folder, slots=SLOTS, payments={NORMAL: calls, BACKGROUND: tasks}) as town:
        gateway = await town.start_gateway()
        with town.backlog() as backlog:
            _fill_backlog(town, backlog, random, tasks)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            async with httpx.AsyncClient(base_url=gateway, timeout=_CALL_TIMEOUT_S, limits=limits) as client:
                await _spell(client, Spells(), random.spawn(1)[0], 1.0)
                for pair in range(pairs):
                    (drawn,) = random.spawn(1)
                    state = drawn.bit_generator.state
                    for kind in (without, filled) if pair % 2 == 0 else (filled, without):
                        drawn.bit_generator.state = state
                        spell = _spell(client, kind, drawn, spell_s)
                        await (spell if kind is without else _filled_spell(town, backlog, kind, spell))
        return without, filled, await _difference(town)


async def _filled_spell(town: IdleTown, backlog: Backlog, kind: Spells, spell: Coroutine[Any, Any, None]) -> None:
    """Let a spell pass while the other buyer is at work."""
    done_before = _done(backlog)
    child = town.start_filling()
    await _until(lambda: _done(backlog) > done_before)
    before_s = _done_s(backlog)
    await spell
    kind.background_s += _done_s(backlog) - before_s
    child.process.send_signal(signal.SIGINT)
    await asyncio.to_thread(child.process.wait, _CALL_TIMEOUT_S)


async def _spell(client: httpx.AsyncClient, kind: Spells, drawn: np.random.Generator, spell_s: float) -> None:
    """Make calls at random moments for `spell_s`, and wait for the last answer."""
    started_s, at_s = time.monotonic(), 0.0
    calls: list[asyncio.Task[None]] = []
    while True:
        at_s += float(drawn.exponential(MEAN_S / (LOAD * SLOTS)))
        takes_s = max(float(drawn.exponential(MEAN_S)), _SHORTEST_S)
        if at_s > spell_s:
            break
        await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
        calls.append(asyncio.create_task(_call(client, kind, started_s + at_s, takes_s)))
    await asyncio.gather(*calls)
    kind.lasted_s += time.monotonic() - started_s


async def _call(client: httpx.AsyncClient, kind: Spells, due_s: float, takes_s: float) -> None:
    messages = [{"role": "user", "content": "now"}]
    body = {"model": f"paid/{MODEL}", "messages": messages, "max_tokens": round(takes_s * 1000)}
    # Without an id of its own, a call like another would be taken for its repetition.
    answer = await client.post("/v1/chat/completions", json=body, headers={"x-farebox-request-id": f"{due_s:.6f}"})
    kind.failed += answer.status_code != 200
    kind.normal_s += takes_s
    kind.latencies_s.append(time.monotonic() - due_s)


def _fill_backlog(town: IdleTown, backlog: Backlog, random: np.random.Generator, tasks: int) -> None:
    units = parse_units(_BACKGROUND_PRICE, "price") or 0
    for takes_s in random.exponential(CHUNK * MEAN_S, tasks):
        town.add(backlog, round(max(float(takes_s), _SHORTEST_S) * 1000), max_price_units=units)


def _done(backlog: Backlog) -> int:
    return backlog.counts().get("done", 0)


def _done_s(backlog: Backlog) -> float:
    """Return how much work the tasks took that are done."""
    done = (task for task in backlog.recent(_TASKS_MAX) if task.state == "done")
    return float(sum(json.loads(task.request)["max_tokens"] for task in done)) / 1000


async def _difference(town: IdleTown) -> int:
    """Wait until everything is settled, and return by how much the chain and the buyers' books differ."""
    books = 0
    for tier, home in town.homes.items():
        with Pool.open(Home.open(home)) as pool:
            purchase = pool.purchase(tier)
            books += pool.counts(tier).spent * purchase.offer.amount_atomic
    with contextlib.suppress(TimeoutError):
        await _until(lambda: town.earned_atomic() == books)
    return abs(town.earned_atomic() - books)


async def _until(is_so: Any) -> None:
    async with asyncio.timeout(_CALL_TIMEOUT_S):
        while not is_so():  # noqa: ASYNC110 - it becomes true in another process
            await asyncio.sleep(0.05)


def _print(document: dict[str, Any], gates: Sequence[Gate]) -> None:
    print(f"{'':<28}{'calls':>7}{'slots used':>12}{'mean s':>9}{'p95 s':>9}")
    for place, name in enumerate(("without background work", "with background work")):
        print(
            f"{name:<28}{document['calls'][place]:>7}{document['used'][place]:>12.2f}"
            f"{document['mean_s'][place]:>9.3f}{document['p95_s'][place]:>9.3f}"
        )
    print("\n" + "\n".join(gate_lines(gates)) + f"\n{document['took_s']} s")

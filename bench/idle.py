"""What filling idle slots brings, and what it costs the calls that pay in full: `python -m bench idle`.

One seller of four slots, calls at random, and as much background work as it takes: how much of the slots is used, and
how much longer the ordinary calls take. Nothing is stopped once it has begun, except where a row says so. Times are in
units of a mean call. Every rule meets the same calls. `--live` does it once with a real seller (`bench.idle_live`).
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from bench.paired import Interval, interval
from bench.processes import in_processes
from contracts.console import print_document

__all__ = ["main"]

SLOTS = 4
LOADS = (0.4, 0.6, 0.75)
_SEED, _SEEDS, _CALLS = 3, 8, 12_000
_GAIN_MIN, _P95_MAX = 0.15, 1.03


@dataclass(frozen=True, slots=True)
class Rule:
    """How background work is let in. `chunk`: its mean length. `kept_free`: slots it leaves. `yields`: may be stopped.

    Work that is stopped is not charged, and begins anew later: what was done of it is lost.
    """

    name: str
    chunk: float
    kept_free: int
    yields: bool = False


GATED = Rule("one slot kept free, chunks of 0.3", 0.3, 1)
RULES = (
    Rule("all slots filled, chunks of 1.0", 1.0, 0),
    Rule("all slots filled, chunks of 0.1", 0.1, 0),
    Rule("one slot kept free, chunks of 1.0", 1.0, 1),
    GATED,
    Rule("one slot kept free, chunks of 0.3, stopped for others", 0.3, 1, yields=True),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one rule did in one world. `useful` is the share of slot time that ended in an answer."""

    useful: float
    mean: float
    p95: float
    stopped: int


def simulated(load: float, rule: Rule | None, seed: int, calls: int) -> Seen:
    """Return what a seller of `SLOTS` slots sees of `calls` calls at `load`, with background work by `rule`."""
    random = np.random.default_rng(seed)
    comes = np.cumsum(random.exponential(1 / (load * SLOTS), calls)).tolist()
    takes = random.exponential(1.0, calls).tolist()
    chunks = np.random.default_rng(seed + 1)
    return _Seller(comes, takes, rule, chunks).served()


class _Seller:
    """One seller from its first call to the end of its last."""

    def __init__(
        self, comes: Sequence[float], takes: Sequence[float], rule: Rule | None, chunks: np.random.Generator
    ) -> None:
        self._comes, self._takes, self._rule, self._chunks = comes, takes, rule, chunks
        # (end, number) of each slot's work; background work has numbers below zero.
        self._works: list[tuple[float, int]] = []
        self._begun: dict[int, float] = {}
        self._queue: deque[int] = deque()
        self._latency = np.zeros(len(comes))
        self._useful_s, self._filled, self._stopped = 0.0, 0, 0

    def served(self) -> Seen:
        """Serve everybody."""
        next_call, now_s, count = 0, 0.0, len(self._comes)
        done = 0
        self._fill(now_s)
        while done < count:
            ends_s = self._works[0][0] if self._works else float("inf")
            if next_call < count and self._comes[next_call] <= ends_s:
                now_s = self._comes[next_call]
                self._queue.append(next_call)
                next_call += 1
                self._make_room()
            else:
                now_s, number = heapq.heappop(self._works)
                if number in self._begun:
                    self._useful_s += now_s - self._begun.pop(number)
                    if number >= 0:
                        self._latency[number] = now_s - self._comes[number]
                        done += 1
            self._start_waiting(now_s)
            self._fill(now_s)
        latency = self._latency
        return Seen(
            self._useful_s / (SLOTS * now_s), float(latency.mean()), float(np.quantile(latency, 0.95)), self._stopped
        )

    def _start_waiting(self, now_s: float) -> None:
        while self._queue and len(self._begun) < SLOTS:
            number = self._queue.popleft()
            self._begun[number] = now_s
            heapq.heappush(self._works, (now_s + self._takes[number], number))

    def _make_room(self) -> None:
        if self._rule is None or not self._rule.yields or len(self._begun) < SLOTS:
            return
        filling = [number for number in self._begun if number < 0]
        if filling:
            # The latest has least to lose.
            del self._begun[min(filling)]
            self._stopped += 1

    def _fill(self, now_s: float) -> None:
        if self._rule is None:
            return
        while not self._queue and len(self._begun) < SLOTS - self._rule.kept_free:
            self._filled += 1
            self._begun[-self._filled] = now_s
            heapq.heappush(self._works, (now_s + float(self._chunks.exponential(self._rule.chunk)), -self._filled))


def _world(job: tuple[float, int, int]) -> list[tuple[float, ...]]:
    """Return for each rule: the slots' use, its gain, and mean and p95 of ordinary calls over those without it."""
    load, seed, calls = job
    alone = simulated(load, None, seed, calls)
    rows: list[tuple[float, ...]] = [(alone.useful, 0.0, 1.0, 1.0, 0)]
    for rule in RULES:
        seen = simulated(load, rule, seed, calls)
        rows.append(
            (seen.useful, seen.useful - alone.useful, seen.mean / alone.mean, seen.p95 / alone.p95, seen.stopped)
        )
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    if "--live" in arguments:
        live: Any = import_module("bench.idle_live")
        return int(live.main([each for each in arguments if each != "--live"]))
    parser = argparse.ArgumentParser(prog="python -m bench idle", description=__doc__)
    parser.add_argument("--live", action="store_true", help="with a real seller and real payments; has its own --help")
    parser.add_argument("--seeds", type=int, default=_SEEDS, help=f"worlds of each load ({_SEEDS})")
    parser.add_argument("--calls", type=int, default=_CALLS, help=f"ordinary calls of each world ({_CALLS})")
    parser.add_argument("--seed-base", type=int, default=_SEED, help=f"the first seed ({_SEED})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.calls < 1:
        parser.error("expected at least one seed and one call")
    started = time.monotonic()
    jobs = [(load, options.seed_base + seed, options.calls) for load in LOADS for seed in range(options.seeds)]
    worlds = in_processes(_world, jobs)
    names = ["no background work", *(rule.name for rule in RULES)]
    found: dict[float, dict[str, list[Interval]]] = {}
    for place, load in enumerate(LOADS):
        of_load = worlds[place * options.seeds : (place + 1) * options.seeds]
        found[load] = {
            name: [interval([world[rule][figure] for world in of_load]) for figure in range(5)]
            for rule, name in enumerate(names)
        }
    gated = {load: by_rule[GATED.name] for load, by_rule in found.items()}
    gates = [
        Gate(
            f"share of the slots gained at each load, {GATED.name}",
            "at least",
            _GAIN_MIN,
            min(each[1].low for each in gated.values()),
        ),
        Gate(
            f"p95 of ordinary calls at each load, {GATED.name}",
            "at most",
            _P95_MAX,
            max(each[3].mean + each[3].plus_minus for each in gated.values()),
        ),
    ]
    document: dict[str, Any] = {
        "machine": this_machine(),
        "seed": options.seed_base,
        "seeds": options.seeds,
        "calls": options.calls,
        "loads": {
            str(load): {name: _row(figures) for name, figures in by_rule.items()} for load, by_rule in found.items()
        },
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(found, gates))
    return 0 if gates_met(gates) else 1


def _row(figures: Sequence[Interval]) -> dict[str, Any]:
    used, gained, mean, p95, stopped = figures
    return {
        "used": used.mean,
        "gained": gained.mean,
        "gained_plus_minus": gained.plus_minus,
        "mean": mean.mean,
        "p95": p95.mean,
        "p95_plus_minus": p95.plus_minus,
        "stopped": stopped.mean,
    }


def _print(found: Mapping[float, Mapping[str, Sequence[Interval]]], gates: Sequence[Gate]) -> None:
    for load, by_rule in found.items():
        print(f"load {load:g}{'used':>56}{'gained':>16}{'mean':>7}{'p95':>15}")
        for name, (used, gained, mean, p95, _) in by_rule.items():
            print(
                f"  {name:<55}{used.mean:>6.2f}{gained.mean:>10.2f} ±{gained.plus_minus:.2f}{mean.mean:>8.2f}"
                f"{p95.mean:>9.3f} ±{p95.plus_minus:.3f}"
            )
        print()
    print("\n".join(gate_lines(gates)))

"""How long a decision takes: `python -m bench latency`.

Eighteen offers, as six sellers with three tiers make; every policy, and the trees also while a training runs in another
process, as it does in the gateway. Decisions are timed one by one.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from contracts.console import print_document
from gateway.bidder.choose import choose
from gateway.bidder.explain import explain_model
from gateway.bidder.linucb import LinUCB
from gateway.bidder.market import Market
from gateway.bidder.model import Example, ForestPolicy, train
from gateway.bidder.policy import Policy
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest, EwmaUtility
from gateway.bidder.simulation.choosers import Chooser
from gateway.bidder.simulation.market import Ended, Live, World, play
from gateway.bidder.task import Offer, Task
from gateway.bidder.trainer import train_elsewhere

__all__ = ["main"]

OFFERS = 18
TRAINED_ON = 8_000
P50_MAX_MS, P99_MAX_MS, RETRAIN_MAX_S = 1.0, 5.0, 5.0


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench latency", description=__doc__)
    parser.add_argument("--decisions", type=int, default=3_000, help="how many for each policy (3000)")
    parser.add_argument("--seed-base", type=int, default=0, help="the seed (0)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.decisions < 10:
        parser.error("--decisions: expected at least 10")
    calls, examples = _seen(options.seed_base)
    started = time.perf_counter()
    forest = train(examples, options.seed_base)
    retrain_s = time.perf_counter() - started
    trees = ForestPolicy(forest)
    policies: list[Policy] = [Cheapest(), EwmaUtility(), QueueRule(), LinUCB(), trees]
    rows = {policy.name: _timed(policy, calls, options.decisions) for policy in policies}
    rows["lightgbm, while training"] = asyncio.run(_while_training(trees, calls, examples, options.decisions))
    before = time.perf_counter()
    explain_model(forest, examples[0].row)
    contributions_ms = (time.perf_counter() - before) * 1000
    size_kb = sum(len(each.model_to_string()) for each in (forest.on_time, forest.quality)) / 1000
    busy = rows["lightgbm, while training"]
    gates = [
        Gate(f"a decision by trees on {OFFERS} offers, median, ms", "at most", P50_MAX_MS, rows["lightgbm"]["p50_ms"]),
        Gate("the same while a training runs, median, ms", "at most", P50_MAX_MS, busy["p50_ms"]),
        Gate(f"a training on {len(examples)} outcomes, s", "at most", RETRAIN_MAX_S, retrain_s),
    ]
    document: dict[str, Any] = {
        "machine": this_machine(),
        "offers": OFFERS,
        "policies": rows,
        "p99_target_ms": P99_MAX_MS,
        "retrain_s": retrain_s,
        "outcomes": len(examples),
        "contributions_ms": contributions_ms,
        "model_kb": size_kb,
        "gates": [gate.document() for gate in gates],
    }

    def human() -> None:
        print(f"{'policy':<28}{'p50 ms':>9}{'p99 ms':>9}")
        for name, row in rows.items():
            print(f"{name:<28}{row['p50_ms']:>9.3f}{row['p99_ms']:>9.3f}")
        print(f"training {retrain_s:.2f} s, contributions {contributions_ms:.1f} ms, model {size_kb:.0f} kB\n")
        print("\n".join(gate_lines(gates)))

    print_document(document, as_json=options.json, human=human)
    return 0 if gates_met(gates) else 1


Call = tuple[Task, list[Offer], float]


def _seen(seed: int) -> tuple[list[Call], list[Example]]:
    """Return the calls of one simulated market, and what came of them."""
    world, chooser = World(seed, TRAINED_ON), Chooser(QueueRule(), seed)
    calls: list[Call] = []
    examples: list[Example] = []

    def look(index: int, task: Task, offers: list[Offer], sellers: list[Live], now_s: float) -> int | None:
        calls.append((task, offers, now_s))
        return chooser.choose(index, task, offers, sellers, now_s)

    def learn(ended: Ended) -> None:
        examples.append(chooser.example(ended))
        chooser.observe(ended)

    play(world, look, learn)
    return calls, examples


def _decide(policy: Policy, calls: Sequence[Call]) -> Callable[[int], None]:
    market, random = Market(), Random(0)
    for task, offers, _ in calls[:50]:
        for offer in offers:
            market.see(task, offer)

    def decide(number: int) -> None:
        task, offers, now_s = calls[number % len(calls)]
        choose(task, offers, market, now_s, policy=policy, random=random)

    return decide


def _timed(policy: Policy, calls: Sequence[Call], count: int) -> dict[str, float]:
    decide, took_ms = _decide(policy, calls), []
    for number in range(count):
        before = time.perf_counter()
        decide(number)
        took_ms.append((time.perf_counter() - before) * 1000)
    return _percentiles(took_ms)


async def _while_training(
    policy: Policy, calls: Sequence[Call], examples: Sequence[Example], count: int
) -> dict[str, float]:
    decide, took_ms = _decide(policy, calls), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        training = asyncio.create_task(train_elsewhere(examples, place / "models", place / "key", 0))
        number = 0
        while not training.done() or number < count // 10:
            before = time.perf_counter()
            decide(number)
            took_ms.append((time.perf_counter() - before) * 1000)
            number += 1
            await asyncio.sleep(0)
        await training
    return _percentiles(took_ms)


def _percentiles(took_ms: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(took_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}

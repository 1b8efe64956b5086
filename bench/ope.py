"""Whether a policy can be judged by another's log: `python -m bench ope`.

A logging policy takes its best action, and any other one with a stated probability; a different policy is then judged
by four estimators from that log alone. The simulator knows the truth. Sealed limits on a coarse grid are the actions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.gates import Gate, gate_lines, gates_met
from bench.limit import SealedWorld
from bench.machine import this_machine
from bench.processes import in_processes
from contracts.console import print_document
from gateway.bidder.ope import direct, doubly_robust, ips, snips
from gateway.bidder.simulation.market import Array

__all__ = ["main"]

ACTIONS = np.array([0.45, 0.55, 0.65, 0.75, 0.85, 1.0])
SHARES = (0.02, 0.1, 0.3)
GATED_SHARE = 0.1
_LOAD = 0
_TREES = 80
_PARAMETERS: dict[str, Any] = {
    "objective": "regression",
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 1,
    "verbose": -1,
}


def _run(job: tuple[int, int, float]) -> dict[str, tuple[float, float, float]]:
    """Return, by estimator, (estimate, half the interval, truth) for one seed and one share of exploration."""
    seed, orders, share = job
    world, random = SealedWorld(seed, orders), np.random.default_rng(seed + 99)
    without = np.maximum(0, world.value - 1) - world.delay
    rewards_of = np.where(
        ACTIONS[None] >= world.reserve[:, None], world.value[:, None] - ACTIONS[None], without[:, None]
    )
    every, load = np.arange(orders), world.rows[:, _LOAD]
    propensities = np.full((orders, len(ACTIONS)), share / len(ACTIONS))
    propensities[every, np.where(load > 0.7, 4, 2)] += 1 - share
    taken = np.array([random.choice(len(ACTIONS), p=each) for each in propensities])
    target = np.where(load > 0.8, 5, np.where(load > 0.55, 3, 1))
    rewards = rewards_of[every, taken]
    weights = (target == taken) / propensities[every, taken]
    of_logged, of_target = _modelled(world, taken, target, rewards)
    truth = float(rewards_of[every, target].mean())
    estimates = {
        "ips": ips(rewards, weights),
        "snips": snips(rewards, weights),
        "direct": direct(of_target, weights),
        "doubly_robust": doubly_robust(rewards, weights, of_logged, of_target),
    }
    return {name: (each.value, each.plus_minus, truth) for name, each in estimates.items()}


def _modelled(world: SealedWorld, taken: Array, target: Array, rewards: Array) -> tuple[Array, Array]:
    """Return a model's rewards of the logged and the target's actions, each half fitted on the other half."""
    import lightgbm as lgb

    known = np.column_stack([world.rows, world.value, world.delay])
    logged, wanted = (np.column_stack([known, ACTIONS[actions]]) for actions in (taken, target))
    of_logged, of_target = np.zeros(world.orders), np.zeros(world.orders)
    half = np.arange(world.orders) % 2
    for part in (0, 1):
        fitted = lgb.train(_PARAMETERS, lgb.Dataset(logged[half != part], rewards[half != part]), _TREES)
        of_logged[half == part] = fitted.predict(logged[half == part], num_threads=1)
        of_target[half == part] = fitted.predict(wanted[half == part], num_threads=1)
    return of_logged, of_target


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench ope", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many logs (20)")
    parser.add_argument("--seed-base", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--orders", type=int, default=4_000, help="decisions in each (4000)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.orders < 100:
        parser.error("expected at least one seed and 100 decisions")
    started = time.monotonic()
    seeds = list(range(options.seed_base, options.seed_base + options.seeds))
    shares = {}
    for share in SHARES:
        runs = in_processes(_run, [(seed, options.orders, share) for seed in seeds])
        shares[share] = {name: _summary([run[name] for run in runs]) for name in runs[0]}
    gated = shares[GATED_SHARE]["doubly_robust"]
    gates = [
        Gate(f"error of the doubly robust estimate at {GATED_SHARE:.0%} exploration", "at most", 0.03, gated["rmse"]),
        Gate("its 95 % interval holds the truth", "at least", 0.85, gated["covered"]),
    ]
    document = {
        "machine": this_machine(),
        "seeds": seeds,
        "exploration": {str(share): found for share, found in shares.items()},
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(shares, gates))
    return 0 if gates_met(gates) else 1


def _summary(found: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    errors = np.array([value - truth for value, _, truth in found])
    return {
        "rmse": float(np.sqrt((errors**2).mean())),
        "covered": float(np.mean([abs(value - truth) <= half for value, half, truth in found])),
    }


def _print(shares: dict[float, dict[str, dict[str, float]]], gates: Sequence[Gate]) -> None:
    print("root mean square error of the estimate, and how often its 95 % interval holds the truth")
    names = list(next(iter(shares.values())))
    print(f"{'exploration':<12}" + "".join(f"{name:>22}" for name in names))
    for share, found in shares.items():
        print(f"{share:<12.0%}" + "".join(f"{found[n]['rmse']:>14.3f} ({found[n]['covered']:.2f})" for n in names))
    print()
    print("\n".join(gate_lines(gates)))

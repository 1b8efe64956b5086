"""How much of the reachable utility each way of choosing sellers gets: `python -m bench bidder`.

Every seed draws one market (`gateway.bidder.simulation`); every policy is run past it; what each gets is divided by
what a chooser gets that knows everything but the draws of luck. "Cold" is the first 1,000 tasks, "warm" everything
after a third.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from bench.paired import Interval, interval
from bench.processes import in_processes
from contracts.console import print_document
from gateway.bidder.simulation.choosers import POLICIES, informed
from gateway.bidder.simulation.market import Live, Shock, World, play
from gateway.bidder.simulation.shares import COLD_TASKS, Share, play_policy, share_of, shares_of_seed
from gateway.bidder.task import Offer, Task

__all__ = ["main", "measure"]

# A shock strikes at these shares of the run; within RECOVERY_TASKS of it, 95 % of the utility must be back.
SLOWED_AT, DEAD_AT = 0.5, 0.75
SLOWED_SELLER, DEAD_SELLER = 3, 5
RECOVERY_TASKS, RECOVERY_SHARE, RECOVERY_WINDOW = 300, 0.95, 700


@dataclass(frozen=True, slots=True)
class Recovery:
    """One policy and one shock: its share of the informed chooser's utility before, and after `RECOVERY_TASKS`."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class _Job:
    seed: int
    tasks: int
    policies: Sequence[str]
    shocks: Sequence[Shock] = ()


def measure(seeds: Sequence[int], tasks: int, policies: Sequence[str]) -> dict[str, list[Share]]:
    """Return the shares of each policy, one for each seed."""
    jobs = [_Job(seed, tasks, policies) for seed in seeds]
    runs = in_processes(_run_seed, jobs)
    return {name: [run[name] for run in runs] for name in policies}


def recover(seeds: Sequence[int], tasks: int, policies: Sequence[str]) -> dict[str, dict[str, list[Recovery]]]:
    """Return, by shock and policy, what it had before and after, one for each seed."""
    shocks = {
        "half_speed": Shock(int(tasks * SLOWED_AT), SLOWED_SELLER, 2.0),
        "dead": Shock(int(tasks * DEAD_AT), DEAD_SELLER, None),
    }
    found: dict[str, dict[str, list[Recovery]]] = {}
    for name, shock in shocks.items():
        runs = in_processes(_run_shock, [_Job(seed, tasks, policies, (shock,)) for seed in seeds])
        found[name] = {policy: [run[policy] for run in runs] for policy in policies}
    return found


def _run_seed(job: _Job) -> dict[str, Share]:
    return shares_of_seed(job.seed, job.tasks, job.policies)


def _run_shock(job: _Job) -> dict[str, Recovery]:
    world = World(job.seed, job.tasks, shocks=job.shocks)
    best = play(world, informed(world)).utility
    at = job.shocks[0].at
    before = slice(at - RECOVERY_WINDOW, at)
    after = slice(at + RECOVERY_TASKS, at + RECOVERY_TASKS + RECOVERY_WINDOW)
    found = {}
    for name in job.policies:
        utility = play_policy(world, name, job.seed).utility
        found[name] = Recovery(share_of(utility, best, before), share_of(utility, best, after))
    return found


def _gates(shares: Mapping[str, list[Share]], recoveries: Mapping[str, Mapping[str, list[Recovery]]]) -> list[Gate]:
    ours = shares["lightgbm"]

    def ahead_of(other: str) -> Interval:
        return interval([a.all / b.all - 1 for a, b in zip(ours, shares[other], strict=True)])

    cold, warm, whole = (interval([getattr(share, part) for share in ours]) for part in ("cold", "warm", "all"))
    ewma, rule, linucb = ahead_of("ewma"), ahead_of("rule"), ahead_of("linucb")
    shuffled = interval([a.all / b.all - 1 for a, b in zip(shares["lightgbm_shuffled"], shares["rule"], strict=True)])
    gates = [
        Gate("share of the informed chooser, cold", "at least", 0.90, cold.mean),
        Gate("share of the informed chooser, warm", "at least", 0.92, warm.mean),
        Gate("share of the informed chooser, worst seed", "at least", 0.88, whole.worst),
        Gate("ahead of EWMA utility", "at least", 0.04, ewma.mean),
        Gate("ahead of EWMA utility, lower end of the interval", "at least", 0.0, ewma.low),
        Gate("ahead of the rule", "at least", 0.0, rule.mean),
        Gate("ahead of LinUCB (else LinUCB is the default)", "at least", -0.02, linucb.mean),
        Gate("ahead of the rule when taught shuffled outcomes", "at most", 0.0, shuffled.mean),
    ]
    for shock, by_policy in recoveries.items():
        regained = [each.after / each.before for each in by_policy["lightgbm"]]
        name = f"regained {RECOVERY_TASKS} tasks after a seller is {shock.replace('_', ' ')}"
        gates.append(Gate(name, "at least", RECOVERY_SHARE, interval(regained).mean))
    return gates


def snapshots_differ(seed: int) -> bool:
    """Tell whether the offers for one task differ between a quiet moment and a busy one of the same market."""
    world = World(seed, 600)
    seen: list[tuple[float, list[int]]] = []

    def look(_index: int, task: Task, offers: list[Offer], sellers: list[Live], _now_s: float) -> None:
        load = sum(len(seller.busy) + seller.waiting for seller in sellers)
        per_work = [round(offer.price_units / task.work) for offer in offers]
        seen.append((load, per_work))

    play(world, look)
    quiet, busy = min(seen, key=lambda each: each[0]), max(seen, key=lambda each: each[0])
    return quiet[1] != busy[1]


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench bidder", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many markets (20)")
    parser.add_argument("--seed-base", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--tasks", type=int, default=6_000, help="tasks in each market (6000)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.tasks < 3 * COLD_TASKS:
        parser.error(f"expected at least one seed and {3 * COLD_TASKS} tasks")
    started = time.monotonic()
    seeds = range(options.seed_base, options.seed_base + options.seeds)
    shares = measure(seeds, options.tasks, list(POLICIES))
    recoveries = recover(seeds, options.tasks, ["rule", "linucb", "lightgbm"])
    gates = _gates(shares, recoveries)
    gates.append(Gate("markets under two loads that differ", "at least", 1, float(snapshots_differ(seeds[0]))))
    document = {
        "machine": this_machine(),
        "seeds": list(seeds),
        "tasks": options.tasks,
        "policies": {name: _summary(each) for name, each in shares.items()},
        "shocks": {
            shock: {
                name: {
                    "before": interval([each.before for each in runs]).mean,
                    "after": interval([each.after for each in runs]).mean,
                }
                for name, runs in by_policy.items()
            }
            for shock, by_policy in recoveries.items()
        },
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(shares, gates, document["took_s"]))
    return 0 if gates_met(gates) else 1


def _summary(shares: Sequence[Share]) -> dict[str, Any]:
    """Return one policy's means over seeds: "cold", "warm" and "worst_seed" are shares of the informed chooser."""
    summary: dict[str, Any] = {
        name: asdict(interval([getattr(share, name) for share in shares])) for name in ("cold", "warm", "all")
    }
    summary["worst_seed"] = min(share.all for share in shares)
    for name in ("hit", "cost_per_good", "skipped"):
        summary[name] = float(np.mean([getattr(share, name) for share in shares]))
    return summary


def _print(shares: Mapping[str, Sequence[Share]], gates: Sequence[Gate], took_s: Any) -> None:
    print("share of the informed chooser's utility, mean ± 95 % over seeds")
    print(f"{'policy':<20}{'cold':>15}{'warm':>15}{'worst seed':>12}{'good':>8}{'cost/good':>11}{'skipped':>9}")
    for name, each in shares.items():
        cold, warm = (interval([getattr(share, part) for share in each]) for part in ("cold", "warm"))
        summary = _summary(each)
        print(
            f"{name:<20}{cold.mean:>8.3f} ±{cold.plus_minus:.3f}{warm.mean:>9.3f} ±{warm.plus_minus:.3f}"
            f"{summary['worst_seed']:>12.3f}{summary['hit']:>8.2f}{summary['cost_per_good']:>11.2f}"
            f"{summary['skipped']:>9.2f}"
        )
    print()
    print("\n".join(gate_lines(gates)))
    print(f"\n{took_s} s")

"""Whether delegating makes a task shorter, and at what cost: `python -m bench dag`.

Graphs of six families are planned in several ways and carried out under the same luck: times vary by a third, three
attempts in a hundred fail. The baseline is one standard model doing the parts one after the other; a premium model is
shown beside it. Delegating pays for its planner's call, and every part it gives away carries 15 % more work.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.gates import Gate, gate_lines, gates_met
from bench.graphs import FAMILIES, HANDSHAKE_S, Random, baseline, premium, units
from bench.machine import this_machine
from contracts.console import print_document
from gateway.delegator.gate import Overheads, Single, worth_delegating
from gateway.delegator.schedule import (
    Assignment,
    BudgetInfeasible,
    Course,
    Graph,
    Luck,
    carry_out,
    cheapest,
    cost_units,
    earliest_finish,
    fastest,
    upgraded,
)

__all__ = ["main"]

CONTEXT_SHARE = 0.15
# Of the budget, kept for attempts that fail.
RETRY_SHARE = 0.15
ATTEMPTS_MAX = 6
# The plan that exists for every graph: a budget too small for a graph is refused, which flatters what is left.
GATED = "critical path, deadline 0.7x"
_BUDGETED = "critical path, budget"
_SEED = 7


@dataclass(frozen=True, slots=True)
class _Plan:
    """One way to do a graph. `width` 1: one after the other. `budget_units`: what it may cost with everything."""

    assignment: Assignment
    width: int | None = None
    budget_units: int | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    takes_s: float
    price_units: int
    is_whole: bool
    budget_units: int | None


def _planner(graph: Graph) -> tuple[float, int]:
    """Return time and price of the call that writes the plan, on the standard model."""
    takes_s = 1.5 + 0.12 * graph.size
    return takes_s, units(takes_s * 0.8 * 4 / 10 * 0.6)


def _for_parts(budget_units: int, graph: Graph) -> int:
    """Return what is left of a budget for the parts as they are priced alone."""
    return round((budget_units - _planner(graph)[1]) / (1 + CONTEXT_SHARE))


def _plans(graph: Graph) -> dict[str, _Plan]:
    standard = baseline(graph)
    price = cost_units(graph, standard)
    takes_s = carry_out(graph, standard, width=1).takes_s
    plans = {
        "standard model, in sequence": _Plan(standard, 1),
        "premium model, in sequence": _Plan(premium(graph), 1),
        "cheapest, in sequence": _Plan(cheapest(graph), 1),
        "fastest, in sequence": _Plan(fastest(graph), 1),
        "standard model, parallel": _Plan(standard),
        "cheapest, parallel": _Plan(cheapest(graph)),
        "earliest finish, any price": _Plan(earliest_finish(graph)),
    }
    for share in (0.5, 0.7, 1.0):
        budget = round(share * price)
        for_parts = _for_parts(budget, graph)
        try:
            assignment = upgraded(graph, budget_units=round(for_parts * (1 - RETRY_SHARE)))
        except BudgetInfeasible:
            continue
        plans[f"{_BUDGETED} {share}x"] = _Plan(assignment, budget_units=budget)
    plans["critical path, deadline 0.7x"] = _Plan(upgraded(graph, deadline_s=0.7 * takes_s * 0.9))
    return plans


def _luck(random: Random, graph: Graph) -> Luck:
    noise = np.exp(random.normal(-0.06, 0.35, (graph.size, ATTEMPTS_MAX)))
    fails = random.random((graph.size, ATTEMPTS_MAX)) < 0.03
    fails[:, -1] = False

    def luck(job: int, way: int, attempt: int) -> tuple[float, bool]:
        planned_s = graph.ways[job][way].takes_s - HANDSHAKE_S
        return planned_s * float(noise[job, attempt]) + HANDSHAKE_S, bool(fails[job, attempt])

    return luck


def _carry_out(graph: Graph, name: str, plan: _Plan, luck: Luck) -> _Run:
    for_parts = None if plan.budget_units is None else _for_parts(plan.budget_units, graph)
    course = carry_out(graph, plan.assignment, width=plan.width, luck=luck, budget_units=for_parts)
    takes_s, price = course.takes_s, course.price_units
    if not name.endswith("model, in sequence"):
        planner_s, planner_units = _planner(graph)
        takes_s = takes_s * (1 + CONTEXT_SHARE) + planner_s
        price = round(price * (1 + CONTEXT_SHARE)) + planner_units
    return _Run(takes_s, price, course.is_whole, plan.budget_units)


# By plan: each run, and those of the standard and the premium model in sequence that had the same luck.
_Runs = dict[str, list[tuple[_Run, _Run, _Run]]]


@dataclass(slots=True)
class _Gate:
    """How the delegation gate did on chains: those that were slower when delegated, and those it refused."""

    slower: int = 0
    slower_refused: int = 0
    faster: int = 0
    faster_refused: int = 0


def _judge_gate(graph: Graph, runs: Mapping[str, list[_Run]], plans: Mapping[str, _Plan], gate: _Gate) -> None:
    planner_s, planner_units = _planner(graph)
    overheads = Overheads(planner_s, planner_units, CONTEXT_SHARE)
    standard = plans["standard model, in sequence"].assignment
    alone = carry_out(graph, standard, width=1)
    single = Single(alone.takes_s, alone.price_units)
    actual_alone = np.mean([run.takes_s for run in runs["standard model, in sequence"]])
    for name in ("standard model, parallel", "cheapest, parallel"):
        planned: Course = carry_out(graph, plans[name].assignment)
        refused = not worth_delegating(planned, single, overheads).delegates
        if np.mean([run.takes_s for run in runs[name]]) > actual_alone:
            gate.slower += 1
            gate.slower_refused += refused
        else:
            gate.faster += 1
            gate.faster_refused += refused


def _measure(dags: int, draws: int, random: Random) -> tuple[dict[str, _Runs], _Gate, list[float]]:
    """Return the runs by family, "all" included; how the gate did on chains; and how long each planning took."""
    gate, planning_ms = _Gate(), []
    runs: dict[str, _Runs] = defaultdict(lambda: defaultdict(list))
    for family, draw in FAMILIES.items():
        for _ in range(dags):
            graph = draw(random)
            before = time.perf_counter()
            plans = _plans(graph)
            planning_ms.append((time.perf_counter() - before) * 1000)
            of_graph: dict[str, list[_Run]] = defaultdict(list)
            for _ in range(draws):
                luck = _luck(random, graph)
                for name, plan in plans.items():
                    of_graph[name].append(_carry_out(graph, name, plan, luck))
            standard, best = of_graph["standard model, in sequence"], of_graph["premium model, in sequence"]
            for name, mine in of_graph.items():
                compared = list(zip(mine, standard, best, strict=True))
                runs[family][name] += compared
                runs["all"][name] += compared
            if family == "chain":
                _judge_gate(graph, of_graph, plans, gate)
    return runs, gate, planning_ms


def _gates(
    runs: Mapping[str, _Runs], found: Mapping[str, Mapping[str, Mapping[str, float]]], gate: _Gate
) -> list[Gate]:
    overruns = sum(
        run.price_units > run.budget_units
        for by_plan in runs.values()
        for each in by_plan.values()
        for run, _, _ in each
        if run.budget_units is not None
    )
    return [
        Gate(f"time of the standard model in sequence, {GATED}", "at most", 0.70, found["all"][GATED]["time"]),
        Gate(f"its cost, {GATED}", "at most", 0.70, found["all"][GATED]["cost"]),
        Gate(
            "chains that would be slower refused by the gate",
            "at least",
            0.90,
            gate.slower_refused / gate.slower if gate.slower else 1.0,
        ),
        Gate("runs over their budget", "at most", 0, overruns),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench dag", description=__doc__)
    parser.add_argument("--dags", type=int, default=25, help="graphs of each family (25)")
    parser.add_argument("--draws", type=int, default=8, help="times that each is carried out (8)")
    parser.add_argument("--seed-base", type=int, default=_SEED, help=f"the seed ({_SEED})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.dags < 1 or options.draws < 1:
        parser.error("expected at least one graph and one draw")
    started = time.monotonic()
    random = np.random.default_rng(options.seed_base)
    runs, gate, planning_ms = _measure(options.dags, options.draws, random)
    found = {family: _summaries(by_plan) for family, by_plan in runs.items()}
    gates = _gates(runs, found, gate)
    document: dict[str, Any] = {
        "machine": this_machine(),
        "seed": options.seed_base,
        "dags": options.dags,
        "draws": options.draws,
        "families": found,
        "chains": {
            "slower": gate.slower,
            "slower_refused": gate.slower_refused,
            "faster": gate.faster,
            "faster_refused": gate.faster_refused,
        },
        "planning_ms": {"median": float(np.median(planning_ms)), "max": max(planning_ms)},
        "gates": [each.document() for each in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(found, gates, gate))
    return 0 if gates_met(gates) else 1


def _summaries(by_plan: Mapping[str, Sequence[tuple[_Run, _Run, _Run]]]) -> dict[str, dict[str, float]]:
    every = len(by_plan["standard model, in sequence"])
    return {name: {**_summary(runs), "feasible": len(runs) / every} for name, runs in by_plan.items()}


def _summary(runs: Sequence[tuple[_Run, _Run, _Run]]) -> dict[str, float]:
    """Return mean ratios of time and cost to both baselines, and how many runs were 30 % shorter, and whole."""
    time_ratios = np.array([run.takes_s / standard.takes_s for run, standard, _ in runs])
    return {
        "time": float(time_ratios.mean()),
        "cost": float(np.mean([run.price_units / standard.price_units for run, standard, _ in runs])),
        "time_of_premium": float(np.mean([run.takes_s / best.takes_s for run, _, best in runs])),
        "cost_of_premium": float(np.mean([run.price_units / best.price_units for run, _, best in runs])),
        "shorter_by_30_percent": float((time_ratios <= 0.7).mean()),
        "whole": float(np.mean([run.is_whole for run, _, _ in runs])),
        "runs": len(runs),
    }


def _print(found: Mapping[str, Mapping[str, Mapping[str, float]]], gates: Sequence[Gate], gate: _Gate) -> None:
    for family, by_plan in found.items():
        print(
            f"{family}\n{'':<32}{'time':>7}{'cost':>7}{'-30 %':>8}{'of premium: time':>19}{'cost':>7}{'whole':>8}"
            f"{'feasible':>10}"
        )
        # Not every graph can be done within every budget, so a family may meet a larger one first.
        for name, each in sorted(by_plan.items(), key=lambda row: row[0] if _BUDGETED in row[0] else ""):
            print(
                f"  {name:<30}{each['time']:>7.2f}{each['cost']:>7.2f}{each['shorter_by_30_percent']:>8.0%}"
                f"{each['time_of_premium']:>19.2f}{each['cost_of_premium']:>7.2f}{each['whole']:>8.0%}"
                f"{each['feasible']:>10.0%}"
            )
        print()
    print("whole: runs that gave their output; feasible: those that the budget allows, the only ones compared\n")
    print(f"chains: {gate.slower_refused} of {gate.slower} that were slower when delegated were refused,")
    print(f"        {gate.faster_refused} of {gate.faster} that were faster\n")
    print("\n".join(gate_lines(gates)))

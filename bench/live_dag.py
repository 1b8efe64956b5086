"""What routing, running at once and bidding bring to a delegated task, on the live stack: `python -m bench live_dag`.

The same graphs are carried out in every combination of {one route, routed} x {in sequence, parallel} x {fixed tier,
bidder}, besides a premium model in sequence, and the whole delegator with its planner. Real gateway desk, real sellers,
real payments; only the models are stand-ins, whose speed is given and whose answers can be checked. Every ratio is of
two runs of the same graph; intervals are bootstrapped over graphs. Chains, where nothing can run at once, stand apart.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from bench.gates import Gate, gate_lines, gates_met
from bench.live_graphs import SHAPES, Drawn, drawn
from bench.live_market import QUALITY, SELLERS, SLOTS, LiveMarket, live_market
from bench.machine import this_machine
from bench.paired import Resampled, resampled
from buyer.budgets import parse_units
from buyer.pool import Pool
from contracts.console import print_document, progress
from gateway.bidder.opening import open_bidder
from gateway.bidder.service import Bidder
from gateway.config import GatewayConfig
from gateway.delegator.delegation import Delegator, journal_url, receipts_in
from gateway.delegator.journal import Journal
from gateway.delegator.order import Order
from gateway.desk import Desk
from gateway.upstream import Upstream

__all__ = ["main"]

_SEED = 11
# Graphs that are carried out beside each other; the sellers have slots for all of them, and the machine mostly waits.
_LANES = 3
_UNITS_PER_ATOMIC = 10**30
STANDARD, PREMIUM = "one route, in sequence, fixed tier", "premium model, in sequence"
WHOLE = "the whole delegator, its planner included"
_PRICES = {seller.name: parse_units(seller.price, "price") or 0 for seller in SELLERS}
_FACTORS = {
    "routed, not one route": ("one route", "routed"),
    "parallel, not in sequence": ("in sequence", "parallel"),
    "bidder, not fixed tier": ("fixed tier", "bidder"),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to carry a graph out: which models and sellers there are, and how many calls at once."""

    name: str
    models: Sequence[str]
    sellers: Sequence[str] | None
    parallel: int
    plans: bool = False

    def config(self, market: LiveMarket) -> GatewayConfig:
        """Return the settings of its gateway."""
        routing: dict[str, Any] = {"policy": "auto", "explore": False}
        if self.sellers is not None:
            routing["sellers"] = [market.origins[name] for name in self.sellers]
        models = {model: {"quality": QUALITY[model], "slots": SLOTS} for model in self.models}
        delegate = {"models": models, "parallel": self.parallel}
        return GatewayConfig.model_validate({"home": str(market.home), "routing": {"*": routing}, "delegate": delegate})


def arms() -> list[Arm]:
    """Return the eight combinations, the premium baseline, and the whole delegator."""
    found = []
    for route, models in (("one route", ["large"]), ("routed", ["small", "large"])):
        for order, parallel in (("in sequence", 1), ("parallel", 16)):
            found += [
                Arm(f"{route}, {order}, {tier}", models, sellers, parallel)
                for tier, sellers in (("fixed tier", ["small-standard", "large-standard"]), ("bidder", None))
            ]
    found.append(Arm(PREMIUM, ["large"], ["large-fast"], 1))
    found.append(Arm(WHOLE, ["small", "large"], None, 16, plans=True))
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One graph carried out one way. `right`: its answer was."""

    shape: str
    graph: int
    nodes: int
    arm: str
    took_s: float
    paid_atomic: int
    right: bool
    within_budget: bool


async def _measure(market: LiveMarket, graphs: Sequence[Drawn]) -> tuple[list[Row], dict[str, int]]:
    async with AsyncExitStack() as stack:
        config = GatewayConfig(home=str(market.home))
        home = config.open_home()
        pool = stack.enter_context(Pool.open(home))
        bidder = open_bidder(home)
        stack.push_async_callback(bidder.close)
        upstream = await stack.enter_async_context(Upstream())
        journal = Journal.open(journal_url(home))
        stack.callback(journal.close)
        place = _Place(market, pool, bidder, upstream, journal, stack)
        await asyncio.gather(*(place.warm_up(seller.name, seller.model) for seller in SELLERS))
        delegators = {arm.name: place.delegator(arm) for arm in arms()}
        rows: list[Row] = []
        waiting = list(reversed(graphs))

        async def lane() -> None:
            while waiting:
                graph = waiting.pop()
                # Another order for each graph: what drifts in the machine or the market meets all arms alike.
                order = Random(f"{graph.shape}{graph.number}").sample(arms(), len(arms()))
                rows.extend([await _carry_out(delegators[arm.name], arm, graph) for arm in order])
                progress(f"{graph.shape} {graph.number}: {len(graph.plan.nodes)} nodes, {len(rows)} runs")

        await asyncio.gather(*(lane() for _ in range(_LANES)))
        books = _books(journal, pool)
    return rows, {**books, "chain": market.earned_atomic()}


@dataclass(slots=True)
class _Place:
    """Where the desks of all arms stand: one pool, one memory of the market."""

    market: LiveMarket
    pool: Pool
    bidder: Bidder
    upstream: Upstream
    journal: Journal
    stack: AsyncExitStack

    def delegator(self, arm: Arm) -> Delegator:
        """Open the desk of an arm."""
        config = arm.config(self.market)
        desk = Desk(config, self.pool, self.upstream, bidder=self.bidder)
        self.stack.callback(desk.close)
        assert config.delegate is not None
        delegator = Delegator(desk, self.journal, config.delegate)
        self.stack.push_async_callback(delegator.close)
        return delegator

    async def warm_up(self, seller: str, model: str) -> None:
        """Let the market be known a little, as it is to whoever has bought there before."""
        delegator = self.delegator(Arm(f"warm-up {seller}", [model], [seller], 1))
        for number in range(4):
            plan = drawn("chain", number, _SEED + 1).plan
            easy = [node.model_copy(update={"min_quality": 0.0}) for node in plan.nodes]
            order = Order("warm up", 10**36, None, plan=plan.model_copy(update={"nodes": easy}))
            async for _ in delegator.begin(order).events():
                pass


async def _carry_out(delegator: Delegator, arm: Arm, graph: Drawn) -> Row:
    # As much as the standard model costs for all of it, in every arm but the one that costs more by its nature.
    price_units = _PRICES["large-fast" if arm.name == PREMIUM else "large-standard"]
    budget_units = price_units * (len(graph.plan.nodes) + (1 if arm.plans else 0))
    task = f"{graph.shape} {graph.number}\n```plan\n{graph.plan.model_dump_json()}\n```"
    order = Order(
        task,
        budget_units,
        None,
        planner="large" if arm.plans else None,
        plan=None if arm.plans else graph.plan,
        is_judged=False,
    )
    started = time.perf_counter()
    events = [event async for event in delegator.begin(order).events()]
    last = events[-1]
    spent_units = last.spent_units or 0
    return Row(
        graph.shape,
        graph.number,
        len(graph.plan.nodes),
        arm.name,
        round(time.perf_counter() - started, 4),
        spent_units // _UNITS_PER_ATOMIC,
        last.text == graph.answer,
        spent_units <= budget_units,
    )


def _books(journal: Journal, pool: Pool) -> dict[str, int]:
    """Return what all runs cost by the journal, and by the pool's receipts, in atomic units."""
    by_journal = by_receipts = 0
    for known in journal.recent(100_000):
        run = journal.find(known.id)
        by_journal += sum(attempt.paid_units or 0 for attempt in run.attempts) // _UNITS_PER_ATOMIC
        by_receipts += sum(receipt.price_atomic for receipt in receipts_in(pool, run).values())
    return {"journal": by_journal, "receipts": by_receipts}


def _ratios(rows: Sequence[Row], field: str, above: str, below: str) -> dict[str, list[float]]:
    """Return, by shape, how `above` compares with `below` on each graph."""
    found: dict[str, list[float]] = {}
    value = {(row.shape, row.graph, row.arm): float(getattr(row, field)) for row in rows}
    for shape, graph in sorted({(row.shape, row.graph) for row in rows}):
        found.setdefault(shape, []).append(value[shape, graph, above] / value[shape, graph, below])
    return found


def _groups(ratios: Mapping[str, Sequence[float]], seed: int) -> dict[str, Resampled]:
    """Return mean and interval by shape, and of all shapes but chains."""
    others = [ratio for shape, each in ratios.items() if shape != "chain" for ratio in each]
    groups = {**ratios, "all but chains": others}
    return {name: resampled(each, Random(seed)) for name, each in groups.items() if each}


def _report(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    names = [arm.name for arm in arms()]
    against = {
        name: {
            "time": _groups(_ratios(rows, "took_s", name, STANDARD), seed),
            "cost": _groups(_ratios(rows, "paid_atomic", name, STANDARD), seed),
            "time_against_premium": _groups(_ratios(rows, "took_s", name, PREMIUM), seed),
            "cost_against_premium": _groups(_ratios(rows, "paid_atomic", name, PREMIUM), seed),
            "right": fmean(row.right for row in rows if row.arm == name),
        }
        for name in names
    }
    factors = {}
    for name, (low, high) in _FACTORS.items():
        low_arms = [each for each in names if low in each and each not in (PREMIUM, WHOLE)]
        found = [_ratios(rows, "took_s", arm.replace(low, high), arm) for arm in low_arms]
        # One value a graph, over the four combinations of the other two: what is resampled are graphs.
        merged = {
            shape: [fmean(each) for each in zip(*(one[shape] for one in found), strict=True)] for shape in found[0]
        }
        factors[name] = _groups(merged, seed)
    return {"against_standard": against, "factors": factors}


def _gates(rows: Sequence[Row], books: Mapping[str, int]) -> list[Gate]:
    spread = max(books.values()) - min(books.values())
    return [
        Gate("atomic units between journal, receipts and chain", "at most", 0, spread),
        Gate("runs over their budget", "at most", 0, sum(not row.within_budget for row in rows)),
        Gate("share of right answers", "at least", 1.0, fmean(row.right for row in rows)),
    ]


def _lines(report: Mapping[str, Any]) -> list[str]:
    shapes = [*SHAPES, "all but chains"]
    lines = []
    for measure, title in (
        ("time", "time, as a share of the standard model in sequence (95 % of resamples)"),
        ("cost", "cost, as a share of the standard model's"),
        ("time_against_premium", "time, as a share of the premium model in sequence"),
    ):
        lines += ["", title, f"{'':<44}" + "".join(f"{shape:>21}" for shape in shapes)]
        for name, each in report["against_standard"].items():
            lines.append(f"{name:<44}" + "".join(f"{_shown(each[measure].get(shape)):>21}" for shape in shapes))
    lines += ["", "what each factor does to the time, the other two averaged over"]
    for name, groups in report["factors"].items():
        lines.append(f"{name:<44}" + "".join(f"{_shown(groups.get(shape)):>21}" for shape in shapes))
    return lines


def _shown(found: Resampled | None) -> str:
    return "" if found is None else f"{found.mean:.2f} ({found.low:.2f}-{found.high:.2f})"


def main(arguments: list[str]) -> int:
    """Run the experiment and return the exit code: 1 where books, budgets or answers are wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench live_dag", description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", type=int, default=8, help="graphs of each shape (default: 8)")
    parser.add_argument("--seed-base", type=int, default=_SEED, help="the seed of the graphs")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="write every run into this CSV file")
    parser.add_argument(
        "--quick", action="store_true", help="one graph a shape: a smoke test, its figures mean nothing"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    options = parser.parse_args(arguments)
    count = 1 if options.quick else options.graphs
    graphs = [drawn(shape, number, options.seed_base) for number in range(count) for shape in SHAPES]
    machine, started = this_machine(), time.monotonic()
    counts = {seller.name: 60 + 70 * len(graphs) for seller in SELLERS}
    with live_market(SELLERS, counts) as market:
        rows, books = asyncio.run(_measure(market, graphs))
    report, gates = _report(rows, options.seed_base), _gates(rows, books)
    if options.rows is not None:
        _write(options.rows, rows)
    document = {
        "machine": machine,
        "took_s": round(time.monotonic() - started),
        "quick": options.quick,
        "graphs": len(graphs),
        "sellers": [asdict(seller) for seller in SELLERS],
        "books": books,
        "report": json.loads(json.dumps(report, default=asdict)),
        "gates": [gate.document() for gate in gates],
    }

    def human() -> None:
        lines = [f"{len(graphs)} graphs, {len(rows)} runs, {document['took_s']} s; books in atomic units: {books}"]
        sys.stdout.write("\n".join([*lines, *_lines(report), "", *gate_lines(gates), ""]))

    print_document(document, as_json=options.json, human=human)
    return 0 if gates_met(gates) else 1


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)

"""How well a limit price is set where sellers keep their own to themselves: `python -m bench limit`.

Each order states a limit; the cheapest of a few hidden reserves decides; all that comes back is won or lost. A lost
order is bought at the posted price after a delay that costs. Utility is compared with a bidder that knows how reserves
are distributed at every moment, but not the draws. "Warm" is everything after 1,500 orders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from random import Random
from typing import Any, Protocol

import numpy as np
from scipy.special import ndtr

from bench.gates import Gate, gate_lines, gates_met
from bench.machine import this_machine
from bench.paired import interval
from bench.processes import in_processes
from contracts.console import print_document
from gateway.bidder.limits import SEALED_EVERY, SEALED_FIRST
from gateway.bidder.sealed import FIXED_FRACTION, Answered, SealedLimits
from gateway.bidder.simulation.market import Array

__all__ = ["SealedWorld", "main"]

WARM_FROM = 1_500
DRIFT_AT = 0.7
GRID = np.exp(np.linspace(np.log(0.35), 0.0, 27))
_KIND = 2


class SealedWorld:
    """All orders of one seed. Money in fractions of the posted price."""

    def __init__(self, seed: int, orders: int) -> None:
        random = np.random.default_rng(seed)
        at = np.arange(orders)
        load = 0.55 + 0.25 * np.sin(2 * np.pi * at / 1500 + random.uniform(0, 6)) + 0.12 * np.sin(2 * np.pi * at / 170)
        load = load + random.normal(0, 0.05, orders)
        burst = np.repeat(random.random(orders // 100 + 1) < 0.12, 100)[:orders]
        load = np.clip(load + 0.3 * burst, 0.05, 1.3)
        queue = random.poisson(4 * load / np.clip(1.35 - load, 0.15, 2))
        reputation = random.random(orders)
        work = random.lognormal(0, 0.6, orders)
        kind = random.integers(0, 4, orders)
        of_kind = np.array([-0.25, 0, 0.1, 0.3]) + random.normal(0, 0.05, 4)
        sellers = random.integers(1, 6, orders)
        self.centre: Array = (
            -0.85
            + 0.55 * np.clip(load, 0, 1.3) ** 2
            + 0.035 * np.minimum(queue, 12)
            + of_kind[kind] * (load > 0.6)
            - 0.12 * np.log(sellers)
            - 0.08 * np.log(work) * (kind == _KIND)
            + np.where(at > DRIFT_AT * orders, 0.12, 0.0)
        )
        self.spread: Array = 0.10 + 0.12 * (load > 0.8)
        self.reserve: Array = np.minimum(np.exp(self.centre + self.spread * random.normal(size=orders)), 1.0)
        self.value: Array = random.uniform(1.0, 2.2, orders)
        self.delay: Array = random.uniform(0.02, 0.25, orders)
        seen_load = load + random.normal(0, 0.08, orders)
        wave = 2 * np.pi * at / 1500
        self.rows: Array = np.column_stack(
            [seen_load, queue, kind, sellers, np.log(work), reputation, np.sin(wave), np.cos(wave)]
        )
        self.orders = orders

    def without(self, order: int) -> float:
        """Return what is left of an order whose limit was too low."""
        return max(0.0, float(self.value[order]) - 1.0) - float(self.delay[order])


class Bidder(Protocol):
    """Sets limits."""

    def bid(self, world: SealedWorld, order: int) -> float:
        """Return a fraction of the posted price."""

    def learn(self, world: SealedWorld, order: int, fraction: float, won: bool) -> None:
        """Take note of an answer."""


class Fixed:
    """Always the same fraction."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction

    def bid(self, world: SealedWorld, order: int) -> float:  # noqa: ARG002 - whatever the order
        """Return it."""
        return self._fraction

    def learn(self, world: SealedWorld, order: int, fraction: float, won: bool) -> None:
        """Learn nothing."""


class Informed(Fixed):
    """Knows the distribution of the reserve."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def bid(self, world: SealedWorld, order: int) -> float:
        """Return the best fraction of the grid."""
        chances = ndtr((np.log(GRID) - world.centre[order]) / world.spread[order])
        chances[-1] = 1.0
        value = float(world.value[order])
        return float(GRID[int(np.argmax(chances * (value - GRID) + (1 - chances) * world.without(order)))])


class Ours:
    """The product's head, trained as often as in the product."""

    def __init__(self, seed: int) -> None:
        self._limits = SealedLimits(Random(seed), categories=[_KIND])
        self._seen = 0

    def bid(self, world: SealedWorld, order: int) -> float:
        """Return its limit."""
        row = tuple(world.rows[order].tolist())
        return self._limits.limit(row, float(world.value[order]), world.without(order))

    def learn(self, world: SealedWorld, order: int, fraction: float, won: bool) -> None:
        """Hand it the answer."""
        self._limits.observe(Answered(tuple(world.rows[order].tolist()), fraction, won))
        self._seen += 1
        if self._seen == SEALED_FIRST or (self._seen > SEALED_FIRST and self._seen % SEALED_EVERY == 0):
            self._limits.train()


def _bidders(seed: int) -> dict[str, Bidder]:
    return {
        "posted_price": Fixed(1.0),
        "fixed_0.7": Fixed(FIXED_FRACTION),
        "censored_lognormal": Ours(seed),
        "informed": Informed(),
    }


def _run_seed(job: tuple[int, int]) -> dict[str, dict[str, float]]:
    seed, orders = job
    world = SealedWorld(seed, orders)
    found = {}
    for name, bidder in _bidders(seed).items():
        utility, paid, won = np.zeros(orders), np.zeros(orders), np.zeros(orders, bool)
        for order in range(orders):
            fraction = bidder.bid(world, order)
            assert fraction <= 1.0, "a limit above the posted price"
            won[order] = fraction >= world.reserve[order]
            utility[order] = world.value[order] - fraction if won[order] else world.without(order)
            paid[order] = fraction if won[order] else 1.0
            bidder.learn(world, order, fraction, bool(won[order]))
        warm = slice(WARM_FROM, None)
        found[name] = {
            "first_500": float(utility[:500].sum()),
            "warm": float(utility[warm].sum()),
            "after_drift": float(utility[int(DRIFT_AT * orders) + 300 :].sum()),
            "paid_of_posted": float(paid[warm].mean()),
            "won": float(won[warm].mean()),
        }
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench limit", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many markets (20)")
    parser.add_argument("--seed-base", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--orders", type=int, default=4_000, help="orders in each (4000)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.orders <= WARM_FROM:
        parser.error(f"expected at least one seed and more than {WARM_FROM} orders")
    started = time.monotonic()
    seeds = list(range(options.seed_base, options.seed_base + options.seeds))
    runs = in_processes(_run_seed, [(seed, options.orders) for seed in seeds])
    shares = {name: _shares(runs, name) for name in runs[0]}
    ours, fixed, posted = shares["censored_lognormal"], shares["fixed_0.7"], shares["posted_price"]
    ahead = interval([a - b for a, b in zip(ours["warm"], fixed["warm"], strict=True)])
    worst = min(a - b for a, b in zip(ours["warm"], posted["warm"], strict=True))
    gates = [
        Gate("share of the informed bidder, warm", "at least", 0.92, interval(ours["warm"]).mean),
        Gate("ahead of a fixed 0.7, lower end of the interval", "at least", 0.0, ahead.low),
        Gate("ahead of the posted price, worst seed", "at least", 0.0, worst),
    ]
    document = {
        "machine": this_machine(),
        "seeds": seeds,
        "orders": options.orders,
        "policies": {
            name: {part: asdict(interval(values)) for part, values in parts.items()} for name, parts in shares.items()
        },
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(shares, gates))
    return 0 if gates_met(gates) else 1


def _shares(runs: Sequence[Mapping[str, Mapping[str, float]]], name: str) -> dict[str, list[float]]:
    """Return one bidder's utility as shares of the informed one's, by part of the run, and what it paid and won."""
    parts: dict[str, list[float]] = {
        part: [run[name][part] / run["informed"][part] for run in runs] for part in ("first_500", "warm", "after_drift")
    }
    for part in ("paid_of_posted", "won"):
        parts[part] = [run[name][part] for run in runs]
    return parts


def _print(shares: Mapping[str, Mapping[str, Sequence[float]]], gates: Sequence[Gate]) -> None:
    print("share of the informed bidder's utility, mean ± 95 % over seeds")
    print(f"{'bidder':<20}{'first 500':>16}{'warm':>16}{'after drift':>16}{'paid':>8}{'won':>8}")
    for name, parts in shares.items():
        cells: list[Any] = [interval(parts[part]) for part in ("first_500", "warm", "after_drift")]
        text = "".join(f"{cell.mean:>9.3f} ±{cell.plus_minus:.3f}" for cell in cells)
        print(f"{name:<20}{text}{np.mean(parts['paid_of_posted']):>8.2f}{np.mean(parts['won']):>8.2f}")
    print()
    print("\n".join(gate_lines(gates)))

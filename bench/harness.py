"""Measures cases against each other: interleaved rounds A B A B, warm-up first, CPU time as the main figure.

Clock speed and neighbours change within seconds, so a case is compared only with a peer of the same round, and what is
reported is the median of those ratios. CPU time is that of the whole process a case runs in, its threads included.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Call", "Case", "Plan", "Samples", "Slice", "Spread", "measure", "spread"]

# Latencies of one case that are kept; enough for a stable 99th percentile.
LATENCIES_MAX = 200_000
# A first look at a case runs at least this long before its speed is believed.
CALIBRATE_S = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: `rounds` slices of about `slice_s` seconds of wall time for each case."""

    rounds: int
    slice_s: float
    quick: bool = False


FULL = Plan(rounds=9, slice_s=0.25)
QUICK = Plan(rounds=2, slice_s=0.01, quick=True)


@dataclass(frozen=True, slots=True)
class Slice:
    """What `count` operations of one case took. `latencies_us` are wall times of single operations, where taken."""

    count: int
    cpu_s: float
    wall_s: float
    latencies_us: Sequence[float] = ()


class Case(Protocol):
    """Something to measure. `run` makes what it needs ready outside of the time it reports."""

    @property
    def name(self) -> str:
        """The name of its row."""

    def run(self, count: int) -> Slice:
        """Do `count` operations and return what they took."""


class Call:
    """A case that is one function of this process, called with 0, 1, 2, …"""

    def __init__(self, name: str, function: Callable[[int], object]) -> None:
        self.name = name
        self._function = function

    def run(self, count: int) -> Slice:
        """Call the function `count` times."""
        function = self._function
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for index in range(count):
            function(index)
        return Slice(count, time.process_time() - cpu_s, time.perf_counter() - wall_s)


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the lower and upper quartile beside it."""

    median: float
    low: float
    high: float


@dataclass(slots=True)
class Samples:
    """The slices of one case, one each round."""

    slices: list[Slice] = field(default_factory=list)

    @property
    def cpu_us(self) -> list[float]:
        """CPU microseconds per operation, by round."""
        return [each.cpu_s / each.count * 1e6 for each in self.slices]

    @property
    def wall_us(self) -> list[float]:
        """Wall microseconds per operation, by round."""
        return [each.wall_s / each.count * 1e6 for each in self.slices]

    def latency_us(self, percent: float) -> float | None:
        """Return a percentile of the wall time of single operations, over all rounds, or None where none was taken."""
        latencies = sorted(value for each in self.slices for value in each.latencies_us)
        return latencies[min(len(latencies) - 1, int(len(latencies) * percent / 100))] if latencies else None


def measure(cases: Sequence[Case], plan: Plan) -> dict[str, Samples]:
    """Warm every case up, then run all of them once a round, and return their samples by name."""
    counts = {case.name: _calibrate(case, plan.slice_s) for case in cases}
    samples = {case.name: Samples() for case in cases}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(plan.rounds):
            for case in cases:
                gc.collect()
                samples[case.name].slices.append(case.run(counts[case.name]))
    finally:
        gc.unfreeze()
    return samples


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles of at least one value."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def _calibrate(case: Case, slice_s: float) -> int:
    """Return how many operations fill a slice. Doubles as warm-up: peers import and cache on their first calls."""
    count = 1
    case.run(count)
    while True:
        took_s = case.run(count).wall_s
        if took_s >= min(CALIBRATE_S, slice_s):
            return max(1, round(count * slice_s / took_s))
        count *= 2

"""Means over seeds with their 95 % intervals. Every policy meets the same worlds, so differences are taken pairwise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

__all__ = ["Interval", "Resampled", "interval", "resampled"]

_Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and how far the 95 % interval reaches to either side; `worst` is the lowest seed."""

    mean: float
    plus_minus: float
    worst: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.plus_minus


def interval(values: Sequence[float]) -> Interval:
    """Return mean and interval of one value a seed."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return Interval(statistics.fmean(values), _Z_95 * spread / len(values) ** 0.5, min(values))


@dataclass(frozen=True, slots=True)
class Resampled:
    """A mean of paired ratios, and between what 95 of 100 resamples of the pairs have theirs."""

    mean: float
    low: float
    high: float


def resampled(ratios: Sequence[float], random: Random, *, times: int = 4_000) -> Resampled:
    """Return the mean of paired ratios with its bootstrapped interval: no shape of their distribution is assumed."""
    means = sorted(statistics.fmean(random.choices(ratios, k=len(ratios))) for _ in range(times))
    return Resampled(statistics.fmean(ratios), means[times * 25 // 1000], means[times * 975 // 1000 - 1])

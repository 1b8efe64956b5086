"""Means over seeds with their 95 % intervals. Every policy meets the same worlds, so differences are taken pairwise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "interval"]

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

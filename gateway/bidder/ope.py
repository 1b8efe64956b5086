"""Judging a policy by another's log: what it would have earned, from decisions it did not take. Pure.

The logging policy's exact propensities make this possible. The doubly robust estimate is the one to go by: it corrects
a model of the rewards by what was really seen. A difference of one or two per cent cannot be shown this way from a few
thousand decisions, so it is a gate against gross errors only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["Estimated", "direct", "doubly_robust", "ips", "snips"]

_Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Estimated:
    """A policy's mean reward, and how far its 95 % interval reaches; `effective` decisions of the log speak for it."""

    value: float
    plus_minus: float
    effective: float

    @property
    def sigma(self) -> float:
        """The standard error of the mean."""
        return self.plus_minus / _Z_95

    def covers(self, truth: float) -> bool:
        """Tell whether the interval holds `truth`."""
        return abs(self.value - truth) <= self.plus_minus


def ips(rewards: Vector, weights: Vector) -> Estimated:
    """Return the inverse-propensity estimate.

    `rewards` are of the logged actions; `weights` the probability of those actions under the policy in question, over
    the logged propensity.
    """
    return _mean(weights * rewards, weights)


def snips(rewards: Vector, weights: Vector) -> Estimated:
    """Return the self-normalised estimate: a little biased, far less noisy; NaN without any overlap."""
    total = float(weights.sum())
    if total == 0:
        return Estimated(float("nan"), float("inf"), 0.0)
    value = float((weights * rewards).sum() / total)
    return _mean(value + weights * (rewards - value) * len(weights) / total, weights)


def direct(of_target: Vector, weights: Vector) -> Estimated:
    """Return what a model of the rewards says of the target's actions. As biased as the model."""
    return _mean(of_target, weights)


def doubly_robust(rewards: Vector, weights: Vector, of_logged: Vector, of_target: Vector) -> Estimated:
    """Return the model's word on the target's actions, corrected by how wrong it was on the logged ones.

    `of_logged` and `of_target` must come from a model that was not fitted on the same decisions.
    """
    return _mean(of_target + weights * (rewards - of_logged), weights)


def _mean(values: Vector, weights: Vector) -> Estimated:
    count = len(values)
    squares = float((weights**2).sum())
    effective = float(weights.sum()) ** 2 / squares if squares > 0 else 0.0
    return Estimated(float(values.mean()), _Z_95 * float(values.std()) / count**0.5, effective)

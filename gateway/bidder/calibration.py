"""A straight line through log-odds: how far the rule's word is to be believed before any tree is grown on it.

Trees only add to the rule, and may not take back what more time adds; a rule that is too sure of itself is set right
here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["AS_IT_IS", "Line", "calibrate"]

_STEPS = 12
# How strongly the line is drawn to "as it is", counted in outcomes.
_PULL = 20.0
# More time never makes an answer less likely, so the slope never turns.
_SLOPE_MIN, _SLOPE_MAX, _OFFSET_MAX = 0.05, 3.0, 5.0


@dataclass(frozen=True, slots=True)
class Line:
    """`offset` + `slope` * log-odds."""

    offset: float
    slope: float

    def of(self, logit: float) -> float:
        """Return corrected log-odds."""
        return self.offset + self.slope * logit


AS_IT_IS = Line(0.0, 1.0)


def calibrate(logits: Vector, labels: Vector) -> Line:
    """Return the line that makes `logits` fit 0/1 `labels` best, by Newton's method, pulled towards `AS_IT_IS`."""
    import numpy as np

    offset, slope = AS_IT_IS.offset, AS_IT_IS.slope
    for _ in range(_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(offset + slope * logits, -30, 30)))
        weights = chances * (1 - chances)
        errors = labels - chances
        gradient = np.array([errors.sum() - _PULL * offset, (errors * logits).sum() - _PULL * (slope - 1)])
        cross = (weights * logits).sum()
        curvature = np.array([[weights.sum() + _PULL, cross], [cross, (weights * logits**2).sum() + _PULL]])
        step = np.linalg.solve(curvature, gradient)
        offset = float(np.clip(offset + np.clip(step[0], -1, 1), -_OFFSET_MAX, _OFFSET_MAX))
        slope = float(np.clip(slope + np.clip(step[1], -1, 1), _SLOPE_MIN, _SLOPE_MAX))
    return Line(offset, slope)

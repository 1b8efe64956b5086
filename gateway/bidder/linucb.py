"""LinUCB: a ridge regression of "good and in time" on the features, with a bonus for what it has seen little of.

The permanent challenger of the trees: closed form, learns with every outcome, and nearly free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.bidder.features import Row, View, column
from gateway.bidder.limits import ARMS_MAX
from gateway.bidder.policy import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = ["LinUCB"]

_BONUS = 0.4
_RIDGE = 1.0
_QUEUE_MAX = 4.0
_FORGET_FAILURE_S = 60.0
_NUMBERS = 14
_FLOOR = 1e-9


class LinUCB:
    """The bandit. One weight for each number of a row, one for each arm, and a constant."""

    name = "linucb"

    def __init__(self) -> None:
        import numpy as np

        self._np = np
        self._arms: dict[str, int] = {}
        # Numbers and the constant; each arm adds a row and a column when it is met.
        self._inverse: Matrix = np.eye(_NUMBERS + 1) / _RIDGE
        self._sums: Matrix = np.zeros(_NUMBERS + 1)
        self._weights: Matrix = np.zeros(_NUMBERS + 1)

    def estimate(self, view: View) -> Estimate:
        """Return the upper ends of the confidence intervals, cut to chances."""
        np = self._np
        arms = [self._arms.get(offer.arm) for offer in view.offers]
        inputs = self._inputs(np.asarray(view.rows), arms)
        spread = np.sqrt(np.einsum("ij,ij->i", inputs @ self._inverse, inputs))
        unmet = [index for index, arm in enumerate(arms) if arm is None]
        if unmet:
            # An arm without a column yet is as unsure as the ridge leaves it.
            spread[unmet] = np.sqrt(spread[unmet] ** 2 + 1 / _RIDGE)
        chances = np.clip(inputs @ self._weights + _BONUS * spread, 0.0, 1.0)
        return Estimate(p_good=chances.tolist())

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Take one outcome into the regression (Sherman-Morrison)."""
        np = self._np
        number = self._number_of(arm)
        (x,) = self._inputs(np.asarray([row]), [number])
        moved = self._inverse @ x
        self._inverse -= np.outer(moved, moved) / (1.0 + x @ moved)
        self._sums += x * float(is_good)
        self._weights = self._inverse @ self._sums

    def _number_of(self, arm: str) -> int | None:
        if arm not in self._arms and len(self._arms) < ARMS_MAX:
            np, size = self._np, len(self._sums)
            self._arms[arm] = size
            grown = np.eye(size + 1) / _RIDGE
            grown[:size, :size] = self._inverse
            self._inverse = grown
            self._sums, self._weights = np.append(self._sums, 0.0), np.append(self._weights, 0.0)
        return self._arms.get(arm)

    def _inputs(self, rows: Matrix, arms: list[int | None]) -> Matrix:
        np = self._np
        inputs: Matrix = np.zeros((len(rows), len(self._sums)))

        def of(name: str) -> Matrix:
            values: Matrix = rows[:, column(name)]
            return values

        def log(name: str) -> Matrix:
            values: Matrix = np.log(np.maximum(of(name), _FLOOR))
            return values

        numbers = (
            log("price"),
            of("price_over_value"),
            log("unit_price"),
            of("unit_price_vs_ewma") - 1,
            of("log_work"),
            log("slack_s"),
            log("slack_over_nominal"),
            of("difficulty"),
            np.minimum(of("queue_per_slot"), _QUEUE_MAX),
            of("busy_share"),
            log("slowdown"),
            of("ok"),
            np.exp(-of("since_failure_s") / _FORGET_FAILURE_S),
            of("difficulty") * log("speed"),
        )
        inputs[:, :_NUMBERS] = np.column_stack(numbers)
        inputs[:, _NUMBERS] = 1.0
        for index, arm in enumerate(arms):
            if arm is not None:
                inputs[index, arm] = 1.0
        return inputs

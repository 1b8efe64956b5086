"""A limit price for sellers that take one unseen: how much to offer when all that comes back is "done" or "too low".

What the seller would have taken is modelled as log-normal around a centre that trees place; every answer is censored,
"at most my limit" or "more than my limit", and both kinds teach. The limit itself never enters a tree: win curves made
of free steps do no better than a constant. Limits are fractions of the posted price, which is the safe alternative and
never exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from gateway.bidder.limits import SEALED_FIRST, SEALED_WINDOW

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = ["FIXED_FRACTION", "Answered", "LimitModel", "SealedLimits"]

FIXED_FRACTION = 0.7
"""What is offered of the posted price before enough is known."""

_FRACTION_MIN = 0.3
_GRID_MIN, _GRID_STEPS = 0.35, 27
# Every limit is moved a little, wide at first: a curve is only known where it was tried.
_JITTER_FIRST, _JITTER = 0.2, 0.06
_EXPLORE_SHARE = 0.03
_SPREADS = (0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.26, 0.33)
_SPREAD_FIRST = 0.2
_TREES = 60
_GRADIENT_MAX, _CURVATURE_MIN, _TAIL_MIN = 30.0, 1e-2, 1e-9
_ROOT_TWO_PI = 2.5066283
_PARAMETERS: dict[str, Any] = {
    "num_leaves": 7,
    "learning_rate": 0.1,
    "min_data_in_leaf": 15,
    "lambda_l2": 2.0,
    "max_bin": 63,
    "num_threads": 1,
    "seed": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


@dataclass(frozen=True, slots=True)
class Answered:
    """One sealed limit and its answer. `row` is what was known of the market, `fraction` of the posted price."""

    row: tuple[float, ...]
    fraction: float
    won: bool


class LimitModel:
    """What sellers would take, as a distribution of the logarithm of the fraction."""

    def __init__(self, booster: Any, centre: float, spread: float) -> None:
        self._booster = booster
        self._centre = centre
        self.spread = spread

    def win_chances(self, row: Sequence[float], fractions: Matrix) -> Matrix:
        """Return the chance that each fraction is taken; the posted price always is."""
        import numpy as np
        from scipy.special import ndtr

        (moved,) = self._booster.predict(np.asarray([row]), num_threads=1, raw_score=True)
        chances: Matrix = ndtr((np.log(fractions) - self._centre - moved) / self.spread)
        chances[fractions >= 1.0] = 1.0
        return chances


class SealedLimits:
    """Sets limits and learns from their answers. `categories` are the columns of a row that are names, not numbers."""

    def __init__(self, random: Random, categories: Sequence[int] = ()) -> None:
        self._random = random
        self._categories = list(categories)
        self._answered: list[Answered] = []
        self._model: LimitModel | None = None

    def limit(self, row: tuple[float, ...], value: float, without: float) -> float:
        """Return the fraction of the posted price to offer at most, 1 included.

        `value` is what the work is worth and `without` what is left when the limit is too low, both as fractions of
        the posted price.
        """
        if self._model is None:
            return self._moved(FIXED_FRACTION, _JITTER_FIRST)
        import numpy as np

        grid = np.exp(np.linspace(np.log(_GRID_MIN), 0.0, _GRID_STEPS))
        if self._random.random() < _EXPLORE_SHARE:
            return float(self._random.choice(grid.tolist()))
        chances = self._model.win_chances(row, grid)
        best = float(grid[int(np.argmax(chances * (value - grid) + (1 - chances) * without))])
        return 1.0 if best >= 1.0 else self._moved(best, _JITTER)

    def observe(self, answered: Answered) -> None:
        """Take note of an answer."""
        self._answered.append(answered)
        del self._answered[:-SEALED_WINDOW]

    @property
    def outcomes(self) -> Sequence[Answered]:
        """What the next training would see."""
        return self._answered

    def train(self) -> None:
        """Make a new model of what was answered, where there is enough."""
        if len(self._answered) >= SEALED_FIRST:
            self._model = fit(self._answered, self._categories, self._model)

    def _moved(self, fraction: float, jitter: float) -> float:
        return min(max(fraction * self._random.lognormvariate(0.0, jitter), _FRACTION_MIN), 1.0)


def fit(answered: Sequence[Answered], categories: Sequence[int], before: LimitModel | None) -> LimitModel:
    """Return the censored log-normal model of at least one answer. Its spread starts from the model before."""
    import lightgbm as lgb
    import numpy as np
    from scipy.special import log_ndtr, ndtr

    rows = np.asarray([each.row for each in answered])
    log_limits = np.log([each.fraction for each in answered])
    won = np.asarray([each.won for each in answered])
    centre = float(log_limits[won].mean()) if won.any() else 0.0
    spread = _SPREAD_FIRST if before is None else before.spread

    def gradients(moved: Matrix, _: Any) -> tuple[Matrix, Matrix]:
        z = (log_limits - centre - moved) / spread
        density = np.exp(-0.5 * z * z) / _ROOT_TWO_PI
        of_win = density / np.maximum(ndtr(z), _TAIL_MIN)
        of_loss = density / np.maximum(ndtr(-z), _TAIL_MIN)
        gradient = np.where(won, of_win, -of_loss) / spread
        curvature = np.where(won, of_win * (of_win + z), of_loss * (of_loss - z)) / spread**2
        return np.clip(gradient, -_GRADIENT_MAX, _GRADIENT_MAX), np.maximum(curvature, _CURVATURE_MIN)

    booster = lgb.train(
        {**_PARAMETERS, "objective": gradients},
        lgb.Dataset(rows, won.astype(float), categorical_feature=list(categories)),
        _TREES,
    )
    z = log_limits - centre - booster.predict(rows, num_threads=1, raw_score=True)
    likelihoods = [np.where(won, log_ndtr(z / each), log_ndtr(-z / each)).sum() for each in _SPREADS]
    return LimitModel(booster, centre, _SPREADS[int(np.argmax(likelihoods))])

"""LightGBM in two heads, boosted from the expert rule: in time, given the slack; and good, given an answer.

With no trees it is the rule, so it starts no worse. The first head is taught each outcome at several made-up
deadlines ("within s seconds: yes or no"), which teaches it the whole distribution of the time, and makes a call that
was given up at c seconds useful: it says "no" for every deadline before c, and nothing after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any

from gateway.bidder.calibration import AS_IT_IS, Line, calibrate
from gateway.bidder.features import FEATURES, Row, View, column
from gateway.bidder.policy import Estimate
from gateway.bidder.rule import on_time_logit, quality_logit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = ["Example", "Forest", "ForestPolicy", "train"]

# Each outcome is taught at its own deadline, and at this many made-up ones around the time it took.
_DEADLINES = 3
_DEADLINE_SPREAD = 0.5
_TREES_ON_TIME, _LEAVES_ON_TIME, _LEAF_ON_TIME = 60, 15, 60
_TREES_QUALITY, _LEAVES_QUALITY, _LEAF_QUALITY = 30, 7, 30

# The rule is never so sure that trees could not talk it round.
_PRIOR_LOGIT_MAX = 5.0

_SLACK, _NOMINAL = column("slack_s"), column("slack_over_nominal")
# More time never hurts; a longer queue never helps; and the rule's word, as the last column, counts upwards.
_RISING, _FALLING = ("slack_s", "slack_over_nominal"), ("queue_per_slot", "busy_share")
_MONOTONE = [1 if name in _RISING else -1 if name in _FALLING else 0 for name in FEATURES] + [1]

# One thread, always: on a machine with a CPU limit more of them spin, and decisions take a hundred times longer.
_PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.07,
    "lambda_l2": 5.0,
    "max_bin": 63,
    "boost_from_average": False,
    "num_threads": 1,
    "seed": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


@dataclass(frozen=True, slots=True)
class Example:
    """An outcome to learn from: the row that was decided on, how long it took, and whether the answer was good.

    `is_censored`: it was given up after `latency_s`.
    """

    row: Row
    latency_s: float
    is_ok: bool
    is_censored: bool = False


@dataclass(frozen=True, slots=True)
class Forest:
    """A trained model. `on_time` and `quality` are LightGBM boosters over a row and the rule's log-odds.

    Each adds to the rule's word as its line has it.
    """

    on_time: Any
    quality: Any
    on_time_line: Line = AS_IT_IS
    quality_line: Line = AS_IT_IS

    def p_good(self, rows: Sequence[Row]) -> list[float]:
        """Return the chance of a good answer in time for each row."""
        import numpy as np

        logits = [_prior(row) for row in rows]
        inputs = np.asarray([(*row, logit) for row, logit in zip(rows, logits, strict=True)])
        on_time = self.on_time.predict(inputs, num_threads=1, raw_score=True)
        quality = self.quality.predict(inputs, num_threads=1, raw_score=True)
        return [
            _share(self.on_time_line.of(logit) + more) * _share(self.quality_line.of(quality_logit(row)) + better)
            for row, logit, more, better in zip(rows, logits, on_time.tolist(), quality.tolist(), strict=True)
        ]


class ForestPolicy:
    """Decides by a forest. A new one takes the place of the old whenever one was trained."""

    name = "lightgbm"

    def __init__(self, forest: Forest) -> None:
        self.forest = forest

    def estimate(self, view: View) -> Estimate:
        """Return the forest's chances."""
        return Estimate(p_good=self.forest.p_good(view.rows))

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Outcomes are collected by the trainer."""


def train(examples: Sequence[Example], seed: int) -> Forest:
    """Return a forest made from at least one example. Takes a second for a thousand; run it in another process."""
    import lightgbm as lgb
    import numpy as np

    rows = np.asarray([example.row for example in examples])
    latency_s = np.asarray([example.latency_s for example in examples])
    censored = np.asarray([example.is_censored for example in examples])
    is_ok = np.asarray([example.is_ok for example in examples], dtype=float)
    taught, in_time = _with_deadlines(rows, latency_s, censored, np.random.default_rng(seed))
    inputs, on_time_logits, _ = _inputs(taught)
    on_time_line = calibrate(on_time_logits, in_time)
    on_time = lgb.train(
        {
            **_PARAMETERS,
            "num_leaves": _LEAVES_ON_TIME,
            "min_data_in_leaf": _LEAF_ON_TIME,
            "monotone_constraints": _MONOTONE,
        },
        lgb.Dataset(
            inputs,
            in_time,
            init_score=on_time_line.offset + on_time_line.slope * on_time_logits,
            categorical_feature=[column("seller")],
        ),
        _TREES_ON_TIME,
    )
    # Whether an answer that never came would have been good, nobody knows.
    ended = np.flatnonzero(~censored)
    inputs, _, quality_logits = _inputs(rows[ended])
    quality_line = calibrate(quality_logits, is_ok[ended])
    quality = lgb.train(
        {
            **_PARAMETERS,
            "num_leaves": _LEAVES_QUALITY,
            "min_data_in_leaf": _LEAF_QUALITY,
            "monotone_constraints": _MONOTONE,
        },
        lgb.Dataset(
            inputs,
            is_ok[ended],
            init_score=quality_line.offset + quality_line.slope * quality_logits,
            categorical_feature=[column("seller")],
        ),
        _TREES_QUALITY,
    )
    return Forest(on_time, quality, on_time_line, quality_line)


def _with_deadlines(rows: Matrix, latency_s: Matrix, censored: Any, random: Any) -> tuple[Matrix, Matrix]:
    """Return the rows at their own and at made-up deadlines, and whether the answer was there by then."""
    import numpy as np

    taught, in_time, known = [rows], [latency_s <= rows[:, _SLACK]], [~censored | (rows[:, _SLACK] <= latency_s)]
    for _ in range(_DEADLINES):
        factor = np.exp(random.normal(0.0, _DEADLINE_SPREAD, len(rows))) * latency_s / rows[:, _SLACK]
        moved = rows.copy()
        moved[:, _SLACK] *= factor
        moved[:, _NOMINAL] *= factor
        taught.append(moved)
        in_time.append(latency_s <= moved[:, _SLACK])
        known.append(~censored | (moved[:, _SLACK] <= latency_s))
    keep = np.concatenate(known)
    labels = np.concatenate(in_time) & ~np.tile(censored, _DEADLINES + 1)
    return np.vstack(taught)[keep], labels[keep].astype(float)


def _inputs(rows: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return rows with the rule's word as their last column, and the rule's log-odds of both heads."""
    import numpy as np

    tuples = rows.tolist()
    on_time = np.asarray([_prior(row) for row in tuples])
    quality = np.asarray([quality_logit(row) for row in tuples])
    return np.column_stack([rows, on_time]), on_time, quality


def _prior(row: Row) -> float:
    return min(max(on_time_logit(row), -_PRIOR_LOGIT_MAX), _PRIOR_LOGIT_MAX)


def _share(logit: float) -> float:
    return 1.0 / (1.0 + exp(-min(max(logit, -30.0), 30.0)))

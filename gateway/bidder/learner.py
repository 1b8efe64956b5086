"""The life of a model: trained, watched in the shadow, promoted, watched on, and dropped for the rule when it fails.

Every outcome is first a test of what each model would have said, and only then something to learn from. A new model
decides nothing before it has done at least as well as the rule, and as the one that decides now, on outcomes that
neither had seen. Training itself happens elsewhere: `wanted` says when and on what, `trained` takes the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, log

from gateway.bidder.drift import Drift
from gateway.bidder.features import Row, View
from gateway.bidder.limits import (
    EXPLORE_MORE_FOR,
    EXPLORE_SHARE,
    EXPLORE_SHARE_AFTER_DRIFT,
    MODEL_AGE_MAX_S,
    SELLERS_MAX,
    SHADOW_OUTCOMES,
    TRAIN_WINDOW,
    TRAIN_WINDOW_AFTER_DRIFT,
    WATCHED_OUTCOMES,
)
from gateway.bidder.linucb import LinUCB
from gateway.bidder.model import Example, Forest
from gateway.bidder.ope import doubly_robust
from gateway.bidder.policy import Estimate
from gateway.bidder.rule import QueueRule
from gateway.bidder.schedule import Training

__all__ = ["Learner", "Standing"]

_CHANCE_MIN = 1e-3
# A model may be this much worse than the rule in the shadow: noise of two hundred outcomes.
_TOLERANCE = 0.01
_PROPENSITY_MIN = 1e-6


# Reward, weight of the logged action, and the model's word on the logged action and on its own.
_Trial = tuple[float, float, float, float]


@dataclass(slots=True)
class _Model:
    """One model and when it was made; `losses` are pairs of the rule's log-loss and its own, on the same outcomes."""

    name: str
    forest: Forest
    made_s: float
    losses: deque[tuple[float, float]]
    trials: list[_Trial] = field(default_factory=list)

    def try_on(self, view: View, index: int, reward: float, propensity: float) -> None:
        """Note what it would have done in a decision that was taken with `propensity` and brought `reward`."""
        chances = self.forest.p_good(view.rows)
        worth = [view.task.value * chance - offer.price for chance, offer in zip(chances, view.offers, strict=True)]
        best = max(range(len(worth)), key=worth.__getitem__)
        weight = 1 / max(propensity, _PROPENSITY_MIN) if best == index else 0.0
        self.trials.append((reward, weight, worth[index], worth[best]))

    def would_have_brought_less(self) -> bool:
        """Tell whether, by the doubly robust estimate, it would have brought less than was brought, by one sigma."""
        if not self.trials:
            return False
        import numpy as np

        rewards, weights, of_logged, of_target = np.array(self.trials).T
        estimated = doubly_robust(rewards, weights, of_logged, of_target)
        return estimated.value < float(rewards.mean()) - estimated.sigma

    def ahead_of_rule(self) -> float:
        """Return how much smaller its mean log-loss is than the rule's."""
        if not self.losses:
            return 0.0
        return sum(rule - own for rule, own in self.losses) / len(self.losses)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where learning stands: what decides now and why, and the mean log-loss of each policy of late."""

    decides: str
    reason: str
    outcomes: int
    live: str | None
    shadow: str | None
    losses: dict[str, float]
    drift_alarms: int


class Learner:
    """A policy that is the rule until a model has shown itself better, and again when that is over.

    The linear bandit learns beside it from the same outcomes and never decides: it is the measure of the trees.
    """

    name = "auto"

    def __init__(self, *, challenges: bool = True) -> None:
        self._rule = QueueRule()
        self._linucb = LinUCB() if challenges else None
        self._live: _Model | None = None
        self._shadow: _Model | None = None
        self._examples: deque[Example] = deque(maxlen=TRAIN_WINDOW)
        self._outcomes = 0
        self._training = Training()
        self._is_training = False
        self._window = TRAIN_WINDOW
        self._drifts: dict[str, Drift] = {}
        self._drift_alarms = 0
        self._explore_more = 0
        self._reason = "no model yet"
        self._losses: dict[str, deque[float]] = {}
        self._now_s = 0.0

    # Deciding

    @property
    def explore_share(self) -> float:
        """How often something else should be tried now."""
        return EXPLORE_SHARE_AFTER_DRIFT if self._explore_more > 0 else EXPLORE_SHARE

    def estimate(self, view: View) -> Estimate:
        """Return the live model's chances, or the rule's where there is none or its words are no numbers."""
        self._explore_more = max(0, self._explore_more - 1)
        live = self._live
        if live is not None:
            chances = live.forest.p_good(view.rows)
            if all(isfinite(chance) for chance in chances):
                return Estimate(p_good=chances)
            self.drop("it gave no number")
        return self._rule.estimate(view)

    @property
    def decides(self) -> str:
        """The name of what decides now."""
        return "rule" if self._live is None else "lightgbm"

    def drop(self, reason: str) -> None:
        """Let the rule decide until another model has shown itself."""
        self._live, self._reason = None, reason

    # Learning

    def observe(self, row: Row, arm: str, is_good: bool) -> None:
        """Nothing: outcomes come with more than this; see `learn`."""

    def learn(
        self,
        view: View,
        index: int,
        example: Example,
        is_good: bool,
        now_s: float,
        *,
        propensity: float | None = None,
        paid: float = 0.0,
    ) -> None:
        """Take one outcome of a decision: offer `index` of `view` was bought, with `propensity`, for `paid` tokens.

        Without a propensity, as of an offer that stood in for another, it teaches and judges no other policy.
        """
        self._now_s = now_s
        if self._shadow is not None and propensity is not None:
            self._shadow.try_on(view, index, view.task.value * is_good - paid, propensity)
        view = View(view.task, (view.offers[index],), (example.row,))
        arm = view.offers[0].arm
        of_rule = self._note("rule", _chance_of(self._rule.estimate(view)), is_good)
        for model in (self._live, self._shadow):
            if model is not None:
                model.losses.append((of_rule, _log_loss(model.forest.p_good([example.row])[0], is_good)))
        if self._live is not None:
            self._note_loss("lightgbm", self._live.losses[-1][1])
        if self._linucb is not None:
            self._note("linucb", _chance_of(self._linucb.estimate(view)), is_good)
            self._linucb.observe(example.row, arm, is_good)
        self._examples.append(example)
        self._outcomes += 1
        if self._has_drifted(view.offers[0].seller, of_rule if self._live is None else self._live.losses[-1][1]):
            self._window = TRAIN_WINDOW_AFTER_DRIFT
            self._explore_more = EXPLORE_MORE_FOR
            self._drift_alarms += 1
        self._judge(now_s)

    def wanted(self, now_s: float) -> Sequence[Example] | None:
        """Return the outcomes to train on now, or None while there is no need or a training runs."""
        if self._is_training:
            return None
        if self._window == TRAIN_WINDOW and not self._training.is_due(self._outcomes, now_s):
            return None
        if self._outcomes < self._training.first:
            return None
        self._training.begun(self._outcomes, now_s)
        self._is_training = True
        examples = list(self._examples)[-self._window :]
        self._window = TRAIN_WINDOW
        return examples

    def trained(self, forest: Forest | None, name: str, now_s: float) -> None:
        """Take what came of a training: a model that now goes into the shadow, or None when it failed."""
        self._is_training = False
        if forest is not None:
            self._shadow = _Model(name, forest, now_s, deque(maxlen=WATCHED_OUTCOMES))

    def revive(self, forest: Forest, name: str, made_s: float) -> None:
        """Take a model from before a restart; it must show itself again."""
        self._shadow = _Model(name, forest, made_s, deque(maxlen=WATCHED_OUTCOMES))

    def standing(self) -> Standing:
        """Return where learning stands."""
        return Standing(
            decides=self.decides,
            reason=self._reason,
            outcomes=self._outcomes,
            live=None if self._live is None else self._live.name,
            shadow=None if self._shadow is None else self._shadow.name,
            losses={name: sum(losses) / len(losses) for name, losses in self._losses.items() if losses},
            drift_alarms=self._drift_alarms,
        )

    def _judge(self, now_s: float) -> None:
        live, shadow = self._live, self._shadow
        if live is not None:
            if now_s - live.made_s > MODEL_AGE_MAX_S:
                self.drop("it is too old")
            elif len(live.losses) >= WATCHED_OUTCOMES and live.ahead_of_rule() < -_TOLERANCE:
                self.drop("the rule did better of late")
        if shadow is None or len(shadow.losses) < SHADOW_OUTCOMES:
            return
        if (
            shadow.ahead_of_rule() >= -_TOLERANCE
            and not self._is_behind(shadow)
            and not shadow.would_have_brought_less()
        ):
            self._live, self._reason = shadow, "it did better than the rule on outcomes it had not seen"
        self._shadow = None

    def _is_behind(self, shadow: _Model) -> bool:
        """Tell whether the live model was better on the outcomes that the shadow was watched on."""
        if self._live is None:
            return False
        own = [loss for _, loss in shadow.losses]
        live = [loss for _, loss in self._live.losses][-len(own) :]
        return sum(own) / len(own) > sum(live) / len(live) + _TOLERANCE

    def _has_drifted(self, seller: str, loss: float) -> bool:
        if seller not in self._drifts and len(self._drifts) >= SELLERS_MAX:
            del self._drifts[next(iter(self._drifts))]
        return self._drifts.setdefault(seller, Drift()).add(loss)

    def _note(self, name: str, chance: float, is_good: bool) -> float:
        loss = _log_loss(chance, is_good)
        self._note_loss(name, loss)
        return loss

    def _note_loss(self, name: str, loss: float) -> None:
        self._losses.setdefault(name, deque(maxlen=WATCHED_OUTCOMES)).append(loss)


def _chance_of(estimate: Estimate) -> float:
    assert estimate.p_good is not None
    return estimate.p_good[0]


def _log_loss(chance: float, is_good: bool) -> float:
    if not isfinite(chance):
        chance = 0.5
    chance = min(max(chance, _CHANCE_MIN), 1 - _CHANCE_MIN)
    return -log(chance if is_good else 1 - chance)

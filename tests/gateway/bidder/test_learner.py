"""The life of a model: it decides nothing before it has shown itself, and nothing any more once it fails."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from gateway.bidder.choose import choose
from gateway.bidder.drift import Drift
from gateway.bidder.features import View
from gateway.bidder.learner import Learner
from gateway.bidder.limits import (
    EXPLORE_SHARE,
    EXPLORE_SHARE_AFTER_DRIFT,
    MODEL_AGE_MAX_S,
    SHADOW_OUTCOMES,
    TRAIN_FIRST,
    WATCHED_OUTCOMES,
)
from gateway.bidder.market import Market
from gateway.bidder.model import Example, Forest, train
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Task

GOOD_SELLER = Offer("good", "good", UNITS_PER_TOKEN // 100, 1, 1.0, 0.0, 0.5, 0.9)
BAD_SELLER = Offer("bad", "bad", UNITS_PER_TOKEN // 100, 1, 1.0, 0.0, 0.5, 0.9)
TASK = Task(1.0, 10.0, UNITS_PER_TOKEN, UNITS_PER_TOKEN)


class Oracle:
    """Stands in for a booster: adds the same log-odds to every row."""

    def __init__(self, logit: float) -> None:
        self.logit = logit

    def predict(self, inputs: Any, **_: Any) -> Any:
        import numpy as np

        return np.full(len(inputs), self.logit)


def model_that_says(logit: float) -> Forest:
    return Forest(Oracle(0.0), Oracle(logit))


def feed(learner: Learner, count: int, *, is_good: bool = True, offer: Offer = GOOD_SELLER, now_s: float = 0.0) -> None:
    market = Market()
    for _ in range(count):
        chosen = choose(TASK, [offer], market, now_s, policy=learner, random=Random(1))
        row = chosen.view.rows[0]
        learner.learn(chosen.view, 0, Example(row, 1.0, is_good), is_good, now_s)


def test_the_rule_decides_until_a_model_has_shown_itself_on_outcomes_it_had_not_seen() -> None:
    learner = Learner(challenges=False)
    feed(learner, TRAIN_FIRST - 1)
    assert learner.wanted(0.0) is None
    feed(learner, 1)
    assert len(learner.wanted(0.0) or ()) == TRAIN_FIRST
    assert learner.wanted(0.0) is None, "one training at a time"
    learner.trained(model_that_says(3.0), "better", 0.0)
    feed(learner, SHADOW_OUTCOMES - 1)
    assert learner.decides == "rule"
    feed(learner, 1)
    assert (learner.decides, learner.standing().live) == ("lightgbm", "better")


def test_a_model_worse_than_the_rule_never_decides() -> None:
    learner = Learner(challenges=False)
    learner.trained(model_that_says(-6.0), "worse", 0.0)
    feed(learner, SHADOW_OUTCOMES)
    assert (learner.decides, learner.standing().shadow) == ("rule", None)


def test_a_model_that_does_worse_than_the_rule_later_is_dropped() -> None:
    learner = Learner(challenges=False)
    learner.trained(model_that_says(3.0), "better", 0.0)
    feed(learner, SHADOW_OUTCOMES)
    assert learner.decides == "lightgbm"
    feed(learner, WATCHED_OUTCOMES, is_good=False)
    assert learner.decides == "rule"
    assert "the rule did better" in learner.standing().reason


class Fond:
    """Stands in for a booster that thinks better of one seller, by its place in a view of two."""

    def predict(self, inputs: Any, **_: Any) -> Any:
        import numpy as np

        return np.array([0.0, 9.0]) if len(inputs) == 2 else np.zeros(len(inputs))


@pytest.mark.parametrize("other_brings", [0.0, 1.0])
def test_a_model_that_would_have_bought_worse_answers_does_not_take_over(other_brings: float) -> None:
    learner, market = Learner(challenges=False), Market()
    learner.trained(Forest(Oracle(0.0), Fond()), "fond", 0.0)
    offers, random = [GOOD_SELLER, BAD_SELLER], Random(1)
    for number in range(SHADOW_OUTCOMES):
        chosen = choose(TASK, offers, market, 0.0, policy=learner, random=random)
        # One decision in five went to the seller that the model is fond of.
        index = int(number % 5 == 0)
        is_good = index == 0 or bool(other_brings)
        example = Example(chosen.view.rows[index], 1.0, True)
        propensity = 0.2 if index else 0.8
        learner.learn(chosen.view, index, example, is_good, 0.0, propensity=propensity, paid=0.01)
    # On single rows it says what the rule says, so that only the choice between the two can tell.
    assert learner.decides == ("lightgbm" if other_brings else "rule")


def test_a_worse_model_does_not_replace_a_better_one() -> None:
    learner = Learner(challenges=False)
    learner.trained(model_that_says(4.0), "first", 0.0)
    feed(learner, SHADOW_OUTCOMES)
    learner.trained(model_that_says(0.2), "second", 0.0)
    feed(learner, SHADOW_OUTCOMES)
    assert learner.standing().live == "first"


def test_a_model_grows_too_old() -> None:
    learner = Learner(challenges=False)
    learner.trained(model_that_says(3.0), "old", 0.0)
    feed(learner, SHADOW_OUTCOMES)
    feed(learner, 1, now_s=MODEL_AGE_MAX_S + 1)
    assert learner.decides == "rule"


def test_a_model_that_gives_no_number_hands_over_to_the_rule_at_once() -> None:
    learner = Learner(challenges=False)
    learner.trained(model_that_says(3.0), "sound", 0.0)
    feed(learner, SHADOW_OUTCOMES)
    assert learner._live is not None
    learner._live.forest.quality.logit = math.nan
    decision = choose(TASK, [GOOD_SELLER], Market(), 0.0, policy=learner, random=Random(1)).decision
    assert decision.offer == GOOD_SELLER
    assert learner.decides == "rule"


def test_a_failed_training_is_tried_again_later() -> None:
    learner = Learner(challenges=False)
    feed(learner, TRAIN_FIRST)
    assert learner.wanted(0.0) is not None
    learner.trained(None, "", 0.0)
    assert learner.wanted(0.0) is None
    feed(learner, 250)
    assert learner.wanted(0.0) is not None


def test_a_seller_that_turns_bad_is_noticed_and_explored_round() -> None:
    learner = Learner(challenges=False)
    feed(learner, 200)
    assert learner.explore_share == EXPLORE_SHARE
    feed(learner, 40, is_good=False)
    assert learner.standing().drift_alarms >= 1
    assert learner.explore_share == EXPLORE_SHARE_AFTER_DRIFT


def test_steady_noise_raises_no_alarm() -> None:
    drift, random = Drift(), Random(5)
    assert not any(drift.add(0.1 if random.random() < 0.85 else 2.0) for _ in range(3_000))


def test_trees_learn_what_the_rule_cannot_know() -> None:
    """Two sellers look alike; one is always good for easy tasks, the other for hard ones."""
    random, examples = Random(2), []
    market = Market()
    for offer in (GOOD_SELLER, BAD_SELLER):
        market.see(TASK, offer)
    for _ in range(600):
        difficulty = random.random()
        task = Task(1.0, 10.0, UNITS_PER_TOKEN, UNITS_PER_TOKEN, difficulty)
        offer = random.choice([GOOD_SELLER, BAD_SELLER])
        row = choose(task, [offer], market, 0.0, policy=Learner(challenges=False), random=random).view.rows[0]
        examples.append(Example(row, 1.0, (offer is GOOD_SELLER) == (difficulty < 0.5)))
    forest = train(examples, seed=1)

    def chance(offer: Offer, difficulty: float) -> float:
        task = Task(1.0, 10.0, UNITS_PER_TOKEN, UNITS_PER_TOKEN, difficulty)
        view: View = choose(task, [offer], market, 0.0, policy=Learner(challenges=False), random=random).view
        return forest.p_good(view.rows)[0]

    assert chance(GOOD_SELLER, 0.1) > 4 * chance(BAD_SELLER, 0.1)
    assert chance(BAD_SELLER, 0.9) > 4 * chance(GOOD_SELLER, 0.9)


def test_a_longer_deadline_never_looks_worse_to_the_trees() -> None:
    random, rows = Random(3), []
    for _ in range(400):
        task = Task(random.uniform(0.2, 3), random.uniform(0.5, 20), UNITS_PER_TOKEN, UNITS_PER_TOKEN)
        rows.append(
            choose(task, [GOOD_SELLER], Market(), 0.0, policy=Learner(challenges=False), random=random).view.rows[0]
        )
    forest = train([Example(row, random.expovariate(0.3), random.random() < 0.9) for row in rows], seed=1)
    for work in (0.3, 1.0, 2.5):
        chances = []
        for slack_s in (0.5, 1, 2, 4, 8, 16):
            task = Task(work, slack_s, UNITS_PER_TOKEN, UNITS_PER_TOKEN)
            view = choose(task, [GOOD_SELLER], Market(), 0.0, policy=Learner(challenges=False), random=random).view
            chances.append(forest.p_good(view.rows)[0])
        assert chances == pytest.approx(sorted(chances))


def test_calls_that_were_given_up_teach_that_they_were_late() -> None:
    random = Random(4)
    row = choose(TASK, [GOOD_SELLER], Market(), 0.0, policy=Learner(challenges=False), random=random).view.rows[0]
    seen = [Example(row, 2.0, True) for _ in range(200)]
    given_up = [Example(row, 10.5, False, is_censored=True) for _ in range(600)]
    assert train(seen + given_up, 1).p_good([row])[0] < 0.5 < train(seen, 1).p_good([row])[0]

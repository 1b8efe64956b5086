"""The choice: what may be bought at all, what the policy makes of it, and now and then something else to learn. Pure.

Everything random is drawn from the generator that is handed in, and the probability of what was drawn is returned with
it: without the exact propensity no other policy could be judged by this one's log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from random import Random

from gateway.bidder.features import Row, View, column, view_of
from gateway.bidder.limits import EXPLORE_OF_CAP_PERCENT, EXPLORE_OF_DAY_PERCENT, EXPLORE_SHARE, OFFERS_MAX, WAIT_SLACK
from gateway.bidder.market import Market
from gateway.bidder.policy import Policy
from gateway.bidder.task import Decision, Offer, Task

__all__ = ["Chosen", "Exploration", "choose", "feasible"]

_PRICE_VS_USUAL, _SLACK_OVER_NOMINAL = column("unit_price_vs_ewma"), column("slack_over_nominal")
# Work and seconds of a task, between which policies can divide by them.
_SIZE_MIN, _SIZE_MAX = 1e-6, 1e9


@dataclass(frozen=True, slots=True)
class Exploration:
    """How often something else than the best is bought to learn from it; `day_units` is what a day may cost, or None.

    Only offers of at most half the cap, and at most three hundredths of the day's money, are worth an experiment.
    """

    share: float = EXPLORE_SHARE
    day_units: int | None = None

    def allows(self, task: Task, offer: Offer) -> bool:
        """Tell whether an offer is cheap enough to try."""
        if offer.price_units * 100 > task.cap_units * EXPLORE_OF_CAP_PERCENT:
            return False
        return self.day_units is None or offer.price_units * 100 <= self.day_units * EXPLORE_OF_DAY_PERCENT


NO_EXPLORATION = Exploration(share=0.0)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A decision with what it was taken on: the offers looked at, their rows, and the place of the one bought.

    `order` are the places of all offers, what is bought first, then the best that is left: where to turn when a seller
    turns out not to be there.
    """

    decision: Decision
    view: View
    index: int | None = None
    order: Sequence[int] = ()

    @property
    def row(self) -> Row | None:
        """The features of what is bought."""
        return None if self.index is None else self.view.rows[self.index]


def feasible(task: Task, offers: Sequence[Offer]) -> list[Offer]:
    """Return the offers within the cap, at a price that is one; at most `OFFERS_MAX`, the cheapest of them."""
    within = [offer for offer in offers if 0 <= offer.price_units <= task.cap_units]
    if len(within) > OFFERS_MAX:
        within = sorted(within, key=lambda offer: offer.price_units)[:OFFERS_MAX]
    return within


def choose(
    task: Task,
    offers: Sequence[Offer],
    market: Market,
    now_s: float,
    *,
    policy: Policy,
    random: Random,
    exploration: Exploration = NO_EXPLORATION,
) -> Chosen:
    """Return what to buy for `task`, or that nothing is worth it. Changes neither the market nor the policy.

    An offer above the cap is never chosen, whatever the policy says; estimates that are no numbers count as nothing.
    """
    within = feasible(task, offers)
    view = view_of(task, within, market, now_s) if _is_sound(task) else View(task, (), ())
    if not view.offers:
        reason = "no offer is within the cap" if offers else "nobody offers this"
        return Chosen(Decision("skip", policy.name, reason), view)
    best = _best(view, policy, random)
    if exploration.share <= 0:
        return _chosen(view, best, policy, best.index, best.probability_of(best.index))
    return _explored(view, best, policy, random, exploration)


@dataclass(frozen=True, slots=True)
class _Best:
    """What the policy would do: the place of its offer (None: nothing), and the probability of having drawn it.

    `worth` says how good each offer is, in whatever the policy counts by.
    """

    index: int | None
    worth: Sequence[float]
    probabilities: Sequence[float] | None = None
    p_good: Sequence[float] | None = None
    utilities: Sequence[float] | None = None

    def probability_of(self, index: int | None) -> float:
        if self.probabilities is not None:
            return 0.0 if index is None else self.probabilities[index]
        return 1.0 if index == self.index else 0.0


def _best(view: View, policy: Policy, random: Random) -> _Best:
    estimate = policy.estimate(view)
    if estimate.weights is not None:
        weights = [weight if isfinite(weight) and weight > 0 else 0.0 for weight in estimate.weights]
        total = sum(weights)
        if total > 0 and isfinite(total):
            shares = [weight / total for weight in weights]
            return _Best(random.choices(range(len(shares)), weights=shares)[0], shares, shares)
        return _Best(None, weights)
    if estimate.order is not None:
        return _Best(_argmax(estimate.order), estimate.order)
    chances = [_chance(p) for p in estimate.p_good or ()]
    value = view.task.value
    utilities = [value * p - offer.price for p, offer in zip(chances, view.offers, strict=True)]
    index = _argmax(utilities)
    if index is not None and utilities[index] <= 0:
        index = None
    return _Best(index, utilities, p_good=chances, utilities=utilities)


def _explored(view: View, best: _Best, policy: Policy, random: Random, exploration: Exploration) -> Chosen:
    trials = [i for i, offer in enumerate(view.offers) if exploration.allows(view.task, offer)]
    if not trials:
        return _chosen(view, best, policy, best.index, best.probability_of(best.index))
    is_exploration = random.random() < exploration.share
    index = random.choice(trials) if is_exploration else best.index
    of_trial = exploration.share / len(trials) if index in trials else 0.0
    propensity = (1.0 - exploration.share) * best.probability_of(index) + of_trial
    return _chosen(view, best, policy, index, propensity, is_exploration=is_exploration)


def _chosen(
    view: View,
    best: _Best,
    policy: Policy,
    index: int | None,
    propensity: float,
    *,
    is_exploration: bool = False,
) -> Chosen:
    """Return the decision to buy the offer at `index`, or none, which was drawn with probability `propensity`."""
    if index is None:
        if best.p_good is not None and _is_worth_waiting(view, best.p_good):
            decision = Decision("wait", policy.name, "worth its usual price, not today's", propensity=propensity)
        else:
            decision = Decision("skip", policy.name, "no offer is worth its price", propensity=propensity)
        return Chosen(decision, view)
    decision = Decision(
        "buy",
        policy.name,
        "tried, to learn from it" if is_exploration else "worth most after its price",
        view.offers[index],
        propensity,
        is_exploration,
        None if best.p_good is None else best.p_good[index],
        None if best.utilities is None else best.utilities[index],
    )
    return Chosen(decision, view, index, _order(best.worth, index))


def _is_worth_waiting(view: View, chances: Sequence[float]) -> bool:
    """Tell whether an offer would be worth what it usually costs, and there is time to wait for that."""
    for chance, offer, row in zip(chances, view.offers, view.rows, strict=True):
        usual = offer.price / max(row[_PRICE_VS_USUAL], 1.0)
        if usual < offer.price and row[_SLACK_OVER_NOMINAL] >= WAIT_SLACK and view.task.value * chance > usual:
            return True
    return False


def _order(worth: Sequence[float], first: int) -> list[int]:
    def key(place: int) -> tuple[bool, float]:
        return place != first, -worth[place] if isfinite(worth[place]) else inf

    return sorted(range(len(worth)), key=key)


def _is_sound(task: Task) -> bool:
    """Tell whether a task has a size and a deadline that can be reckoned with: a policy divides by them."""
    return _SIZE_MIN <= task.work <= _SIZE_MAX and _SIZE_MIN <= task.slack_s <= _SIZE_MAX


def _chance(p: float) -> float:
    return min(max(p, 0.0), 1.0) if isfinite(p) else 0.0


def _argmax(values: Sequence[float]) -> int | None:
    best: int | None = None
    for index, value in enumerate(values):
        if isfinite(value) and (best is None or value > values[best]):
            best = index
    return best

"""The choosers that the market is run past: every policy of the product through its own door, and the two oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy.special import gammainc

from gateway.bidder.choose import Chosen, Exploration, choose
from gateway.bidder.learner import Learner
from gateway.bidder.linucb import LinUCB
from gateway.bidder.market import Market
from gateway.bidder.model import Example, ForestPolicy, train
from gateway.bidder.policy import Policy
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest, EwmaUtility, Fastest, InverseSquare
from gateway.bidder.simulation.market import Choice, Ended, Live, World
from gateway.bidder.task import TIERS, UNITS_PER_TOKEN, Offer, Task

__all__ = ["POLICIES", "Chooser", "Learning", "informed"]

_TIERS = len(TIERS)


class Chooser:
    """A policy at work in the simulated market: decides through `choose`, and learns from what has ended."""

    def __init__(self, policy: Policy, seed: int, *, explores: float = 0.0) -> None:
        self._policy = policy
        self._random = Random(seed)  # noqa: S311 - a simulation is to be repeated
        self._explores = explores
        self._market = Market()
        self._open: dict[int, tuple[Task, Chosen]] = {}

    def choose(self, index: int, task: Task, offers: list[Offer], _sellers: list[Live], now_s: float) -> int | None:
        """Decide one task."""
        chosen = choose(
            task,
            offers,
            self._market,
            now_s,
            policy=self._policy,
            random=self._random,
            exploration=Exploration(self._explore_share()),
        )
        for offer in offers:
            self._market.see(task, offer)
        bought = chosen.decision.offer
        if bought is None:
            return None
        self._open[index] = task, chosen
        return int(bought.seller) * _TIERS + bought.tier

    def _explore_share(self) -> float:
        return self._explores

    def example(self, ended: Ended) -> Example:
        """Return an outcome as something to learn from. Only before `observe`."""
        row = self._open[ended.task][1].row
        assert row is not None
        return Example(row, ended.outcome.latency_s, ended.outcome.is_ok)

    def observe(self, ended: Ended) -> None:
        """Learn from one outcome."""
        example = self.example(ended)
        task, chosen = self._open.pop(ended.task)
        self._market.observe(task, ended.offer, ended.outcome, ended.at_s)
        self._policy.observe(example.row, ended.offer.arm, ended.is_good)
        self._learn(chosen, example, ended)

    def _learn(self, chosen: Chosen, example: Example, ended: Ended) -> None:
        """Learn more than the policy itself does."""


class Learning(Chooser):
    """The product's learner, from the rule through shadows to promotion. Training takes no time here.

    With `shuffles` it is taught the outcomes of other decisions, and promotes whatever it made of them.
    """

    def __init__(self, seed: int, *, shuffles: bool = False) -> None:
        self._learner = Learner(challenges=False)
        super().__init__(self._learner, seed)
        self._seed = seed
        self._shuffle = np.random.default_rng(seed) if shuffles else None

    def _explore_share(self) -> float:
        return self._learner.explore_share

    def _learn(self, chosen: Chosen, example: Example, ended: Ended) -> None:
        assert chosen.index is not None
        self._learner.learn(
            chosen.view,
            chosen.index,
            example,
            ended.is_good,
            ended.at_s,
            propensity=chosen.decision.propensity,
            paid=ended.outcome.paid_units / UNITS_PER_TOKEN,
        )
        examples = self._learner.wanted(ended.at_s)
        if examples is None:
            return
        if self._shuffle is None:
            self._learner.trained(train(examples, self._seed), f"after {ended.task}", ended.at_s)
        else:
            self._policy = ForestPolicy(train(self._shuffled(examples), self._seed))
            self._learner.trained(None, "", ended.at_s)

    def _shuffled(self, examples: Sequence[Example]) -> list[Example]:
        assert self._shuffle is not None
        others = self._shuffle.permutation(len(examples))
        return [
            Example(example.row, examples[other].latency_s, examples[other].is_ok)
            for example, other in zip(examples, others, strict=True)
        ]


POLICIES: dict[str, Callable[[int], Chooser]] = {
    "cheapest": lambda seed: Chooser(Cheapest(), seed),
    "fastest": lambda seed: Chooser(Fastest(), seed, explores=0.03),
    "inverse_square": lambda seed: Chooser(InverseSquare(), seed),
    "ewma": lambda seed: Chooser(EwmaUtility(), seed, explores=0.03),
    "rule": lambda seed: Chooser(QueueRule(), seed),
    "linucb": lambda seed: Chooser(LinUCB(), seed),
    "lightgbm": Learning,
    "lightgbm_shuffled": lambda seed: Learning(seed, shuffles=True),
}


@dataclass(frozen=True, slots=True)
class _Wait:
    """Mean and variance of a time, in seconds."""

    mean_s: float
    variance: float


def informed(world: World) -> Choice:
    """Return a chooser that knows the sellers' true speeds, skills, health and live queues, but no draw of luck.

    What a buyer could reach if it knew everything that can be known; the measure of all others.
    """

    def choice(index: int, task: Task, offers: list[Offer], sellers: list[Live], now_s: float) -> int | None:
        best, best_place = 0.0, None
        for place, offer in enumerate(offers):
            if offer.price_units > task.cap_units:
                continue
            number, tier = divmod(place, _TIERS)
            wait = _wait(world, sellers[number], number, tier, now_s)
            nominal_s = float(world.work[index] / world.speed[number])
            mean_s, variance = nominal_s + wait.mean_s, nominal_s**2 / 6 + wait.variance
            in_time = float(gammainc(mean_s**2 / variance, float(world.slack_s[index]) * mean_s / variance))
            ok = world.p_ok(index, number)
            price = offer.price_units / UNITS_PER_TOKEN
            paid = price * (ok + (1 - ok) * float(world.charges_failures[number]))
            utility = float(world.value[index]) * ok * in_time - paid
            if utility > best:
                best, best_place = utility, place
        return best_place

    return choice


def _wait(world: World, seller: Live, number: int, tier: int, now_s: float) -> _Wait:
    if len(seller.busy) < seller.slots:
        return _Wait(0.0, 0.0)
    ahead = sum(len(seller.queues[each]) for each in range(tier + 1)) + 1
    rate = float(seller.slots * world.speed[number])
    # Of the crowd that is still to come, those of better tiers pass us.
    overtaken = min(0.9, world.loads[number].rate(now_s) / rate * (0, 0.15, 0.75)[tier])
    mean_s = ahead / rate / (1 - overtaken)
    return _Wait(mean_s, mean_s**2 / ahead * (1 + overtaken))

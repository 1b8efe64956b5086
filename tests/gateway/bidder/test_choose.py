"""Choosing an offer: nothing above the cap, nothing that is not worth its price, and exact odds of what was drawn."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bidder.choose import Exploration, choose
from gateway.bidder.features import Row, View
from gateway.bidder.limits import OFFERS_MAX
from gateway.bidder.linucb import LinUCB
from gateway.bidder.market import Market
from gateway.bidder.policy import Estimate, Policy
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest, EwmaUtility, Fastest, InverseSquare
from gateway.bidder.task import UNITS_PER_TOKEN, Offer, Outcome, Task

CENT = UNITS_PER_TOKEN // 100
TASK = Task(work=1.0, slack_s=10.0, value_units=10 * CENT, cap_units=5 * CENT)


def offer(seller: str, cents: float, *, tier: int = 1, speed: float | None = 1.0, queue: float = 0.0) -> Offer:
    return Offer(f"{seller}.{tier}", seller, round(cents * 100) * CENT // 100, tier, speed, queue, 0.5, 0.9)


class Says:
    """A policy that says what it is told to."""

    name = "says"

    def __init__(self, estimate: Estimate) -> None:
        self._estimate = estimate

    def estimate(self, view: View) -> Estimate:
        return self._estimate

    def observe(self, row: Row, arm: str, is_good: bool) -> None: ...


def bought(policy: Policy, offers: list[Offer], market: Market | None = None, task: Task = TASK) -> Offer | None:
    return choose(task, offers, market or Market(), 0.0, policy=policy, random=Random(1)).decision.offer


@pytest.mark.parametrize("policy", [Cheapest(), Fastest(), InverseSquare(), EwmaUtility(), QueueRule(), LinUCB()])
def test_no_policy_buys_above_the_cap(policy: Policy) -> None:
    tempting = offer("fast", 6, speed=100.0)
    plain = offer("slow", 5)
    assert bought(policy, [tempting, plain]) == plain
    assert bought(policy, [tempting]) is None


def test_a_cap_is_compared_in_integers_where_floats_would_round() -> None:
    dear = replace(offer("a", 5), price_units=TASK.cap_units + 1)
    assert dear.price == TASK.cap_units / UNITS_PER_TOKEN
    assert bought(Cheapest(), [dear]) is None
    assert bought(Cheapest(), [replace(dear, price_units=TASK.cap_units)]) is not None


def test_the_rule_skips_what_is_not_worth_its_price() -> None:
    late = replace(TASK, slack_s=0.2)
    assert bought(QueueRule(), [offer("a", 4, speed=0.1)], task=late) is None
    assert bought(QueueRule(), [offer("a", 4)]) is not None


@pytest.mark.parametrize(("slack_s", "action"), [(60.0, "wait"), (3.0, "skip")])
def test_a_call_with_time_waits_for_a_price_that_is_higher_than_usual(slack_s: float, action: str) -> None:
    market = Market()
    for _ in range(300):
        market.see(TASK, offer("a", 1))
    task = replace(TASK, value_units=2 * CENT, slack_s=slack_s)
    chosen = choose(task, [offer("a", 3)], market, 0.0, policy=QueueRule(), random=Random(1))
    assert chosen.decision.action == action
    usual = choose(task, [offer("a", 1)], market, 0.0, policy=QueueRule(), random=Random(1))
    assert usual.decision.action == "buy"


def test_the_rule_pays_more_to_pass_a_queue_only_when_time_is_short() -> None:
    crowded = [offer("a", 1, tier=2, queue=4.0), offer("a", 3, tier=0, queue=4.0)]
    assert bought(QueueRule(), crowded, task=replace(TASK, slack_s=60.0)) == crowded[0]
    assert bought(QueueRule(), crowded, task=replace(TASK, slack_s=3.0)) == crowded[1]


def test_a_seller_that_fails_loses_its_custom_and_gets_it_back() -> None:
    market, policy = Market(), QueueRule()
    good, cheap = offer("good", 3), offer("cheap", 1)
    assert bought(policy, [good, cheap], market) == cheap
    for _ in range(20):
        market.observe(TASK, cheap, Outcome(1.0, False, 0), 1.0)
    assert bought(policy, [good, cheap], market) == good
    for _ in range(20):
        market.observe(TASK, cheap, Outcome(1.0, True, 0), 2.0)
    assert bought(policy, [good, cheap], market) == cheap


def test_our_own_slow_answers_stand_in_for_a_queue_that_is_not_published() -> None:
    market = Market()
    silent = replace(offer("silent", 1), queue_per_slot=None)
    open_one = offer("open", 2)
    task = replace(TASK, slack_s=4.0)
    assert bought(QueueRule(), [silent, open_one], market, task) == silent
    for _ in range(20):
        market.observe(task, silent, Outcome(9.0, True, 0), 1.0)
    assert bought(QueueRule(), [silent, open_one], market, task) == open_one


def test_a_quick_refusal_does_not_pass_for_a_fast_seller() -> None:
    market, refusing = Market(), offer("a", 1, speed=None)
    for _ in range(10):
        market.observe(TASK, refusing, Outcome(2.0, True, CENT), 0.0)
    before = market.speed_of(refusing)
    for _ in range(10):
        market.observe(TASK, refusing, Outcome(0.01, False, 0), 0.0)
    assert market.speed_of(refusing) == before


def test_the_wait_in_a_queue_that_was_told_of_is_not_held_against_the_sellers_speed() -> None:
    market, told, untold = Market(), offer("told", 1, speed=None, queue=4.0), offer("untold", 1, speed=None)
    untold = replace(untold, queue_per_slot=None)
    for each in (told, untold):
        for _ in range(50):
            market.observe(TASK, each, Outcome(4.2, True, CENT), 0.0)
    assert market.speed_of(told) == pytest.approx(1.0, rel=0.05)
    assert market.speed_of(untold) == pytest.approx(1 / 4.2, rel=0.05)


def test_a_call_given_up_early_does_not_pass_for_a_quick_one() -> None:
    market, slow = Market(), offer("slow", 1)
    for _ in range(20):
        market.observe(TASK, slow, Outcome(8.0, True, 0), 1.0)
    known = market.of("slow").slowdown[1]
    market.observe(TASK, slow, Outcome(0.5, False, 0, is_censored=True), 2.0)
    assert market.of("slow").slowdown[1] == known


def test_deciding_changes_nothing() -> None:
    market = Market()
    first = choose(TASK, [offer("a", 1), offer("b", 2)], market, 0.0, policy=QueueRule(), random=Random(1))
    again = choose(TASK, [offer("a", 1), offer("b", 2)], market, 0.0, policy=QueueRule(), random=Random(1))
    assert first.decision == again.decision
    assert market.of("a").number == -1


@pytest.mark.parametrize(
    "estimate",
    [
        Estimate(p_good=[math.nan, math.inf, -math.inf]),
        Estimate(order=[math.nan, math.nan, math.nan]),
        Estimate(weights=[math.nan, -1.0, math.inf]),
        Estimate(weights=[0.0, 0.0, 0.0]),
    ],
)
def test_estimates_that_are_no_numbers_buy_nothing(estimate: Estimate) -> None:
    offers = [offer("a", 1), offer("b", 2), offer("c", 3)]
    assert bought(Says(estimate), offers) is None


@pytest.mark.parametrize("broken", [{"work": 0.0}, {"work": math.nan}, {"slack_s": 0.0}, {"slack_s": math.inf}])
def test_a_task_without_a_size_or_a_deadline_is_skipped(broken: dict[str, float]) -> None:
    assert bought(QueueRule(), [offer("a", 1)], task=replace(TASK, **broken)) is None  # type: ignore[arg-type]


def test_of_too_many_offers_the_cheapest_are_looked_at() -> None:
    offers = [offer(f"s{number}", 4 - number / 100) for number in range(OFFERS_MAX + 50)]
    chosen = choose(TASK, offers, Market(), 0.0, policy=Cheapest(), random=Random(1))
    assert len(chosen.view.offers) == OFFERS_MAX
    assert chosen.decision.offer == offers[-1]


def test_the_propensity_is_how_often_it_is_drawn() -> None:
    offers = [offer("a", 1), offer("b", 2), offer("c", 2.4), offer("dear", 4)]
    exploration = Exploration(share=0.3)
    drawn: Counter[str] = Counter()
    stated: dict[str, float] = {}
    random = Random(7)
    for _ in range(20_000):
        decision = choose(
            TASK, offers, Market(), 0.0, policy=QueueRule(), random=random, exploration=exploration
        ).decision
        assert decision.offer is not None
        drawn[decision.offer.seller] += 1
        stated[decision.offer.seller] = decision.propensity
    assert set(drawn) == {"a", "b", "c"}, "an experiment costs at most half the cap"
    assert sum(stated.values()) == pytest.approx(1.0)
    for seller, count in drawn.items():
        assert count / 20_000 == pytest.approx(stated[seller], abs=0.02)


def test_an_experiment_takes_at_most_three_hundredths_of_the_days_money() -> None:
    allowed = Exploration(share=1.0, day_units=30 * CENT).allows
    assert allowed(TASK, offer("a", 0.9))
    assert not allowed(TASK, offer("a", 0.91))


def test_a_draw_by_weights_states_its_odds_too() -> None:
    offers = [offer("a", 1), offer("b", 2)]
    decision = choose(TASK, offers, Market(), 0.0, policy=InverseSquare(), random=Random(3)).decision
    assert decision.offer is not None
    assert decision.propensity == pytest.approx(0.8 if decision.offer.seller == "a" else 0.2)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(10**40), 10**60),
            st.integers(-5, 9),
            st.none() | numbers,
            st.none() | numbers,
            st.none() | numbers,
        ),
        max_size=8,
    ),
    st.integers(0, 10**40),
    st.integers(0, 10**60),
    numbers,
    numbers,
    st.sampled_from([Cheapest(), Fastest(), InverseSquare(), EwmaUtility(), QueueRule(), LinUCB()]),
)
def test_hostile_offers_neither_pass_the_cap_nor_raise(
    stated: list[tuple[int, int, float | None, float | None, float | None]],
    cap: int,
    value: int,
    work: float,
    slack_s: float,
    policy: Policy,
) -> None:
    offers = [
        Offer(str(index), str(index), price, tier, speed, queue, None, reputation)
        for index, (price, tier, speed, queue, reputation) in enumerate(stated)
    ]
    task = Task(work, slack_s, value, cap)
    decision = choose(task, offers, Market(), 0.0, policy=policy, random=Random(0), exploration=Exploration()).decision
    if decision.offer is not None:
        assert 0 <= decision.offer.price_units <= cap


def test_the_rule_needs_neither_numpy_nor_lightgbm() -> None:
    program = (
        "import sys, gateway.bidder.choose, gateway.bidder.rule, gateway.bidder.simple, gateway.bidder.linucb;"
        "assert not {'numpy', 'lightgbm', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

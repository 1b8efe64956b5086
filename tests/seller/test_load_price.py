"""The ladder of a price that moves with load, and the slots behind it: bounds that hold whatever comes and goes."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from contracts.tiers import TIERS
from seller.admission import Admission, Place, QueueFull
from seller.config import SellerConfig
from seller.limits import LOAD_STEP_S
from seller.load_price import LoadPrice
from seller.tier_settings import LoadPriceSettings

SETTINGS = LoadPriceSettings(max_bp=20_000, steps=4, from_percent=100, full_percent=300, quote_valid_s=60)


def test_a_price_climbs_one_step_at_a_time_to_its_bound_and_comes_back() -> None:
    price = LoadPrice(SETTINGS)
    assert price.factors_bp == (10_000, 12_500, 15_000, 17_500, 20_000)
    price.note(1_000_000, 0.0)
    seen = [price.step(second * LOAD_STEP_S) for second in range(7)]
    assert seen == [0, 1, 2, 3, 4, 4, 4]
    price.note(0, 100.0)
    assert price.step(100.0 + LOAD_STEP_S) == 3
    assert price.step(100.0 + 100 * LOAD_STEP_S) == 0


def test_a_load_that_comes_and_goes_within_a_moment_moves_no_price() -> None:
    price = LoadPrice(SETTINGS)
    for moment in range(200):
        price.note(1_000 * (moment % 2), moment * 0.1)
    assert price.step(20.0) == 0


def test_a_price_does_not_come_down_before_the_load_is_well_below_what_raised_it() -> None:
    price = LoadPrice(SETTINGS)
    price.note(110, 0.0)
    assert price.step(LOAD_STEP_S) == 1
    price.note(95, LOAD_STEP_S)
    assert price.step(100 * LOAD_STEP_S) == 1
    price.note(60, 100 * LOAD_STEP_S)
    assert price.step(101 * LOAD_STEP_S) == 0


@given(steps=st.integers(1, 8), from_percent=st.integers(1, 500), span=st.integers(1, 500), load=st.integers(0, 10_000))
def test_an_idle_seller_comes_back_to_its_list_price(steps: int, from_percent: int, span: int, load: int) -> None:
    full_percent = from_percent + span
    price = LoadPrice(
        LoadPriceSettings(max_bp=30_000, steps=steps, from_percent=from_percent, full_percent=full_percent)
    )
    price.note(load, 0.0)
    risen = price.step(1_000.0)
    assert (risen > 0) == (load >= from_percent)
    price.note(0, 1_000.0)
    assert price.step(2_000.0) == 0


def test_a_quote_is_honoured_for_its_time_and_a_higher_price_always() -> None:
    price = LoadPrice(SETTINGS)
    price.note(1_000, 0.0)
    assert price.step(LOAD_STEP_S) == 1
    assert price.honours(0, LOAD_STEP_S)
    assert price.honours(4, LOAD_STEP_S)
    price.note(110, LOAD_STEP_S)
    assert price.honours(0, LOAD_STEP_S + 59)
    assert price.least(LOAD_STEP_S + 59) == 0
    assert not price.honours(0, LOAD_STEP_S + 60)
    assert price.least(LOAD_STEP_S + 60) == 1


@given(
    slots=st.integers(1, 5),
    moves=st.lists(st.tuples(st.sampled_from(TIERS), st.integers(0, 20)), max_size=60),
    bounds=st.fixed_dictionaries({tier: st.tuples(st.integers(1, 5), st.integers(0, 3)) for tier in TIERS}),
)
def test_whatever_comes_and_goes_no_bound_is_passed_and_no_slot_is_lost(
    slots: int, moves: list[tuple[str, int]], bounds: dict[str, tuple[int, int]]
) -> None:
    async def run() -> None:
        admission = Admission(_config(slots, bounds))
        places: list[Place] = []
        for tier, leaver in moves:
            try:
                places.append(admission.enter(tier))
            except QueueFull:
                if places:
                    places.pop(leaver % len(places)).leave()
            status = admission.status()
            working = [place for place in places if place.works]
            assert status.busy == len(working) <= slots
            assert status.waiting == len(places) - len(working)
            for each in status.tiers:
                assert each.busy <= bounds[each.tier][0]
                assert each.waiting <= each.queue == bounds[each.tier][1]
                if each.tier == "background" and slots > 1:
                    assert each.busy < slots
        for place in places:
            place.leave()
        assert (admission.facts.busy, admission.facts.waiting) == (0, 0)

    asyncio.run(run())


def _config(slots: int, bounds: dict[str, tuple[int, int]]) -> SellerConfig:
    given: dict[str, Any] = {
        "network": "eip155:31337",
        "rpc": ["http://127.0.0.1:1"],
        "asset": {"address": "0x" + "11" * 20, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"},
        "pay_to": "0x" + "22" * 20,
        "settler": {"kind": "chain", "key_file": "settler.key"},
        "routes": [{"match": "POST /v1/chat/completions", "price": "0.001"}],
        "capacity": {"slots": slots},
        "tiers": {tier: {"slots": most, "queue": queue} for tier, (most, queue) in bounds.items()},
    }
    return SellerConfig.model_validate(given)

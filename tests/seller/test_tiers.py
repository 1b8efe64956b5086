"""Service classes: an offer for each, slots, bounded queues, background work that makes room, prices by load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_REQUIRED, decode_payment_required
from contracts.offers import Offer, offer_from_wire
from contracts.tiers import QueueStatus, load_of, queue_in_headers, read_queue_status, tier_of
from seller.limits import LOAD_STEP_S
from tests.paying import sign_payment
from tests.seller.shop import BUYER, CHAT, OTHER, PRICE_ATOMIC, Shop, error_of, open_shop

TIERS = {
    "urgent": {"price_bp": 20_000, "queue": 2},
    "normal": {"queue": 3},
    "background": {"price_bp": 5_000, "queue": 3},
}
ROUTES = [{"match": f"POST {CHAT}", "price": "0.001"}]
DEADLINE_S = 120


class Kitchen:
    """An application whose calls end when a test says so."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.holds = True
        self.door: dict[str, asyncio.Event] = {}
        shop.app.behave = self.work

    async def work(self, scope: Any, receive: Any, send: Any) -> None:
        name = self.shop.app.seen[-1]["body"].decode().rpartition("#")[2].strip('"}')
        self.started.append(name)
        try:
            if self.holds:
                await self.door.setdefault(name, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name.encode()})

    def finish(self, name: str) -> None:
        self.door.setdefault(name, asyncio.Event()).set()


@pytest.fixture
def capacity() -> dict[str, Any]:
    return {"slots": 2}


@pytest.fixture
def settle() -> str:
    return "async"


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path, capacity: dict[str, Any], settle: str) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle=settle, capacity=capacity, tiers=TIERS, routes=ROUTES) as opened:
        yield opened


@pytest.fixture
def kitchen(shop: Shop) -> Kitchen:
    return Kitchen(shop)


async def offers(shop: Shop) -> dict[str | None, Offer]:
    """Return what the shop offers now, by tier, as a stranger reads it."""
    answer = await shop.client.post(CHAT, json={"model": "m"})
    assert answer.status_code == 402
    required = decode_payment_required(answer.headers[PAYMENT_REQUIRED])
    return {tier_of(each.extra): offer_from_wire(each) for each in required.accepts}


async def buy(shop: Shop, name: str, tier: str = "normal", *, offer: Offer | None = None) -> httpx.Response:
    """Pay for one call of a tier, on an offer as the shop quoted it."""
    paid = offer or (await offers(shop))[tier]
    header = sign_payment(shop.chain.accounts[BUYER].key, paid)
    return await shop.buy(header, body=b'{"model":"m#%s"}' % name.encode())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the shop is real, and has no event for this
            await asyncio.sleep(0.005)


async def queue(shop: Shop) -> QueueStatus:
    return read_queue_status((await shop.client.get("/status")).content)


async def test_each_tier_is_an_offer_of_its_own_and_who_asks_for_none_pays_the_normal_price(shop: Shop) -> None:
    found = await offers(shop)
    assert list(found) == ["normal", "urgent", "background"]
    assert {tier: offer.amount_atomic for tier, offer in found.items()} == {
        "normal": PRICE_ATOMIC,
        "urgent": 2 * PRICE_ATOMIC,
        "background": PRICE_ATOMIC // 2,
    }


async def test_the_price_of_the_tier_that_was_bought_is_what_arrives(shop: Shop) -> None:
    for tier in TIERS:
        assert (await buy(shop, tier, tier)).status_code == 200
    await shop.settled()
    assert shop.earned == 3500


async def test_a_cheap_payment_cannot_buy_a_dear_tier(shop: Shop) -> None:
    found = await offers(shop)
    header = sign_payment(shop.chain.accounts[BUYER].key, found["urgent"], value_atomic=PRICE_ATOMIC // 2)
    answer = await shop.buy(header)
    assert answer.status_code == 402
    assert shop.app.runs == 0


async def test_a_full_queue_answers_503_before_anything_is_claimed(shop: Shop, kitchen: Kitchen) -> None:
    calls = [asyncio.create_task(buy(shop, f"n{number}")) for number in range(5)]
    await until(lambda: shop.seller.admission is not None and shop.seller.admission.facts.waiting == 3)
    before = shop.seller.ledger.sums().payments
    refused = await buy(shop, "late")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-farebox-charged"] == "false"
    assert shop.seller.ledger.sums().payments == before
    facts = queue_in_headers(refused.headers)
    assert facts is not None
    assert (facts.waiting, facts.busy, facts.slots) == (3, 2, 2)
    for number in range(5):
        kitchen.finish(f"n{number}")
    assert [(await call).status_code for call in calls] == [200] * 5
    await shop.settled()
    assert shop.earned == 5 * PRICE_ATOMIC


async def test_nobody_waits_with_a_payment_that_is_worth_nothing(shop: Shop, kitchen: Kitchen) -> None:
    calls = [asyncio.create_task(buy(shop, name)) for name in "ab"]
    await until(lambda: len(kitchen.started) == 2)
    offer = (await offers(shop))["normal"]
    penniless = [sign_payment(shop.chain.accounts[OTHER].key, offer) for _ in range(5)]
    wrong = [sign_payment(shop.chain.accounts[BUYER].key, offer, value_atomic=1) for _ in range(5)]
    answers = [await shop.buy(header) for header in (*penniless, *wrong)]
    assert {answer.status_code for answer in answers} == {402}
    assert shop.seller.admission is not None
    assert shop.seller.admission.facts.waiting == 0
    kitchen.holds = False
    for name in "ab":
        kitchen.finish(name)
    assert [(await call).status_code for call in calls] == [200, 200]


async def test_one_payment_sent_twice_takes_one_place(shop: Shop, kitchen: Kitchen) -> None:
    calls = [asyncio.create_task(buy(shop, name)) for name in "ab"]
    await until(lambda: len(kitchen.started) == 2)
    header = sign_payment(shop.chain.accounts[BUYER].key, (await offers(shop))["normal"])
    waiting = asyncio.create_task(shop.buy(header))
    await until(lambda: shop.seller.admission.facts.waiting == 1)  # type: ignore[union-attr]
    assert [(await shop.buy(header)).status_code for _ in range(3)] == [409] * 3
    assert shop.seller.admission is not None
    assert shop.seller.admission.facts.waiting == 1
    kitchen.holds = False
    for name in "ab":
        kitchen.finish(name)
    assert [(await call).status_code for call in (*calls, waiting)] == [200] * 3


async def test_whoever_paid_for_haste_goes_first_and_the_rest_in_order(shop: Shop, kitchen: Kitchen) -> None:
    first = [asyncio.create_task(buy(shop, name)) for name in ("a", "b")]
    await until(lambda: len(kitchen.started) == 2)
    later = []
    for name, tier in (("slow", "background"), ("plain", "normal"), ("soon", "urgent")):
        later.append(asyncio.create_task(buy(shop, name, tier)))
        await until(lambda: shop.seller.admission.facts.waiting == len(later))  # type: ignore[union-attr]
    kitchen.holds = False
    for name in "ab":
        kitchen.finish(name)
    await asyncio.gather(*first, *later)
    assert kitchen.started[2:] == ["soon", "plain", "slow"]


async def test_one_slot_stays_free_of_background_work(shop: Shop, kitchen: Kitchen) -> None:
    calls = [asyncio.create_task(buy(shop, name, "background")) for name in "xy"]
    await until(lambda: shop.seller.admission.facts.waiting == 1 and bool(kitchen.started))  # type: ignore[union-attr]
    assert shop.seller.admission is not None
    assert shop.seller.admission.facts.busy == 1
    kitchen.holds = False
    assert (await buy(shop, "n")).status_code == 200
    for name in "xy":
        kitchen.finish(name)
    assert [(await call).status_code for call in calls] == [200, 200]


async def test_background_work_makes_room_and_is_not_charged(shop: Shop, kitchen: Kitchen) -> None:
    offer = (await offers(shop))["background"]
    header = sign_payment(shop.chain.accounts[BUYER].key, offer)
    body = b'{"model":"m#slow"}'
    slow = asyncio.create_task(shop.buy(header, body=body))
    await until(lambda: kitchen.started == ["slow"])
    plain = [asyncio.create_task(buy(shop, f"n{number}")) for number in range(2)]
    stopped = await slow
    assert (stopped.status_code, error_of(stopped)["code"]) == (503, "preempted")
    assert stopped.headers["x-farebox-charged"] == "false"
    assert kitchen.stopped == ["slow"]
    for number in range(2):
        kitchen.finish(f"n{number}")
    assert [(await call).status_code for call in plain] == [200, 200]
    await shop.settled()
    assert shop.earned == 2 * PRICE_ATOMIC
    kitchen.holds = False
    again = await shop.buy(header, body=body)
    assert again.status_code == 200
    await shop.settled()
    assert shop.earned == 2 * PRICE_ATOMIC + PRICE_ATOMIC // 2


@pytest.mark.parametrize("settle", ["before"])
async def test_work_whose_money_has_moved_is_not_stopped(shop: Shop, kitchen: Kitchen) -> None:
    slow = asyncio.create_task(buy(shop, "slow", "background"))
    await until(lambda: kitchen.started == ["slow"])
    plain = [asyncio.create_task(buy(shop, f"n{number}")) for number in range(2)]
    await until(lambda: shop.seller.admission.facts.waiting == 1)  # type: ignore[union-attr]
    kitchen.holds = False
    for name in ("slow", "n0", "n1"):
        kitchen.finish(name)
    assert [(await call).status_code for call in (slow, *plain)] == [200] * 3
    assert kitchen.stopped == []


async def test_a_client_that_leaves_the_queue_is_charged_nothing_and_its_place_is_free(
    shop: Shop, kitchen: Kitchen
) -> None:
    calls = [asyncio.create_task(buy(shop, name)) for name in "ab"]
    await until(lambda: len(kitchen.started) == 2)
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not left.is_set() and not receive.asked:  # type: ignore[attr-defined]
            receive.asked = True  # type: ignore[attr-defined]
            return {"type": "http.request", "body": b'{"model":"m#gone"}', "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    receive.asked = False  # type: ignore[attr-defined]
    header = sign_payment(shop.chain.accounts[BUYER].key, (await offers(shop))["normal"])
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "query_string": b"",
        "headers": [(b"payment-signature", header.encode())],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    waiting = asyncio.create_task(shop.middleware(scope, receive, send))
    await until(lambda: shop.seller.admission.facts.waiting == 1)  # type: ignore[union-attr]
    left.set()
    await waiting
    assert shop.seller.admission is not None
    assert shop.seller.admission.facts.waiting == 0
    kitchen.holds = False
    for name in "ab":
        kitchen.finish(name)
    await asyncio.gather(*calls)
    await shop.settled()
    assert shop.earned == 2 * PRICE_ATOMIC
    assert "gone" not in kitchen.started


async def test_anybody_may_ask_how_long_the_queue_is_and_every_answer_tells(shop: Shop) -> None:
    status = await queue(shop)
    assert (status.slots, status.busy, status.waiting, status.load_bp) == (2, 0, 0, 10_000)
    assert {each.tier: each.queue for each in status.tiers} == {"urgent": 2, "normal": 3, "background": 3}
    answer = await buy(shop, "n")
    facts = queue_in_headers(answer.headers)
    assert facts is not None
    assert (facts.busy, facts.slots) == (1, 2)


SURGE = {"slots": 2, "load_price": {"max_bp": 20_000, "steps": 2, "quote_valid_s": 60}}


@pytest.mark.parametrize("capacity", [SURGE])
async def test_a_quote_is_honoured_for_its_time_and_then_the_price_has_risen(shop: Shop, kitchen: Kitchen) -> None:
    clock = Clock(shop)
    quoted = (await offers(shop))["normal"]
    calls = [asyncio.create_task(buy(shop, f"n{number}", offer=quoted)) for number in range(4)]
    # Which two of the four came first is nobody's promise.
    await until(lambda: shop.seller.admission.facts.waiting == 2 and len(kitchen.started) == 2)  # type: ignore[union-attr]
    clock.now_s += LOAD_STEP_S
    now = (await offers(shop))["normal"]
    assert (now.amount_atomic, load_of(now.extra)) == (1500, 15_000)
    status = await queue(shop)
    assert (status.load_bp, status.honoured_bp) == (15_000, 10_000)
    calls.append(asyncio.create_task(buy(shop, "n4", offer=quoted)))
    await until(lambda: shop.seller.admission.facts.waiting == 3)  # type: ignore[union-attr]
    kitchen.finish(kitchen.started[0])
    await until(lambda: shop.seller.admission.facts.waiting == 2)  # type: ignore[union-attr]
    clock.now_s += 61
    asked = sign_payment(shop.chain.accounts[BUYER].key, quoted)
    refused = await shop.buy(asked)
    assert refused.status_code == 402
    asked_now = decode_payment_required(refused.headers[PAYMENT_REQUIRED]).accepts
    assert [each.amount for each in asked_now] == ["1500", "3000", "750"]
    kitchen.holds = False
    for number in range(5):
        kitchen.finish(f"n{number}")
    assert [(await call).status_code for call in calls] == [200] * 5
    await shop.settled()
    assert shop.earned == 5 * PRICE_ATOMIC


@pytest.mark.parametrize("capacity", [SURGE])
async def test_what_was_pinned_at_a_higher_price_is_served_at_that_price_when_load_has_gone(shop: Shop) -> None:
    clock, admission = Clock(shop), shop.seller.admission
    assert admission is not None
    assert admission.load is not None
    admission.load.note(400, clock.now_s)
    clock.now_s += LOAD_STEP_S
    dear = (await offers(shop))["normal"]
    admission.load.note(0, clock.now_s)
    clock.now_s += LOAD_STEP_S
    assert (await offers(shop))["normal"].amount_atomic == PRICE_ATOMIC
    assert (await buy(shop, "n", offer=dear)).status_code == 200
    await shop.settled()
    assert shop.earned == 1500


class Clock:
    """The time by which the shop's prices rise."""

    def __init__(self, shop: Shop) -> None:
        self.now_s = 1000.0
        assert shop.seller.admission is not None
        shop.seller.admission._clock = lambda: self.now_s

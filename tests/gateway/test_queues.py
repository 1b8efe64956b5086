"""What sellers tell of their queues: it orders offers, is kept as market data, and saves payments nobody would take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from buyer.flow import Incoming
from buyer.flow import Outcome as Paid
from buyer.home import Home
from buyer.pool import Pool
from buyer.purchase import Purchase
from contracts.errors import TermsChanged
from gateway.bidder.events import EventLog
from gateway.bidder.service import Bidder
from gateway.bidder.task import Observation
from gateway.limits import (
    QUEUE_FACTS_S,
    QUEUE_POLL_EVERY_S,
    QUEUE_POLL_IDLE_S,
    QUEUE_POLLED_MAX,
    QUEUE_SILENT_S,
    RETRY_AFTER_S_MAX,
)
from gateway.models import ModelName
from gateway.queues import Queues
from gateway.requests import Call
from gateway.routing import Router, offer_of
from gateway.upstream import Upstream
from gateway.wishes import NO_WISHES
from tests.gateway.parts import Listening, listening, sign_pool

NOW_S = 1_000_000.0


class StandInStatus:
    """A stand-in for a seller that only tells of its queue, in whatever words a test chooses."""

    def __init__(self) -> None:
        self.status = 200
        self.body = _status()
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(f"{scope['method']} {scope['path']}")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


def _status(*, waiting: int = 6, busy: int = 2, slots: int = 2, honoured_bp: int = 10_000) -> bytes:
    return b'{"slots":%d,"busy":%d,"waiting":%d,"loadBp":20000,"honouredBp":%d,"tiers":[]}' % (
        slots,
        busy,
        waiting,
        honoured_bp,
    )


class Street:
    """Two tiers of one seller, as purchases, and what a gateway knows of them."""

    def __init__(self, home: Home, seller: StandInStatus, server: Listening) -> None:
        self.seller = seller
        with Pool.open(home) as pool:
            for name in ("plain", "slow"):
                sign_pool(pool, server.url, 1, name=name)
            self.plain = _pinned(pool.purchase("plain"), {"loadBp": 10_000})
            self.slow = _pinned(pool.purchase("slow"), {"tier": "background", "loadBp": 15_000})
        self.seen: list[Observation] = []
        self.queues = Queues(self.seen.extend)
        self.now_s = NOW_S

    def ask(self) -> None:
        async def ask() -> None:
            async with Upstream() as upstream:
                await self.queues.ask(upstream, [self.plain, self.slow], lambda: self.now_s)

        asyncio.run(ask())


def _pinned(purchase: Purchase, extra: dict[str, Any]) -> Purchase:
    accepted = purchase.accepted
    changed = type(accepted)(
        scheme=accepted.scheme,
        network=accepted.network,
        amount=accepted.amount,
        asset=accepted.asset,
        pay_to=accepted.pay_to,
        max_timeout_seconds=accepted.max_timeout_seconds,
        extra={**(accepted.extra or {}), **extra},
    )
    return replace(purchase, terms=replace(purchase.terms, accepted=changed))


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    seller = StandInStatus()
    with ExitStack() as stack:
        server = stack.enter_context(listening(seller))
        yield Street(Home.open(tmp_path / "home"), seller, server)


def test_a_seller_that_calls_can_choose_among_is_asked_and_its_queue_is_in_the_offer(street: Street) -> None:
    street.queues.chosen_among([street.plain, street.slow], NOW_S)
    street.ask()
    assert street.seller.asked == ["GET /status"]
    offer = offer_of(street.slow, street.queues.facts(street.slow, NOW_S))
    assert (offer.queue_per_slot, offer.busy_share, offer.tier) == (3.0, 1.0, 2)
    assert [(each.tier, each.queue_per_slot) for each in street.seen] == [(1, 3.0), (2, 3.0)]


def test_nobody_is_asked_without_calls_and_nobody_more_often_than_agreed(street: Street) -> None:
    street.ask()
    assert street.seller.asked == []
    street.queues.chosen_among([street.plain, street.slow], NOW_S)
    for _ in range(3):
        street.ask()
    assert len(street.seller.asked) == 1
    street.now_s += QUEUE_POLL_EVERY_S
    street.ask()
    assert len(street.seller.asked) == 2
    street.now_s += QUEUE_POLL_IDLE_S + 1
    street.ask()
    assert len(street.seller.asked) == 2


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, _status()),
        (200, b"not json"),
        (200, b"[" * 100_000),
        (200, _status(slots=0)),
        (200, _status(waiting=-1)),
        (200, _status(waiting=10**12)),
        (200, b" " * 1_000_000),
    ],
    ids=["no-page", "no-json", "nested", "no-slots", "negative", "vast", "endless"],
)
def test_a_seller_that_tells_nothing_readable_is_left_in_peace_for_long(
    street: Street, status: int, body: bytes
) -> None:
    street.seller.status, street.seller.body = status, body
    street.queues.chosen_among([street.plain, street.slow], NOW_S)
    street.ask()
    assert street.queues.facts(street.plain, NOW_S) is None
    assert street.seen == []
    street.now_s += QUEUE_POLL_EVERY_S
    assert street.queues.due(street.now_s) == []
    street.now_s += QUEUE_SILENT_S
    street.queues.chosen_among([street.plain, street.slow], street.now_s)
    assert len(street.queues.due(street.now_s)) == 1


def test_what_was_told_long_ago_is_not_believed(street: Street) -> None:
    street.queues.heard(street.plain, {"x-farebox-queue": "4", "x-farebox-busy": "2/2"}, NOW_S)
    known = street.queues.facts(street.plain, NOW_S + QUEUE_FACTS_S)
    assert known is not None
    assert known.waiting == 4
    assert street.queues.facts(street.plain, NOW_S + QUEUE_FACTS_S + 1) is None


@pytest.mark.parametrize("busy", ["2", "a/b", "2/0", "-1/2", "1/2/3", "9" * 40 + "/2"])
def test_headers_that_are_no_counts_say_nothing(street: Street, busy: str) -> None:
    street.queues.heard(street.plain, {"x-farebox-queue": "4", "x-farebox-busy": busy}, NOW_S)
    assert street.queues.facts(street.plain, NOW_S) is None


def test_a_price_that_its_seller_no_longer_takes_is_not_sent(street: Street) -> None:
    street.seller.body = _status(honoured_bp=15_000)
    street.queues.chosen_among([street.plain], NOW_S)
    street.ask()
    assert not street.queues.takes(street.plain, NOW_S)
    assert street.queues.takes(street.slow, NOW_S)
    assert street.queues.takes(street.plain, NOW_S + QUEUE_FACTS_S + 1)


def test_a_call_that_every_seller_would_refuse_is_told_so_and_nothing_leaves(street: Street) -> None:
    street.seller.body = _status(honoured_bp=15_000)
    router = Router({}, Bidder())
    router.queues.chosen_among([street.plain], NOW_S)
    street.queues, street.now_s = router.queues, NOW_S
    street.ask()

    call = cast("Call", SimpleNamespace(wishes=NO_WISHES, model=ModelName("m", paid=True)))
    with pytest.raises(TermsChanged, match="while it is busy"):
        router.route(call, [street.plain], NOW_S)


@pytest.mark.parametrize(
    ("retry_after", "rests_s"), [("2", 2), ("0", 0), ("9" * 30, RETRY_AFTER_S_MAX), ("soon", 0), ("-3", 0)]
)
def test_a_full_seller_is_left_alone_for_as_long_as_it_asks(street: Street, retry_after: str, rests_s: int) -> None:
    router = Router({}, Bidder())
    full = Incoming(503, {"retry-after": retry_after})
    router.heard(street.slow, Paid("unknown", incoming=full), NOW_S)

    def chosen(now_s: float) -> set[str]:
        call = cast("Call", SimpleNamespace(wishes=NO_WISHES, model=ModelName("m", paid=True), fields={}, body=b""))
        return {each.name for each in router.route(call, [street.plain, street.slow], now_s).purchases}

    if rests_s:
        assert chosen(NOW_S + rests_s - 0.1) == {"plain"}
    assert chosen(NOW_S + rests_s) == {"plain", "slow"}


def test_only_so_many_sellers_are_asked_at_all(street: Street) -> None:
    for number in range(QUEUE_POLLED_MAX * 2):
        other = replace(street.plain, endpoint=f"http://seller-{number}.example")
        street.queues.chosen_among([other, street.plain], NOW_S + number)
    assert len(street.queues.due(NOW_S + QUEUE_POLL_IDLE_S)) <= QUEUE_POLLED_MAX


def test_what_sellers_show_is_in_the_event_log(street: Street, tmp_path: Path) -> None:
    async def run() -> None:
        log = EventLog.open(f"sqlite:///{tmp_path}/events.db")
        bidder = Bidder(log)
        router = Router({}, bidder)
        incoming = Incoming(200, {"x-farebox-queue": "4", "x-farebox-busy": "1/2"})
        for moment in (0.0, 0.5, 1.5):
            router.heard(street.plain, Paid("served", incoming=incoming), NOW_S + moment)
        await asyncio.gather(*bidder._tasks)
        seen = [each for _, each in log.observations()]
        assert [(each.seller, each.queue_per_slot, each.busy_share) for each in seen] == [
            (street.plain.origin, 2.0, 0.5)
        ] * 2
        await bidder.close()

    asyncio.run(run())

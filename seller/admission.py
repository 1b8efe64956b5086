"""Who is worked for now, who waits, and who is told to come again: slots, and a bounded queue for each tier.

A slot that falls free goes to the first call of the best tier that waits. Background work leaves one slot free and,
where all are taken, makes room for other work as long as nothing of its answer is there: it is stopped and not charged.
Every step takes constant time; slots are those of one process.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from contracts.tiers import BACKGROUND, FULL_BP, NORMAL, TIERS, QueueFacts, QueueStatus, TierStatus
from seller.body import Busy
from seller.config import SellerConfig
from seller.limits import QUEUE_RETRY_AFTER_S, QUEUE_WAIT_S
from seller.load_price import LoadPrice
from seller.tier_settings import TierSettings
from seller.watch import ClientWatch

__all__ = ["Admission", "Place", "Preempted", "QueueFull"]

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Receive, Send], Awaitable[None]]


class QueueFull(Busy):
    """Every slot is taken, and so is every place to wait. Nothing is charged."""

    code, retry_after_s = "queue_full", QUEUE_RETRY_AFTER_S
    remedy = "send the same request with the same payment again in a moment, or buy a tier that goes first"


class Preempted(Busy):
    """Background work that made room for other work. Nothing is charged."""

    code, retry_after_s = "preempted", QUEUE_RETRY_AFTER_S
    remedy = "send the same request with the same payment again in a moment"


class _Class:
    """One tier at work."""

    def __init__(self, name: str, slots: int, queue: int) -> None:
        self.name = name
        self.slots, self.queue = slots, queue
        self.busy = 0
        self.waiting: OrderedDict[Place, None] = OrderedDict()


class Admission:
    """The slots of one process and the queues before them."""

    def __init__(self, config: SellerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        capacity, tiers = config.capacity, config.tiers or {NORMAL: TierSettings()}
        assert capacity is not None, "admission is for a seller that states its capacity"
        self.slots = capacity.slots
        self._clock = clock
        self._busy = self._waiting = 0
        self._classes: dict[str, _Class] = {}
        for name in (tier for tier in TIERS if tier in tiers):
            stated = tiers[name]
            most = max(1, self.slots - 1) if name == BACKGROUND else self.slots
            queue = capacity.queue if stated.queue is None else stated.queue
            self._classes[name] = _Class(name, min(most, stated.slots or most), queue)
        self.load = None if capacity.load_price is None else LoadPrice(capacity.load_price)
        # Background work that may be stopped, the latest last, and stopped work that has not ended yet.
        self._stoppable: dict[Place, None] = {}
        self._stopping = 0

    # What is told

    @property
    def facts(self) -> QueueFacts:
        """The queue now."""
        return QueueFacts(self._waiting, self._busy, self.slots)

    def status(self) -> QueueStatus:
        """Return what `GET /status` tells anybody."""
        asked_bp = honoured_bp = FULL_BP
        if self.load is not None:
            now_s, factors_bp = self._clock(), self.load.factors_bp
            asked_bp, honoured_bp = factors_bp[self.load.step(now_s)], factors_bp[self.load.least(now_s)]
        tiers = [TierStatus(each.name, each.busy, len(each.waiting), each.queue) for each in self._classes.values()]
        return QueueStatus(self.slots, self._busy, self._waiting, asked_bp, honoured_bp, tiers)

    def step(self) -> int:
        """Return the step of the load price that is asked now."""
        return 0 if self.load is None else self.load.step(self._clock())

    def honours(self, step: int) -> bool:
        """Tell whether a payment of the price at a step is taken now."""
        return step == 0 if self.load is None else self.load.honours(step, self._clock())

    # Coming and going

    def check(self, tier: str) -> None:
        """Raise `QueueFull` where there is neither a slot nor a place to wait: before anything is claimed."""
        own = self._classes[tier]
        if not self._may_start(own) and len(own.waiting) >= own.queue:
            waiting = len(own.waiting)
            raise QueueFull(f"{self._busy} of {self.slots} slots are busy, and {waiting} calls of this tier wait")

    def enter(self, tier: str) -> Place:
        """Return a place: in a slot where one is free, else in the queue. Raises `QueueFull`. `leave` it in the end."""
        self.check(tier)
        own = self._classes[tier]
        place = Place(self, own)
        if self._may_start(own):
            self._start(place)
        else:
            place.turn = asyncio.get_running_loop().create_future()
            own.waiting[place] = None
            self._waiting += 1
            self._make_room()
        self._note_load()
        return place

    def _may_start(self, own: _Class) -> bool:
        return not own.waiting and self._has_slot(own)

    def _has_slot(self, own: _Class) -> bool:
        if own.busy >= own.slots:
            return False
        # One slot stays free of background work, where there is more than one.
        kept = 1 if own.name == BACKGROUND and self.slots > 1 else 0
        return self._busy + kept < self.slots

    def _start(self, place: Place) -> None:
        place.works = True
        place.own.busy += 1
        self._busy += 1

    def stoppable(self, place: Place) -> None:
        """Take note that the work of a place may be stopped for other work."""
        self._stoppable[place] = None
        self._make_room()

    def settled(self, place: Place) -> None:
        """Take note that the work of a place goes on to its end."""
        self._stoppable.pop(place, None)

    def _make_room(self) -> None:
        """Stop background work where more other calls wait than such work ends already."""
        wanted = sum(len(each.waiting) for each in self._classes.values() if each.name != BACKGROUND)
        if wanted > self._stopping and self._busy >= self.slots and self._stoppable:
            # The latest has least to lose.
            place, _ = self._stoppable.popitem()
            self._stopping += 1
            place.stop()

    def leave(self, place: Place) -> None:
        """Give a place back, and the slot to whoever is next."""
        if place.works:
            place.works = False
            place.own.busy -= 1
            self._busy -= 1
            self._stopping -= place.is_stopped
        elif place.turn is not None and not place.turn.done():
            place.turn.cancel()
            del place.own.waiting[place]
            self._waiting -= 1
        self._admit_waiting()
        self._note_load()

    def _admit_waiting(self) -> None:
        for own in self._classes.values():
            while own.waiting and self._has_slot(own):
                place, _ = own.waiting.popitem(last=False)
                self._waiting -= 1
                self._start(place)
                assert place.turn is not None
                place.turn.set_result(None)

    def _note_load(self) -> None:
        if self.load is not None:
            self.load.note(100 * (self._busy + self._waiting) // self.slots, self._clock())


class Place:
    """One call's place, in the queue or in a slot."""

    def __init__(self, admission: Admission, own: _Class) -> None:
        self._admission = admission
        self.own = own
        self.turn: asyncio.Future[None] | None = None
        self.works = False
        self.is_stopped = False
        self._work: asyncio.Future[None] | None = None

    async def wait(self, watch: ClientWatch) -> None:
        """Wait for a slot. Raises `QueueFull` when it takes too long, or when the client waits no more."""
        if self.turn is not None and not await watch.wait_for(self.turn, QUEUE_WAIT_S):
            raise QueueFull(f"no slot fell free in {QUEUE_WAIT_S:.0f} s")

    def leave(self) -> None:
        """Give it back, and the slot to whoever is next."""
        self._admission.leave(self)

    def stop(self) -> None:
        """Stop the work in this place."""
        self.is_stopped = True
        assert self._work is not None
        self._work.cancel()

    async def run(self, application: Application, receive: Receive, send: Send, *, may_stop: bool) -> None:
        """Run the application. Background work that `may_stop` raises `Preempted` when it was, before it answered."""
        if self.own.name != BACKGROUND or not may_stop:
            await application(receive, send)
            return

        async def answer(message: Any) -> None:
            self._admission.settled(self)
            await send(message)

        self._work = asyncio.ensure_future(application(receive, answer))
        self._admission.stoppable(self)
        try:
            await asyncio.wait([self._work])
        finally:
            self._admission.settled(self)
            if not self._work.done():
                self._work.cancel()
                await asyncio.wait([self._work])
        if self.is_stopped and self._work.cancelled():
            raise Preempted("this call made room for work of a better tier")
        self._work.result()

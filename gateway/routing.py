"""Which purchase answers a call when several could: the place where the gateway asks the bidder.

What is handed to the bidder is within every cap already, and what it says is only an order; the pool's budgets and the
purchase's terms are checked where the money is claimed, whatever stands first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from buyer.budgets import budget_units, parse_units
from buyer.flow import Outcome as Paid
from buyer.purchase import Purchase
from contracts.errors import LocalRefusal, TermsChanged
from contracts.tiers import QueueFacts
from gateway.bidder.service import Bidder, Ticket
from gateway.bidder.task import Offer, Outcome, Task
from gateway.breaker import Breakers
from gateway.limits import BREAKERS_MAX, RETRY_AFTER_S_MAX
from gateway.models import cheapest_first
from gateway.queues import Queues, tier_number
from gateway.requests import Call
from gateway.routing_settings import RoutingSettings
from gateway.wishes import work_of

__all__ = ["NotWorthIt", "NotWorthItNow", "Routed", "Router", "offer_of", "task_of"]

# What an answer is taken to be worth when nobody says: so much that price only orders, and nothing is skipped.
_VALUE_PRICES = 4
_EVERY_MODEL = "*"


class NotWorthIt(LocalRefusal):
    """No seller's price is worth its chance of a good answer in time. Nothing was paid."""

    code = "not_worth_it"
    remedy = "raise x-farebox-value, allow more time, or leave the value out"


class NotWorthItNow(NotWorthIt):
    """Sellers ask more than usual, and the call has time. Nothing was paid."""

    code, http_status, retry_after_s = "not_worth_it_now", 503, 5
    remedy = "send the call again in a moment, or raise x-farebox-value"


class Routed(msgspec.Struct, frozen=True):
    """Purchases in the order in which to try them, and the decision behind it, where there was one to take.

    Without one, `task` is what the only seller was asked for: its answer is learnt from all the same.
    """

    purchases: list[Purchase]
    ticket: Ticket | None = None
    task: Task | None = None

    @property
    def decision_id(self) -> str | None:
        """What `farebox bid explain` takes."""
        return None if self.ticket is None else self.ticket.id


class _Shown(NamedTuple):
    """What a purchase is to the bidder, and to a breaker: a seller's tier, since background work may be refused where
    other work is not.
    """

    purchase: Purchase
    offer: Offer
    arm: str


class Router:
    """Orders the purchases that could answer a call, and tells the bidder what became of it."""

    def __init__(self, settings: dict[str, RoutingSettings], bidder: Bidder) -> None:
        self._settings = settings
        self._for_the_rest = settings.get(_EVERY_MODEL) or RoutingSettings()
        self.bidder = bidder
        self.breakers = Breakers()
        self.queues = Queues(bidder.saw)
        # By the identity of purchases, which never change. An entry keeps its own alive, so that no other gets its id.
        self._known: dict[int, _Shown] = {}

    def route(self, call: Call, candidates: Sequence[Purchase], now_s: float) -> Routed:
        """Return the order for `call` among purchases that are within its caps.

        Raises `NotWorthIt`, or `LocalRefusal` where the settings leave nobody.
        """
        settings = self._settings_for(call.model.name)
        allowed = _allowed(candidates, settings, call.model.name)
        open_ones = [each for each in allowed if not self.breakers.is_open(self._shown(each).arm, now_s)]
        # With everybody's breaker open, trying is better than refusing: nothing is paid unless somebody answers.
        usable = open_ones or allowed
        self.queues.chosen_among(usable, now_s)
        usable = self._honoured(usable, now_s)
        usable = [each for each in usable if each.name not in call.wishes.avoid] or usable
        offers = [_with_queue(self._shown(each).offer, self.queues.facts(each, now_s)) for each in usable]
        task = task_of(call, offers, settings)
        if len(usable) == 1 and call.wishes.value_units is None:
            return Routed(list(usable), task=task)
        ticket = self.bidder.decide(
            task, offers, model=call.model.name, policy=settings.policy, explores=settings.explore
        )
        decision = ticket.chosen.decision
        if decision.action != "buy":
            if call.wishes.value_units is not None:
                refusal = NotWorthItNow if decision.action == "wait" else NotWorthIt
                raise refusal(f"{call.model.name[:100]}: {decision.reason}")
            return Routed(cheapest_first(usable))
        by_name = {each.name: each for each in usable}
        return Routed([by_name[offer.name] for offer in ticket.offers], ticket)

    def _honoured(self, purchases: list[Purchase], now_s: float) -> list[Purchase]:
        """Leave out what its seller is known to refuse: a price from before its load rose. Raises `TermsChanged`."""
        kept = [each for each in purchases if self.queues.takes(each, now_s)]
        if not kept:
            raise TermsChanged(
                f"{purchases[0].name}: its seller asks more while it is busy than was signed for",
                remedy="try again later, or buy again at today's price",
            )
        return kept

    def heard(self, purchase: Purchase, outcome: Paid, now_s: float) -> None:
        """Take what a seller's answer tells of its queue; one that is full is left alone for as long as it asks."""
        if outcome.incoming is None:
            return
        headers = outcome.incoming.headers
        self.queues.heard(purchase, headers, now_s)
        if outcome.incoming.status == 503 and (pause_s := _retry_after_s(headers.get("retry-after"))):
            self.breakers.rest(self._shown(purchase).arm, now_s + pause_s)

    def placed(self, routed: Routed, purchase: Purchase, request_key: str, now_s: float) -> None:
        """Note that a call is on its way to a seller."""
        self.breakers.trying(self._shown(purchase).arm, now_s)
        if routed.ticket is not None:
            self.bidder.placed(routed.ticket, request_key)

    def unreachable(self, purchase: Purchase, now_s: float) -> None:
        """Note that a seller was not there; nothing was paid."""
        self.breakers.failed(self._shown(purchase).arm, now_s)

    def ended(self, routed: Routed, purchase: Purchase, outcome: Outcome, settlement: str, now_s: float) -> None:
        """Note what became of a paid call."""
        if outcome.is_ok:
            self.breakers.succeeded(self._shown(purchase).arm)
        else:
            self.breakers.failed(self._shown(purchase).arm, now_s)
        if routed.task is not None:
            self.bidder.market.observe(routed.task, self._shown(purchase).offer, outcome, now_s)
        if routed.ticket is None:
            return
        for offer in routed.ticket.chosen.view.offers:
            if offer.name == purchase.name:
                self.bidder.ended(routed.ticket, offer, outcome, settlement=settlement)

    def offered(self, purchases: Sequence[Purchase]) -> list[Purchase]:
        """Return the purchases that calls may be placed at, by the settings of their model."""
        return [each for each in purchases if _is_allowed(each, self._settings_for(each.model))]

    def _shown(self, purchase: Purchase) -> _Shown:
        shown = self._known.get(id(purchase))
        if shown is None:
            if len(self._known) >= BREAKERS_MAX:
                self._known.clear()
            offer = offer_of(purchase)
            shown = self._known[id(purchase)] = _Shown(purchase, offer, offer.arm)
        return shown

    def _settings_for(self, model: str) -> RoutingSettings:
        return self._settings.get(model) or self._for_the_rest


def offer_of(purchase: Purchase, queue: QueueFacts | None = None) -> Offer:
    """Return a purchase as something to choose; `queue` is its seller's, where that is known."""
    price_units = budget_units(purchase.offer.amount_atomic, purchase.offer.asset)
    return _with_queue(Offer(purchase.name, purchase.origin, price_units, tier_number(purchase)), queue)


def _with_queue(offer: Offer, queue: QueueFacts | None) -> Offer:
    if queue is None:
        return offer
    return replace(offer, queue_per_slot=queue.queue_per_slot, busy_share=queue.busy_share)


def task_of(call: Call, offers: Sequence[Offer], settings: RoutingSettings) -> Task:
    """Return a call as a task: what it asks for in time and money, by its headers, else by the settings.

    Every offer is within the caps already, so the dearest of them is the cap that the bidder sees.
    """
    dearest = max(offer.price_units for offer in offers)
    value = call.wishes.value_units
    if value is None and settings.value is not None:
        value = parse_units(settings.value, "value")
    return Task(
        work=work_of(call.fields, len(call.body)),
        slack_s=call.wishes.deadline_s or settings.deadline_s,
        value_units=dearest * _VALUE_PRICES if value is None else value,
        cap_units=dearest,
        priority=call.wishes.priority,
    )


def _retry_after_s(text: str | None) -> int:
    """Return the seconds of a Retry-After, `RETRY_AFTER_S_MAX` at most; 0 for none and for a date."""
    is_count = text is not None and text.isascii() and text.isdigit()
    return min(int(text[:6]), RETRY_AFTER_S_MAX) if is_count and text is not None else 0


def _allowed(candidates: Sequence[Purchase], settings: RoutingSettings, model: str) -> list[Purchase]:
    allowed = [each for each in candidates if _is_allowed(each, settings)]
    if not allowed:
        raise LocalRefusal(f"{model[:100]}: `routing` in gateway.yaml allows none of its sellers")
    return allowed


def _is_allowed(purchase: Purchase, settings: RoutingSettings) -> bool:
    return (settings.networks is None or purchase.offer.network.caip2 in settings.networks) and (
        settings.sellers is None or purchase.origin in settings.sellers
    )

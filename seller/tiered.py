"""Selling by capacity: what a quote is at today's load, which part of it a payment means, and its call's turn."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from contracts.offers import Offer
from contracts.tiers import BUSY_HEADER, NORMAL, QUEUE_HEADER, load_of, tier_of
from contracts.wire import PaymentPayload
from seller.admission import Admission, QueueFull
from seller.answers import Answer, json_answer
from seller.claims import Claim
from seller.policy import Mode
from seller.pricebook import Quote
from seller.responder import Responder
from seller.verify import Payment
from seller.watch import ClientWatch

__all__ = ["asked_now", "in_its_turn", "meant_by", "queue_answer", "telling", "tier_paid"]

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_QUEUE, _BUSY = QUEUE_HEADER.encode(), BUSY_HEADER.encode()


def asked_now(quote: Quote, admission: Admission) -> Quote:
    """Return a quote of the price list as it is asked at this moment."""
    return quote.steps[admission.step()] if quote.steps else quote


def meant_by(payment: Payment, quote: Quote, admission: Admission) -> Quote:
    """Return the one quote that a payment can be for: its tier, at the load it was quoted at.

    A price that is no longer honoured becomes today's, which such a payment does not match: it is told today's offers,
    and is neither served nor charged. `quote` is one of the price list.
    """
    extra: dict[str, Any] = (payment.accepted.extra or {}) if isinstance(payment, PaymentPayload) else {}
    listed = asked_now(quote, admission)
    if quote.steps and admission.load is not None and (stated_bp := load_of(extra)) in admission.load.factors_bp:
        step = admission.load.factors_bp.index(stated_bp)
        if admission.honours(step):
            listed = quote.steps[step]
    if not listed.tiers:
        return listed
    return listed.tiers.get(tier_of(extra) or NORMAL) or next(iter(listed.tiers.values()))


def tier_paid(offer: Offer) -> str:
    """Return the tier that a payment of `offer` buys."""
    return tier_of(offer.extra) or NORMAL


async def in_its_turn(
    admission: Admission,
    claim: Claim,
    responder: Responder,
    watch: ClientWatch,
    application: Callable[[Receive, Send], Awaitable[None]],
) -> None:
    """Run the application for a claim when it has a slot. Where none falls free in time, nothing is charged."""
    # Money that has moved is owed its work; the rest of background work may be stopped.
    may_stop = not claim.credit and claim.mode is not Mode.BEFORE
    try:
        place = admission.enter(tier_paid(claim.payment.offer))
    except QueueFull as error:
        await responder.refuse(error)
        return
    try:
        await place.wait(watch)
        await responder.run(lambda receive, send: place.run(application, receive, send, may_stop=may_stop))
    except QueueFull as error:
        # With an OSError servers say that the client has left.
        with contextlib.suppress(OSError):
            await responder.refuse(error)
    finally:
        place.leave()


def telling(send: Send, admission: Admission) -> Send:
    """Return a `send` whose answers tell of the queue."""

    async def tell(message: Any) -> None:
        if message["type"] == "http.response.start":
            facts = admission.facts
            told = [(_QUEUE, b"%d" % facts.waiting), (_BUSY, b"%d/%d" % (facts.busy, facts.slots))]
            message = {**message, "headers": [*message.get("headers", []), *told]}
        await send(message)

    return tell


def queue_answer(admission: Admission) -> Answer:
    """Return the answer to whoever asks how long the queue is."""
    return json_answer(200, msgspec.json.encode(admission.status()), [])

"""The payment flow: generators that yield requests and receive answers. No socket, no clock, no key.

A driver sends what is yielded and gives back an `Incoming`, or throws in what happened instead: `NeverLeft` when no
connection was made, `Lost` when one was and the answer never came. One implementation serves the gateway, both SDK
clients, the command line and the tests.

    step = advance(flow, None)
    while isinstance(step, Outgoing):
        step = advance(flow, transport(step))       # an Incoming, a NeverLeft or a Lost
    return step                                     # an Outcome
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Mapping
from typing import Literal, Protocol

import msgspec

from buyer.asked import PaymentAsked, read_payment_asked
from buyer.claim import Claim
from buyer.endpoint import origin_of
from buyer.payment import SignedPayment
from buyer.purchase import Purchase
from buyer.spender import Spender
from contracts.address import parse_address
from contracts.crash import checkpoint
from contracts.errors import (
    FareboxError,
    OutcomeUnknown,
    PaymentRefused,
    RequestAlreadyPaid,
    SellerUnreachable,
    StoreUnavailable,
    TermsChanged,
    TermsNotAllowed,
)
from contracts.fields import wire_uint256
from contracts.headers import (
    PAYMENT_RESPONSE,
    PAYMENT_SIGNATURE,
    X_PAYMENT,
    X_PAYMENT_RESPONSE,
    decode_settlement_response,
)
from contracts.money import format_amount
from contracts.networks import parse_network
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.wire import SettlementResponse

__all__ = [
    "Funds",
    "Incoming",
    "Lost",
    "NeverLeft",
    "Outcome",
    "Outgoing",
    "PaymentFlow",
    "advance",
    "content_digest",
    "pay_when_asked",
    "pay_with_pool",
    "pay_with_signer",
]

_PAYMENT_HEADERS = {PAYMENT_SIGNATURE.lower(), X_PAYMENT.lower()}


class Outgoing(msgspec.Struct):
    """A request to send. `paid` requests must not follow redirects."""

    method: str
    url: str
    headers: list[tuple[str, str]] = []
    body: bytes = b""
    paid: bool = False


class Incoming(msgspec.Struct):
    """The head of an answer. `headers.get` ignores case; `body` holds answers that are not 2xx, up to a cap.

    `whole` is False when the body was over the driver's cap and is left out.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    whole: bool = True


class NeverLeft(Exception):
    """No connection was made, so no byte of the request left."""


class Lost(Exception):
    """Something was sent, and no answer came."""


class Outcome(msgspec.Struct):
    """What came of a request.

    - `free`: answered without payment; `incoming` is the answer.
    - `served`: paid and answered 2xx; the authorization, `claim`'s from a pool or `payment`'s of a signer, is SPENT.
    - `refused`: `error` says why. Without `claim`, nothing was paid: our policy said no, the pool is empty, or no
      connection was made (`SellerUnreachable`). With `claim`, the seller refused a payment it has seen.
    - `unknown`: paid and not served; `incoming`, when there is one, may be passed on. Repeating the same request
      presents the same authorization.
    """

    kind: Literal["free", "served", "refused", "unknown"]
    claim: Claim | None = None
    incoming: Incoming | None = None
    receipt: SettlementResponse | None = None
    error: FareboxError | None = None
    payment: SignedPayment | None = None


PaymentFlow = Generator[Outgoing, Incoming, Outcome]


def advance(flow: PaymentFlow, happened: Incoming | NeverLeft | Lost | None) -> Outgoing | Outcome:
    """Take a flow one step: begin it with None, then give it what happened. Returns what to send next, or the end."""
    try:
        if happened is None:
            return next(flow)
        if isinstance(happened, Incoming):
            return flow.send(happened)
        return flow.throw(happened)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def pay_with_pool(
    request: Outgoing,
    spender: Spender,
    purchase: Purchase,
    request_key: str,
    clock: Callable[[], float],
    *,
    fingerprint: str = "",
    route: str = "",
    client_key: str = "",
    is_new: bool = False,
    tells_delivery: bool = False,
) -> PaymentFlow:
    """Pay first: the terms are pinned, so the payment goes with the first request.

    `request_key` names the logical request: a repetition presents the same authorization, and only with the same
    method, URL and body. One that was answered before is presented for the answer its seller may have kept; nothing is
    ever bought anew for it. `is_new` says that the caller has just drawn the key, so that there is nothing to repeat.
    `client_key` names on whose budget it goes. Who `tells_delivery` calls `Spender.delivered` or `undelivered` at the
    end; else a 2xx counts as delivered. Errors of the pool are returned in the outcome; after the payment is on its
    way nothing is raised but what the driver throws in.
    """
    if not _is_at(purchase, request.url):
        elsewhere = f"{purchase.name}: pays only at {purchase.origin}, not at {origin_of(request.url)[:80]}"
        return Outcome("refused", error=TermsNotAllowed(elsewhere))
    try:
        digest = content_digest(request)
        claim = None if is_new else spender.reopen(request_key, int(clock()), digest=digest)
        if claim is None:
            claim = spender.claim(
                purchase,
                request_key,
                int(clock()),
                fingerprint=fingerprint,
                route=route,
                digest=digest,
                client_key=client_key,
                is_new=is_new,
            )
        elif claim.purchase.id != purchase.id:
            spender.abort(claim)
            raise TermsNotAllowed(
                f"{purchase.name}: this request was presented to another seller, {claim.purchase.name}"
            )
        spender.sent(claim)
    except FareboxError as error:
        return Outcome("refused", error=error)
    started = clock()
    try:
        incoming = yield _with_payment(request, claim.headers(request.url))
    except NeverLeft as problem:
        spender.never_left(claim)
        unreachable = SellerUnreachable(f"{purchase.origin}: no connection ({problem})")
        return Outcome("unknown", claim, error=unreachable) if claim.again else Outcome("refused", error=unreachable)
    except Lost as problem:
        spender.lost(claim, status=None, reason=f"no answer: {problem}")
        return Outcome("unknown", claim, error=OutcomeUnknown(f"{purchase.origin}: paid, but no answer ({problem})"))
    except BaseException as problem:
        spender.lost(claim, status=None, reason=f"given up while waiting: {type(problem).__name__}")
        raise
    checkpoint("buyer.answered")
    receipt = _receipt(incoming, claim.authorization, claim.purchase.offer)
    if 200 <= incoming.status < 300:
        # The answer is paid for, and the client shall have it even when our disk fails: unrecorded, the row stays SENT
        # and becomes UNKNOWN, never READY.
        with contextlib.suppress(StoreUnavailable):
            spender.served(
                claim,
                status=incoming.status,
                receipt=receipt,
                latency_ms=round((clock() - started) * 1000),
                delivered_s=None if tells_delivery else int(clock()),
            )
        checkpoint("buyer.recorded")
        return Outcome("served", claim, incoming, receipt)
    cause = _refusal(incoming, receipt, purchase.offer) or _no_service(incoming, purchase.origin)
    if claim.again:
        cause = _refused_again(cause, claim, incoming)
    spender.lost(claim, status=incoming.status, reason=f"{cause.code}: {cause.message}")
    return Outcome(_kind(cause), claim, incoming, receipt, cause)


def pay_when_asked(request: Outgoing, paid: PaymentFlow) -> PaymentFlow:
    """Ask without payment first, and continue with the flow `paid` only after a 402: for what may be free."""
    try:
        incoming = yield _without_payment(request)
    except (NeverLeft, Lost) as problem:
        paid.close()
        return Outcome("refused", error=SellerUnreachable(f"{origin_of(request.url)}: no answer ({problem})"))
    if incoming.status != 402:
        paid.close()
        return Outcome("free", incoming=incoming)
    return (yield from paid)


class Funds(Protocol):
    """What a signer-funded client pays with: a signer under a policy, and a memory of open payments.

    `pay` chooses one of the asked offers, reserves its price and signs; it raises a `LocalRefusal` when the policy
    allows none, `SignerFailed` when the signer does not sign. `reopen` returns an open payment of the same request.
    """

    def reopen(self, request: Outgoing, now_s: int) -> SignedPayment | None: ...

    def pay(self, request: Outgoing, asked: PaymentAsked, now_s: int) -> SignedPayment: ...

    def never_left(self, payment: SignedPayment) -> None: ...

    def served(self, payment: SignedPayment) -> None: ...

    def lost(self, payment: SignedPayment) -> None: ...


def pay_with_signer(request: Outgoing, funds: Funds, clock: Callable[[], float]) -> PaymentFlow:
    """The ordinary handshake: ask, read the 402, choose and sign within the policy, ask again with the payment.

    A repeated request whose payment is open presents that payment at once and signs nothing.
    """
    payment = funds.reopen(request, int(clock()))
    if payment is None:
        try:
            incoming = yield _without_payment(request)
        except NeverLeft as problem:
            return Outcome("refused", error=SellerUnreachable(f"{origin_of(request.url)}: no connection ({problem})"))
        except Lost as problem:
            return Outcome("refused", error=SellerUnreachable(f"{origin_of(request.url)}: no answer ({problem})"))
        if incoming.status != 402:
            return Outcome("free", incoming=incoming)
        try:
            payment = funds.pay(request, read_payment_asked(incoming.headers, incoming.body), int(clock()))
        except FareboxError as error:
            return Outcome("refused", incoming=incoming, error=error)
    try:
        incoming = yield _with_payment(request, payment.headers(request.url))
    except NeverLeft as problem:
        funds.never_left(payment)
        return Outcome("refused", error=SellerUnreachable(f"{origin_of(request.url)}: no connection ({problem})"))
    except BaseException as problem:
        funds.lost(payment)
        if not isinstance(problem, Lost):
            raise
        lost = OutcomeUnknown(f"{origin_of(request.url)}: paid, but no answer ({problem})")
        return Outcome("unknown", error=lost)
    receipt = _receipt(incoming, payment.authorization, payment.offer)
    if 200 <= incoming.status < 300:
        funds.served(payment)
        return Outcome("served", payment=payment, incoming=incoming, receipt=receipt)
    funds.lost(payment)
    cause = _refusal(incoming, receipt, payment.offer) or _no_service(incoming, origin_of(request.url))
    return Outcome(_kind(cause), incoming=incoming, receipt=receipt, error=cause)


def _is_at(purchase: Purchase, url: str) -> bool:
    """Tell whether a URL is of the origin where a purchase pays."""
    return url.startswith(f"{purchase.endpoint}/") or origin_of(url) == purchase.origin


def _without_payment(request: Outgoing) -> Outgoing:
    headers = [(name, value) for name, value in request.headers if name.lower() not in _PAYMENT_HEADERS]
    return Outgoing(request.method, request.url, headers, request.body)


def _with_payment(request: Outgoing, payment: dict[str, str]) -> Outgoing:
    paid = _without_payment(request)
    paid.headers += payment.items()
    paid.paid = True
    return paid


def _kind(cause: FareboxError) -> Literal["refused", "unknown"]:
    return "unknown" if isinstance(cause, OutcomeUnknown) else "refused"


def _receipt(incoming: Incoming, paid: Authorization, offer: Offer) -> SettlementResponse | None:
    """Return the seller's receipt of `paid`; a malformed one, or another payment's, is none. Nothing depends on it."""
    value = incoming.headers.get(PAYMENT_RESPONSE) or incoming.headers.get(X_PAYMENT_RESPONSE)
    if not value:
        return None
    try:
        receipt = decode_settlement_response(value)
        is_ours = (
            (not receipt.payer or parse_address(receipt.payer) == paid.payer)
            and (not receipt.network or parse_network(receipt.network) == offer.network)
            and (not receipt.amount or _may_be_charged(wire_uint256(receipt.amount, "amount"), paid, offer))
        )
    except FareboxError:
        return None
    return receipt if is_ours else None


def _may_be_charged(amount_atomic: int, paid: Authorization, offer: Offer) -> bool:
    """Tell whether what the receipt states is what the signature allows: the price, or for `upto` no more than it."""
    return amount_atomic <= paid.value_atomic if offer.scheme == "upto" else amount_atomic == paid.value_atomic


def _refusal(incoming: Incoming, receipt: SettlementResponse | None, pinned: Offer) -> FareboxError | None:
    """Return why the seller refused the payment, when its answer says so."""
    if incoming.status not in (402, 412):
        return None
    if receipt is not None and not receipt.success and receipt.error_reason == "settlement_pending":
        return OutcomeUnknown("the settlement is on its way and not confirmed")
    try:
        asked = read_payment_asked(incoming.headers, incoming.body)
    except FareboxError:
        return PaymentRefused(f"the seller refused the payment: {_reason(receipt, None)}")
    offers = [option.terms.offer for option in asked.options if option.terms is not None]
    changed = _difference(pinned, offers)
    if changed is not None:
        return TermsChanged(f"the seller no longer offers the pinned terms: {changed}")
    return PaymentRefused(f"the seller refused the payment: {_reason(receipt, asked)}")


def _reason(receipt: SettlementResponse | None, asked: PaymentAsked | None) -> str:
    stated = (receipt and receipt.error_reason) or (asked and asked.error) or "it gives no reason"
    return "".join(character if character.isprintable() else " " for character in stated)[:120]


def _difference(pinned: Offer, offers: list[Offer]) -> str | None:
    """Return in words how the nearest offer differs from the pinned one, or None when one is equal."""
    same_place = [
        offer for offer in offers if offer.network == pinned.network and offer.asset.address == pinned.asset.address
    ]
    if any(_same(pinned, offer) for offer in same_place):
        return None
    if not same_place:
        return "neither its network nor its asset is offered now"
    nearest = same_place[0]
    if nearest.amount_atomic != pinned.amount_atomic:
        was, now = (format_amount(offer.amount_atomic, offer.asset) for offer in (pinned, nearest))
        return f"the price was {was} and is {now}"
    return "another payee, scheme, facilitator or token domain"


def _same(one: Offer, other: Offer) -> bool:
    return (
        one.amount_atomic == other.amount_atomic
        and one.pay_to == other.pay_to
        and (one.scheme, one.method, one.domain) == (other.scheme, other.method, other.domain)
        and one.extra.get("facilitatorAddress") == other.extra.get("facilitatorAddress")
    )


def _refused_again(cause: FareboxError, claim: Claim, incoming: Incoming) -> FareboxError:
    """Return what a refusal means for a payment the seller has seen before: never that another one is due.

    A seller that says "later" may have the answer yet. Any other word ends the matter where the money has moved; where
    that is not known, only the chain can tell.
    """
    if incoming.status in (429, 503) or incoming.headers.get("retry-after"):
        return cause
    if claim.spent:
        return RequestAlreadyPaid("this request was paid and answered, and the seller no longer keeps its answer")
    if isinstance(cause, OutcomeUnknown):
        return cause
    return OutcomeUnknown(f"the same payment was presented again, and refused ({cause.message}); it may have been used")


def content_digest(request: Outgoing) -> bytes:
    """Return 32 bytes that tell what is asked for: method, URL and body."""
    digest = hashlib.sha256()
    for part in (request.method.encode(), request.url.encode(), request.body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _no_service(incoming: Incoming, origin: str) -> OutcomeUnknown:
    if 300 <= incoming.status < 400:
        return OutcomeUnknown(f"{origin}: answered a paid request with a redirect, which is never followed")
    return OutcomeUnknown(f"{origin}: paid, but answered {incoming.status}; repeating presents the same payment")

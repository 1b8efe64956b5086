"""Funds of an SDK client: a signer under a policy, with a running total and a memory of open payments.

For a client without a pool. The total counts what was signed and may be used, not what was served. A payment whose
answer was lost stays open: repeating the very same request presents it again and signs nothing.
"""

from __future__ import annotations

import secrets
import threading

from buyer.asked import PaymentAsked
from buyer.bounded import BoundedSigner, Bounds
from buyer.flow import Outgoing, content_digest
from buyer.fresh import fresh_authorization
from buyer.limits import CLAIM_MARGIN_S, EXPIRY_CHAIN_MARGIN_S, OPEN_PAYMENTS_MAX
from buyer.payment import SignedPayment
from buyer.policy import SpendPolicy, choose
from buyer.signing import Signer
from contracts.address import Address
from contracts.errors import BudgetExceeded, OutcomeUnknown, RequestChanged, TermsNotAllowed, UsageError
from contracts.limits import EXPIRY_MARGIN_S
from contracts.money import format_amount
from contracts.networks import DEVNET_CHAIN_ID, find_asset
from contracts.offers import Offer

__all__ = ["SignerFunds", "fingerprint"]


class SignerFunds:
    """Pays out of one wallet within `policy`; safe for threads. `signed_atomic` tells what was promised so far."""

    def __init__(self, signer: Signer, policy: SpendPolicy) -> None:
        self._signer = signer
        self._policy = policy
        self._signed: dict[tuple[int, Address], int] = {}
        self._open: dict[str, SignedPayment] = {}
        self._lock = threading.Lock()

    def signed_atomic(self, offer: Offer) -> int:
        """Return the atomic units signed so far in the asset of `offer`."""
        return self._signed.get(_asset_key(offer), 0)

    def reopen(self, request: Outgoing, now_s: int) -> SignedPayment | None:
        """Take up the open payment of the same request while it can still be used.

        Two equal requests at once are two purchases: only a payment whose answer is lost is open. Raises
        `OutcomeUnknown` for one that is about to end, and `RequestChanged` where the request's own id now stands for
        another one: somebody else would get what is as good as money at the first one's seller.
        """
        key, content = fingerprint(request), content_digest(request)
        with self._lock:
            if key in self._open and self._open[key].content != content:
                raise RequestChanged("x-farebox-request-id: an open payment under this id is for another request")
            payment = self._open.pop(key, None)
            if payment is None or _is_over(payment, now_s):
                return None
            if now_s <= payment.authorization.valid_before_s - EXPIRY_MARGIN_S:
                return payment
            # Too old to present, too young to be dead by the chain's clock: a new one could be a second one.
            self._open[key] = payment
        raise OutcomeUnknown("an earlier payment for this request may still be used; it ends within a minute or two")

    def pay(self, request: Outgoing, asked: PaymentAsked, now_s: int) -> SignedPayment:
        """Choose, reserve and sign. Raises `LocalRefusal` leaves, `MalformedMessage` or `SignerFailed`."""
        terms = choose(asked, self._policy, request.url).terms
        offer = terms.offer
        self._check_unit(offer)
        validity_s = min(self._policy.max_validity_s, offer.max_timeout_s + CLAIM_MARGIN_S)
        nonce = secrets.token_bytes(32)
        authorization = fresh_authorization(offer, self._signer.address, nonce, now_s + validity_s)
        self._reserve(offer, now_s)
        bounds = Bounds(offer, 1, offer.amount_atomic, authorization.valid_before_s)
        # A signer that failed may have signed: its price stays reserved.
        signature = BoundedSigner(self._signer, bounds).sign_authorizations([authorization], offer)[0]
        return SignedPayment(fingerprint(request), content_digest(request), terms, authorization, signature)

    def never_left(self, payment: SignedPayment) -> None:
        """Keep the payment for a repetition of its request; the total is right as it is."""
        self.lost(payment)

    def served(self, payment: SignedPayment) -> None:
        """The request was answered: an identical one is a new purchase."""

    def lost(self, payment: SignedPayment) -> None:
        """Keep the payment open for a repetition of its request."""
        with self._lock:
            self._open[payment.request] = payment

    def close(self) -> None:
        """Let go of the signer."""
        self._signer.close()

    def _check_unit(self, offer: Offer) -> None:
        """Raise `TermsNotAllowed` where a cap in whole tokens means nothing: no chain is asked here for decimals."""
        is_known = offer.network.chain_id == DEVNET_CHAIN_ID or find_asset(offer.network, offer.asset.address)
        if not is_known and (self._policy.max_price is not None or self._policy.max_total is not None):
            raise TermsNotAllowed(
                f"how many decimals the token {offer.asset.address_text} has is not known here, so a cap in whole "
                "tokens does not bound it",
                remedy="give max_price_atomic and max_total_atomic for it",
            )

    def _reserve(self, offer: Offer, now_s: int) -> None:
        key, price_atomic = _asset_key(offer), offer.amount_atomic
        cap_atomic = self._policy.total_cap_atomic(offer.asset)
        with self._lock:
            if len(self._open) >= OPEN_PAYMENTS_MAX:
                self._open = {name: kept for name, kept in self._open.items() if not _is_over(kept, now_s)}
            if len(self._open) >= OPEN_PAYMENTS_MAX:
                raise BudgetExceeded(
                    f"{OPEN_PAYMENTS_MAX} payments wait for their outcome", remedy="wait until some of them expire"
                )
            signed_atomic = self._signed.get(key, 0)
            if cap_atomic is not None and signed_atomic + price_atomic > cap_atomic:
                cap, signed, price = (
                    format_amount(amount, offer.asset) for amount in (cap_atomic, signed_atomic, price_atomic)
                )
                raise BudgetExceeded(
                    f"max_total is {cap}; {signed} were signed and this costs {price}",
                    remedy="raise max_total, or use another client",
                )
            self._signed[key] = signed_atomic + price_atomic


def _is_over(payment: SignedPayment, now_s: int) -> bool:
    """Tell whether nobody can cash an open payment any more, by the chain's clock either."""
    return now_s > payment.authorization.valid_before_s + EXPIRY_CHAIN_MARGIN_S


def fingerprint(request: Outgoing) -> str:
    """Return what tells one logical request from another: its own id, else method, URL and body."""
    for name, value in request.headers:
        if name.lower() == "x-farebox-request-id":
            if not 0 < len(value) <= 200:
                raise UsageError("x-farebox-request-id: expected 1 to 200 characters")
            return f"id:{value}"
    return f"sha256:{content_digest(request).hex()}"


def _asset_key(offer: Offer) -> tuple[int, Address]:
    return offer.network.chain_id, offer.asset.address

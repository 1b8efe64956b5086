"""Policy in front of a signer: it refuses before the signer is asked, and believes no signature it has not checked.

A key in this very process is no stranger, and checking costs more than signing: of its signatures the first and the
last of each batch are checked, of all others every one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from buyer.checked import checked_signature
from buyer.fresh import facilitator_of
from buyer.key_signer import KeySigner
from buyer.signing import PaymentSigner
from buyer.slot_signer import SlotSigner
from contracts.address import Address, address_text
from contracts.errors import BudgetExceeded, PriceAboveCap, SignerFailed, TermsNotAllowed
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.schemes.rails import rail_of

__all__ = ["BoundedSigner", "Bounds"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one run may have signed: at most `count_max` payments of at most `price_max_atomic`, only for these terms.

    `valid_before_max_s` is the latest validBefore, unix seconds.
    """

    offer: Offer
    count_max: int
    price_max_atomic: int
    valid_before_max_s: int

    @property
    def total_max_atomic(self) -> int:
        """The worst-case loss in atomic units."""
        return self.count_max * self.price_max_atomic


class BoundedSigner:
    """A signer that signs only inside `bounds`. It counts what it asked for, also when the signer then failed."""

    def __init__(self, signer: PaymentSigner, bounds: Bounds) -> None:
        self._signer = signer
        self._bounds = bounds
        self._facilitator = facilitator_of(bounds.offer)
        self._asked: set[bytes] = set()
        self._asked_atomic = 0

    @property
    def address(self) -> Address:
        """The wallet that pays."""
        return self._signer.address

    def sign_authorizations(self, authorizations: Sequence[Authorization], offer: Offer) -> list[bytes]:
        """Return signatures, in order, checked as the module says.

        Raises `TermsNotAllowed`, `PriceAboveCap` or `BudgetExceeded` before the signer is asked for any of them;
        `SignerFailed` when the signer fails or one of its signatures is not the wallet's.
        """
        self._check_offer(offer)
        for authorization in authorizations:
            self._check(authorization)
        new = [authorization for authorization in authorizations if authorization.nonce not in self._asked]
        if len(self._asked) + len({authorization.nonce for authorization in new}) > self._bounds.count_max:
            raise BudgetExceeded(f"more than the {self._bounds.count_max} agreed authorizations would be signed")
        value_atomic = sum(authorization.value_atomic for authorization in new)
        if self._asked_atomic + value_atomic > self._bounds.total_max_atomic:
            raise BudgetExceeded(f"more than the agreed {self._bounds.total_max_atomic} atomic units would be signed")
        self._asked.update(authorization.nonce for authorization in new)
        self._asked_atomic += value_atomic
        signatures = self._signer.sign_authorizations(authorizations, offer)
        if len(signatures) != len(authorizations):
            raise SignerFailed(f"the signer returned {len(signatures)} signatures for {len(authorizations)}")
        if isinstance(self._signer, SlotSigner):
            return signatures  # a contract's, of which it has checked the agent's part
        return self._checked(authorizations, signatures, offer)

    def _checked(
        self, authorizations: Sequence[Authorization], signatures: Sequence[bytes], offer: Offer
    ) -> list[bytes]:
        digest, checked = rail_of(offer).digest, list(signatures)
        places = range(len(checked))
        for place in {*places[:1], *places[-1:]} if type(self._signer) is KeySigner else places:
            checked[place] = checked_signature(digest(authorizations[place], offer), checked[place], self.address)
        return checked

    def _check_offer(self, asked: Offer) -> None:
        if asked.domain != self._bounds.offer.domain:
            raise TermsNotAllowed("the signature would be for another token or network than agreed")
        if rail_of(asked) is not rail_of(self._bounds.offer):
            raise TermsNotAllowed("the signature would move the money in another way than agreed")

    def _check(self, authorization: Authorization) -> None:
        bounds, offer = self._bounds, self._bounds.offer
        if authorization.facilitator != self._facilitator:
            raise TermsNotAllowed("another facilitator than agreed could settle it")
        if authorization.payer != self.address:
            raise TermsNotAllowed(f"the payer {address_text(authorization.payer)} is not the signer's wallet")
        if authorization.payee != offer.pay_to:
            raise TermsNotAllowed(f"the payee {address_text(authorization.payee)} is not the agreed one")
        if authorization.value_atomic > bounds.price_max_atomic:
            raise PriceAboveCap(f"{authorization.value_atomic} atomic units are above {bounds.price_max_atomic}")
        if authorization.valid_before_s > bounds.valid_before_max_s:
            raise TermsNotAllowed("the authorization would stay valid longer than agreed")

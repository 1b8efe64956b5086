"""A claim: one authorization taken for one logical request."""

from __future__ import annotations

import hashlib

import msgspec

from buyer.limits import CLAIM_MARGIN_S, SELLER_TIMEOUT_S_MAX
from buyer.payment import payment_headers
from buyer.purchase import Purchase
from buyer.tail import Tail
from contracts.schemes.authorization import Authorization

__all__ = ["Claim", "receipt_id", "usable_until_s"]


class Claim(msgspec.Struct, frozen=True, eq=False):
    """One authorization taken for one request.

    `again` says that the seller may have seen it before; `spent`, that it was answered, and is presented for the answer
    the seller may have kept. `client_key` names on whose budget it goes, `claimed_s` is when it was taken. `tail` is
    where the claim is written down when that is not in the books; `epoch` is that of the lease (`buyer.slots`).
    """

    purchase: Purchase
    authorization: Authorization
    signature: bytes
    request_key: str
    receipt_id: str
    row_id: int
    again: bool = False
    spent: bool = False
    client_key: str = ""
    claimed_s: int = 0
    tail: Tail | None = None
    epoch: int = 0

    def headers(self, url: str | None = None) -> dict[str, str]:
        """Return the payment header of a request to `url`, or to what was probed.

        That is `PAYMENT-SIGNATURE`, or `X-PAYMENT` for a version 1 seller.
        """
        return payment_headers(self.purchase.terms, self.authorization, self.signature, url)


def usable_until_s(purchase: Purchase, now_s: int) -> int:
    """Return the earliest validBefore, unix seconds, with which an authorization may be handed out now."""
    return now_s + CLAIM_MARGIN_S + min(purchase.offer.max_timeout_s, SELLER_TIMEOUT_S_MAX)


def receipt_id(chain_id: int, payer: bytes, nonce: bytes) -> str:
    """Return the public name of what one authorization was used for.

    Nonces of one Permit2 word begin alike, and AgentWallets number theirs alike, at one address on several chains.
    """
    return "rcpt_" + hashlib.sha256(chain_id.to_bytes(32, "big") + payer + nonce).hexdigest()[:24]

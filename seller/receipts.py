"""What a client is told of its money."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from contracts.address import Address, address_text
from contracts.errors import FareboxError
from contracts.headers import PAYMENT_RESPONSE, X_PAYMENT_RESPONSE, encode_header
from contracts.wire import SettlementResponse
from seller.claims import Claim
from seller.policy import Mode

__all__ = ["receipt", "receipt_headers"]

# Of credit that a payer is given every receipt is the same; payers remembered, at some hundred bytes each.
_RECEIPTS_MAX = 4096


def receipt(
    claim: Claim, transaction_hash: str, error: FareboxError | None = None, *, charged_atomic: int | None = None
) -> SettlementResponse:
    """Return what the client is told of its money: settled, queued, or refused with the reason.

    Of a payment by usage whose charge is not known yet it tells no amount, and that it is `metered`.
    """
    return _message(_facts(claim, transaction_hash, error, charged_atomic))


def receipt_headers(
    claim: Claim, transaction_hash: str, error: FareboxError | None = None, *, charged_atomic: int | None = None
) -> list[tuple[bytes, bytes]]:
    """Return the receipt as a header, in the spelling of the client's protocol version."""
    name = _V2 if claim.payment.x402_version == 2 else _V1
    return [(name, _header_value(_facts(claim, transaction_hash, error, charged_atomic)))]


_V2, _V1 = PAYMENT_RESPONSE.lower().encode(), X_PAYMENT_RESPONSE.lower().encode()


class _Facts(NamedTuple):
    success: bool
    transaction_hash: str
    network: str | None
    payer: Address
    amount_atomic: int | None
    reason: str | None
    state: str | None


def _facts(claim: Claim, transaction_hash: str, error: FareboxError | None, charged_atomic: int | None) -> _Facts:
    offer, authorization = claim.payment.offer, claim.payment.authorization
    if not claim.payment.is_metered:
        charged_atomic = authorization.value_atomic
    elif charged_atomic is None:
        charged_atomic = claim.charged_atomic
    state = None
    if error is None and charged_atomic is None:
        state = "metered"
    elif error is None and claim.mode is Mode.ASYNC and charged_atomic and not transaction_hash:
        state = "queued"
    return _Facts(
        success=error is None,
        transaction_hash=transaction_hash,
        network=offer.network.caip2 if claim.payment.x402_version == 2 else offer.network.legacy_name,
        payer=authorization.payer,
        amount_atomic=charged_atomic if error is None else None,
        reason=None if error is None else getattr(error, "x402_reason", error.code),
        state=state,
    )


def _message(facts: _Facts) -> SettlementResponse:
    return SettlementResponse(
        success=facts.success,
        transaction=facts.transaction_hash,
        network=facts.network,
        payer=address_text(facts.payer),
        amount=None if facts.amount_atomic is None else str(facts.amount_atomic),
        error_reason=facts.reason,
        extra=None if facts.state is None else {"settlement": facts.state},
    )


@lru_cache(_RECEIPTS_MAX)
def _header_value(facts: _Facts) -> bytes:
    return encode_header(_message(facts)).encode()

"""What a client is told of its money."""

from __future__ import annotations

from contracts.address import address_text
from contracts.errors import FareboxError
from contracts.wire import SettlementResponse
from seller.claims import Claim
from seller.policy import Mode

__all__ = ["receipt"]


def receipt(
    claim: Claim, transaction_hash: str, error: FareboxError | None = None, *, charged_atomic: int | None = None
) -> SettlementResponse:
    """Return what the client is told of its money: settled, queued, or refused with the reason.

    Of a payment by usage whose charge is not known yet it tells no amount, and that it is `metered`.
    """
    offer, authorization = claim.payment.offer, claim.payment.authorization
    version_2 = claim.payment.x402_version == 2
    if not claim.payment.is_metered:
        charged_atomic = authorization.value_atomic
    elif charged_atomic is None:
        charged_atomic = claim.charged_atomic
    state = None
    if error is None and charged_atomic is None:
        state = "metered"
    elif error is None and claim.mode is Mode.ASYNC and charged_atomic and not transaction_hash:
        state = "queued"
    return SettlementResponse(
        success=error is None,
        transaction=transaction_hash,
        network=offer.network.caip2 if version_2 else offer.network.legacy_name,
        payer=address_text(authorization.payer),
        amount=str(charged_atomic) if error is None and charged_atomic is not None else None,
        error_reason=None if error is None else getattr(error, "x402_reason", error.code),
        extra=None if state is None else {"settlement": state},
    )

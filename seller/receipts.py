"""What a client is told of its money."""

from __future__ import annotations

from contracts.address import address_text
from contracts.errors import FareboxError
from contracts.wire import SettlementResponse
from seller.claims import Claim
from seller.policy import Mode

__all__ = ["receipt"]


def receipt(claim: Claim, transaction_hash: str, error: FareboxError | None = None) -> SettlementResponse:
    """Return what the client is told of its money: settled, queued, or refused with the reason."""
    offer, authorization = claim.payment.offer, claim.payment.authorization
    version_2 = claim.payment.x402_version == 2
    queued = error is None and claim.mode is Mode.ASYNC and not transaction_hash
    return SettlementResponse(
        success=error is None,
        transaction=transaction_hash,
        network=offer.network.caip2 if version_2 else offer.network.legacy_name,
        payer=address_text(authorization.payer),
        amount=str(authorization.value_atomic) if error is None else None,
        error_reason=None if error is None else getattr(error, "x402_reason", error.code),
        extra={"settlement": "queued"} if queued else None,
    )

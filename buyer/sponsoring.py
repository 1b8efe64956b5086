"""Gas sponsoring: one payment over Permit2 without an approval beforehand, where the seller offers to submit a permit.

The wallet signs an EIP-2612 permit for exactly the payment (`eip2612GasSponsoring`), and whoever settles submits both.
It serves one payment: the token counts its permits, so a pool of them could be used in one order only. Pools are
approved with `farebox approve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from buyer.pool import Pool, payer_exposure
from buyer.purchase import Terms
from buyer.signing import Signer
from contracts.address import address_text
from contracts.errors import InsufficientAllowance
from contracts.evm.permit2 import Permit2
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, call_object, integer_of
from contracts.keccak import keccak
from contracts.money import format_amount
from contracts.networks import PERMIT2
from contracts.schemes.gas_sponsoring import GAS_SPONSORING, Permit
from contracts.schemes.rails import proxy_of
from contracts.typed_data import word_of_address

__all__ = ["is_sponsored", "sponsored"]

_NONCES = keccak(b"nonces(address)")[:4]


def is_sponsored(terms: Terms) -> bool:
    """Tell whether a permit goes with the payment."""
    extension = (terms.extensions or {}).get(GAS_SPONSORING)
    info = extension.get("info") if isinstance(extension, dict) else None
    return isinstance(info, dict) and "signature" in info


async def sponsored(pool: Pool, terms: Terms, signer: Signer, rpc_urls: Sequence[str], deadline_s: int) -> Terms:
    """Return terms whose payment carries a permit, where the seller takes one and the wallet has approved too little.

    Raises `InsufficientAllowance` while live authorizations count on the approval there is, which a permit replaces.
    """
    offer = terms.offer
    if proxy_of(offer) is None or GAS_SPONSORING not in (terms.extensions or {}):
        return terms
    async with Rpc(rpc_urls) as rpc:
        allowance_atomic = await Permit2(rpc).allowance(offer.asset.address, signer.address)
        facts = await Token(rpc, offer.asset.address).facts()
        call = call_object(offer.asset.address, _NONCES + word_of_address(signer.address))
        nonce = await rpc.batch([("eth_call", [call, "latest"])])
    has_permit = not isinstance(nonce[0], RpcRefused) and facts.domain_separator == offer.domain.separator
    if allowance_atomic >= offer.amount_atomic or not has_permit:
        return terms
    key = (offer.network.chain_id, offer.asset.address, signer.address)
    promised_atomic = pool.database.read(lambda connection: payer_exposure(connection, *key, registry=PERMIT2))
    if promised_atomic:
        amount = format_amount(promised_atomic + offer.amount_atomic, offer.asset, symbol=False)
        raise InsufficientAllowance(
            "the wallet's other payments count on what Permit2 may move now, and a permit would replace that",
            remedy=f"run `farebox approve --token {offer.asset.address_text} --amount {amount}` for all of them",
        )
    permit = Permit(signer.address, PERMIT2, offer.amount_atomic, integer_of(nonce[0], "nonces"), deadline_s)
    signature = signer.sign_permit(permit, offer.domain)
    info = {
        "from": address_text(permit.owner),
        "asset": offer.asset.address_text,
        "spender": address_text(permit.spender),
        "amount": str(permit.value_atomic),
        "nonce": str(permit.nonce),
        "deadline": str(permit.deadline_s),
        "signature": "0x" + signature.hex(),
        "version": "1",
    }
    extensions = terms.extensions or {}
    advertised = extensions[GAS_SPONSORING]
    stated = advertised.get("info") if isinstance(advertised, dict) else None
    echo = {"info": {**(stated if isinstance(stated, dict) else {}), **info}}
    return replace(terms, extensions={**extensions, GAS_SPONSORING: echo})

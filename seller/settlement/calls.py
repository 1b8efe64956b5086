"""The calls that settle a payment, and whether the chain would take them now."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from contracts.address import Address, address_text
from contracts.errors import ChainUnavailable
from contracts.evm.rpc import Reader, RpcRefused
from contracts.networks import MULTICALL3
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.erc6492 import unwrap
from contracts.schemes.rails import Rail, rail_of
from seller.limits import GAS_PER_CONTRACT_PAYER, GAS_PER_DEPLOYMENT
from seller.settlement.multicall import aggregate_call, aggregate_results
from seller.settlement.outbox import Item
from seller.verify import VerifiedPayment

__all__ = ["item_calls", "joined", "payment_calls", "refusal_of"]

_log = logging.getLogger("farebox.seller.settlement")

# JSON-RPC code of a revert; some nodes only say so in words.
_REVERTED_CODE = 3


def item_calls(item: Item, token: Address) -> list[Call]:
    """Return what settles a queued payment; the last call moves the money."""
    return _calls(item.rail, item.authorization, token, item.charged_atomic, item)


def payment_calls(payment: VerifiedPayment) -> list[Call]:
    """Return what would settle a payment now, for all that was signed; the last call moves the money."""
    authorization, token = payment.authorization, payment.offer.asset.address
    return _calls(rail_of(payment.offer), authorization, token, authorization.value_atomic, payment)


def _calls(
    rail: Rail, authorization: Authorization, token: Address, amount_atomic: int, signed: Item | VerifiedPayment
) -> list[Call]:
    # A wallet that does not exist yet is deployed first.
    wrapped = unwrap(signed.signature) if signed.contract_payer else None
    call = rail.settle_call(
        authorization,
        signed.signature if wrapped is None else wrapped.signature,
        token,
        amount_atomic,
        contract_payer=signed.contract_payer,
        permit=signed.token_permit,
    )
    return [call] if wrapped is None else [wrapped.deployment, call]


def joined(calls: Sequence[Call]) -> Call:
    """Return one call that makes all of `calls`, each of which may fail alone."""
    return calls[0] if len(calls) == 1 else Call(MULTICALL3, aggregate_call(calls))


async def refusal_of(
    rpc: Reader, calls: Sequence[Call], *, sender: Address | None = None, block: str = "latest", capped: bool = False
) -> str | None:
    """Simulate on `block` as `sender`; return why the last of `calls` fails, or None. Raises `ChainUnavailable`.

    "latest" has the time of the latest block, "pending" that of the next one; a node that keeps no pending block
    simulates on its latest. `capped` bounds the gas where a stranger's code runs.
    """
    call = joined(calls)
    request = {"to": address_text(call.to), "data": "0x" + call.data.hex()}
    if sender is not None:
        request["from"] = address_text(sender)
    if capped:
        request["gas"] = hex(GAS_PER_CONTRACT_PAYER if len(calls) == 1 else GAS_PER_DEPLOYMENT)
    try:
        answer = await rpc.call("eth_call", request, block)
    except RpcRefused as error:
        if error.rpc_code == _REVERTED_CODE or "revert" in error.message.lower() or capped:
            _log.info("the chain would refuse a payment: %s", error.message)
            return error.message
        if block != "latest":
            return await refusal_of(rpc, calls, sender=sender, capped=capped)
        raise ChainUnavailable(f"eth_call: {error.message}") from None
    if len(calls) > 1 and not aggregate_results(answer, len(calls))[-1]:
        return "the last of several calls fails"
    return None

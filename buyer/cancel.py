"""Cancel: revoke signed authorizations on chain, so that nobody can use them any more.

EIP-3009: the wallet signs `CancelAuthorization`, and many go into one transaction through Multicall3 where the chain
has it. Permit2: the wallet itself burns the nonces, a whole word of up to 256 with one transaction. An AgentWallet
burns its slots when its agent asks. What the chain then shows decides the state, not our receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eth_abi.abi import encode

from buyer.pool import Pool
from buyer.purchase import Purchase
from buyer.signing import Signer, Transaction
from buyer.transact import check_gas, cost_max_wei, price, submit
from contracts.address import Address, address_text
from contracts.errors import TermsNotAllowed
from contracts.evm.agent_wallet import cancel_slots_call, slot_of
from contracts.evm.rpc import Rpc
from contracts.keccak import keccak
from contracts.networks import MULTICALL3, PERMIT2
from contracts.schemes.authorization import Call
from contracts.schemes.exact_eip3009 import cancel_call
from contracts.schemes.permit2 import invalidate_call, word_and_bit
from contracts.storage import Connection

__all__ = ["Cancellation", "cancel", "plan_cancellation"]

_AGGREGATE3 = keccak(b"aggregate3((address,bool,bytes)[])")[:4]
# One revocation needs about 50,000 gas; fifty stay far below every block's limit.
_BATCH = 50


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What will be revoked, and its cost at most, in wei of the chain's own coin."""

    nonces: list[bytes]
    transactions: list[Transaction]
    cost_max_wei: int


async def plan_cancellation(purchase: Purchase, pool: Pool, signer: Signer, rpc_urls: Sequence[str]) -> Cancellation:
    """Sign the revocations of everything unspent and unsettled, and estimate what submitting them costs.

    Nothing is submitted. Raises `TermsNotAllowed` for another wallet, `InsufficientBalance` when it cannot pay the
    gas, `ChainUnavailable`, `SignerFailed`.
    """
    allowed = purchase.agent or purchase.payer
    if signer.address != allowed:
        raise TermsNotAllowed(f"only the wallet {address_text(allowed)} can revoke what it signed")
    by_registry = pool.database.read(lambda connection: _cancellable(connection, purchase))
    nonces = [nonce for of_registry in by_registry.values() for nonce in of_registry]
    if not nonces:
        return Cancellation([], [], 0)
    async with Rpc(rpc_urls) as rpc:
        calls: list[Call] = []
        for registry, of_registry in by_registry.items():
            if purchase.agent is not None:
                calls += _cancel_slots(purchase, of_registry)
            elif registry == PERMIT2:
                calls += _burn_words(of_registry)
            else:
                calls += await _cancel_in_token(rpc, registry, purchase, signer, of_registry)
        transactions = await price(rpc, purchase.offer.network.chain_id, signer.address, calls)
        await check_gas(rpc, signer.address, transactions, f"revoking {len(nonces)} authorizations")
    return Cancellation(nonces, transactions, cost_max_wei(transactions))


async def cancel(
    pool: Pool, purchase: Purchase, plan: Cancellation, signer: Signer, rpc_urls: Sequence[str]
) -> dict[str, int]:
    """Submit the revocations, wait until they are mined, and return what the chain then shows of the purchase.

    Raises `ChainUnavailable` or `SettlementFailed`; running it again is safe.
    """
    pool.database.transact(lambda connection: _note_asked(connection, purchase, plan.nonces))
    async with Rpc(rpc_urls) as rpc:
        await submit(rpc, signer, plan.transactions, "the revocation")
    return await pool.reconcile_purchase(purchase, rpc_urls, ready_too=True)


def _cancellable(connection: Connection, purchase: Purchase) -> dict[Address, list[bytes]]:
    """Return the nonces of what may still be used, by the contract that burns them."""
    query = """SELECT registry, nonce FROM authorizations
               WHERE purchase_id = ? AND state IN ('ready', 'unknown') ORDER BY id"""
    found: dict[Address, list[bytes]] = {}
    for row in connection.execute(query, (purchase.id,)):
        found.setdefault(Address(row["registry"]), []).append(row["nonce"])
    return found


def _note_asked(connection: Connection, purchase: Purchase, nonces: list[bytes]) -> None:
    connection.executemany(
        "UPDATE authorizations SET cancel_asked = 1 WHERE purchase_id = ? AND nonce = ?",
        [(purchase.id, nonce) for nonce in nonces],
    )


def _cancel_slots(purchase: Purchase, nonces: list[bytes]) -> list[Call]:
    """Let the agent have the AgentWallet burn its own slots, neighbours together."""
    runs: list[tuple[int, int, int]] = []
    slots = [slot for nonce in nonces if (slot := slot_of(nonce)) is not None]
    for day, number in sorted((slot.day, slot.number) for slot in slots):
        if runs and runs[-1][0] == day and runs[-1][2] == number - 1:
            runs[-1] = (day, runs[-1][1], number)
        else:
            runs.append((day, number, number))
    token = purchase.offer.asset.address
    return [cancel_slots_call(purchase.payer, token, day, first, last) for day, first, last in runs]


def _burn_words(nonces: list[bytes]) -> list[Call]:
    masks: dict[int, int] = {}
    for nonce in nonces:
        word, bit = word_and_bit(nonce)
        masks[word] = masks.get(word, 0) | 1 << bit
    return [invalidate_call(word, mask) for word, mask in masks.items()]


async def _cancel_in_token(
    rpc: Rpc, token: Address, purchase: Purchase, signer: Signer, nonces: list[bytes]
) -> list[Call]:
    signatures = signer.sign_cancellations(nonces, purchase.offer.domain)
    calls = [cancel_call(signer.address, nonce, signature) for nonce, signature in zip(nonces, signatures, strict=True)]
    if await rpc.call("eth_getCode", address_text(MULTICALL3), "latest") in ("0x", None):
        return [Call(token, call) for call in calls]
    groups = [calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH)]
    # Each revocation may fail alone: one may be used or revoked already.
    return [
        Call(
            MULTICALL3,
            _AGGREGATE3 + encode(["(address,bool,bytes)[]"], [[(address_text(token), True, call) for call in group]]),
        )
        for group in groups
    ]

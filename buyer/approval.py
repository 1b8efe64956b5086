"""Approval: how much of one token a wallet lets Permit2 move, which is a second cap that the chain itself holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from buyer.chain import endpoints_by_chain
from buyer.documents import asset_document, money
from buyer.pool import Pool, payer_exposure
from buyer.presign import check_wallet
from buyer.purchase import Purchase
from buyer.signing import Signer, Transaction
from buyer.transact import check_gas, coin, cost_max_wei, price, submit
from contracts.address import Address, address_text, parse_address
from contracts.console import out
from contracts.errors import TermsNotAllowed, UsageError
from contracts.evm.permit2 import Permit2, approve_data
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token
from contracts.money import Asset, format_amount, parse_amount
from contracts.networks import PERMIT2, Network, find_asset
from contracts.schemes.authorization import Call

__all__ = [
    "Approval",
    "approval_document",
    "carry_out_approval",
    "plan_approval",
    "print_approval",
    "question",
    "token_at",
]


@dataclass(frozen=True, slots=True)
class Approval:
    """What will be approved. `promised_atomic` is what live authorizations may have Permit2 move."""

    network: Network
    asset: Asset
    wallet: Address
    before_atomic: int
    amount_atomic: int
    promised_atomic: int
    transactions: list[Transaction]
    rpc_urls: tuple[str, ...]


async def plan_approval(
    pool: Pool, signer: Signer, meant: Purchase | str, amount: str, rpc_urls: Sequence[str]
) -> Approval:
    """Read what is allowed now and price the transaction; nothing is sent.

    `meant` is a purchase, or the address of a token on the one chain that `rpc_urls` serve. `amount` is
    a bounded amount of it, 0 to allow nothing more. Raises `UsageError`, `TermsNotAllowed`, `InsufficientBalance`,
    `ChainUnavailable`, and `SettlementFailed` where the token refuses.
    """
    endpoints = await endpoints_by_chain(rpc_urls)
    if isinstance(meant, str):
        network, asset = await token_at(meant, endpoints)
    else:
        check_wallet(meant, signer)
        network, asset = meant.offer.network, meant.offer.asset
    urls = endpoints.get(network.chain_id)
    if urls is None:
        raise UsageError(f"--rpc: none of the endpoints is of {network.label}")
    amount_atomic = parse_amount(amount, asset, "--amount", zero_allowed=True)
    async with Rpc(urls) as rpc:
        if not (await Token(rpc, PERMIT2).facts()).has_code:
            raise TermsNotAllowed(f"there is no Permit2 on {network.label}", remedy="nothing there is paid through it")
        before_atomic = await Permit2(rpc).allowance(asset.address, signer.address)
        calls = [Call(asset.address, approve_data(amount_atomic))]
        transactions = await price(rpc, network.chain_id, signer.address, calls)
        await check_gas(rpc, signer.address, transactions, "the approval")
    promised_atomic = pool.database.read(
        lambda connection: payer_exposure(connection, network.chain_id, asset.address, signer.address, registry=PERMIT2)
    )
    return Approval(network, asset, signer.address, before_atomic, amount_atomic, promised_atomic, transactions, urls)


async def carry_out_approval(plan: Approval, signer: Signer) -> str:
    """Send the transaction, wait until it is mined, and return its hash. Raises as `buyer.transact.submit`."""
    async with Rpc(plan.rpc_urls) as rpc:
        (sent,) = await submit(rpc, signer, plan.transactions, "the approval")
    return sent


def question(plan: Approval) -> str:
    """Return what a person is asked to agree to."""
    return (
        f"Let Permit2 move up to {format_amount(plan.amount_atomic, plan.asset)} of {address_text(plan.wallet)}, "
        f"for at most {coin(cost_max_wei(plan.transactions))} of the chain's own coin?"
    )


def approval_document(plan: Approval, transaction: str | None) -> dict[str, Any]:
    """Return what was, or would be, approved."""
    return {
        "ok": True,
        "dry_run": transaction is None,
        "wallet": address_text(plan.wallet),
        "network": plan.network.caip2,
        "network_name": plan.network.label,
        "asset": asset_document(plan.asset),
        "spender": address_text(PERMIT2),
        **money("before", plan.before_atomic, plan.asset),
        **money("amount", plan.amount_atomic, plan.asset),
        **money("promised", plan.promised_atomic, plan.asset),
        "gas_cost_max_wei": str(cost_max_wei(plan.transactions)),
        "transaction": transaction,
    }


def print_approval(document: dict[str, Any]) -> None:
    """Print what was, or would be, approved."""
    verb = "would let" if document["dry_run"] else "lets"
    out.print(f"{document['wallet']} {verb} Permit2 move up to {document['amount']}", markup=False)
    out.print(f"  before: {document['before']}; live authorizations promise {document['promised']}", markup=False)
    if int(document["amount_atomic"]) < int(document["promised_atomic"]):
        out.print("  [yellow]less than what is promised: some payments will be refused[/]")
    out.print(f"  gas: at most {coin(int(document['gas_cost_max_wei']))} of the chain's own coin", markup=False)
    if document["transaction"]:
        out.print(f"  transaction {document['transaction']}", markup=False)


async def token_at(token: str, endpoints: Mapping[int, tuple[str, ...]]) -> tuple[Network, Asset]:
    """Return the token at an address that was typed, on the one chain of `endpoints`. Raises `UsageError`."""
    if len(endpoints) != 1:
        raise UsageError("--rpc: the endpoints are of several chains", remedy="name those of one chain")
    (chain_id,) = endpoints
    network, address = Network(chain_id), parse_address(token, "--token")
    known = find_asset(network, address)
    if known is not None:
        return network, known
    async with Rpc(endpoints[chain_id]) as rpc:
        facts = await Token(rpc, address).facts()
    if not facts.has_code or facts.decimals is None:
        raise UsageError(f"--token: there is no token at {address_text(address)} on {network.label}")
    return network, Asset(address, "", "", facts.decimals, "tokens")

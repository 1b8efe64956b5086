"""Balances: what wallets hold, what is promised, what is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from buyer.chain import endpoints_by_chain
from buyer.documents import asset_document, money
from buyer.pool import Pool
from contracts.address import Address, address_text
from contracts.console import out
from contracts.errors import UsageError
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token
from contracts.money import Asset
from contracts.networks import ASSETS, Network

__all__ = ["print_balances", "read_balances"]


async def read_balances(pool: Pool, wallet: Address | None, rpc_urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return one document for each wallet and token: those of the purchases, and of `wallet` if given.

    Raises `ChainUnavailable`, and `UsageError` when nothing tells which wallet or token is meant.
    """
    purchases = pool.purchases()
    urls = rpc_urls or [url for purchase in purchases for url in purchase.rpc_urls]
    endpoints = await endpoints_by_chain(urls)
    wanted: dict[tuple[int, Address, Address], Asset] = {}
    for purchase in purchases:
        offer = purchase.offer
        for payer in {purchase.payer} if wallet is None else {wallet}:
            wanted[offer.network.chain_id, offer.asset.address, payer] = offer.asset
    if wallet is not None:
        for chain_id in endpoints:
            for asset in ASSETS.get(chain_id, ()):
                wanted.setdefault((chain_id, asset.address, wallet), asset)
    if not wanted:
        raise UsageError(
            "no wallet or token is known yet",
            remedy="name the wallet with --signer and a public chain with --rpc, or buy first",
        )
    documents = []
    for (chain_id, token, payer), asset in wanted.items():
        network = Network(chain_id)
        if chain_id not in endpoints:
            continue
        async with Rpc(endpoints[chain_id]) as rpc:
            balance_atomic = await Token(rpc, token).balance_of(payer)
        promised_atomic = pool.payer_exposure_atomic(chain_id, token, payer)
        documents.append(
            {
                "wallet": address_text(payer),
                "network": network.caip2,
                "network_name": network.label,
                "asset": asset_document(asset),
                **money("balance", balance_atomic, asset),
                **money("promised", promised_atomic, asset),
                **money("free", balance_atomic - promised_atomic, asset),
            }
        )
    return documents


def print_balances(documents: Sequence[dict[str, Any]]) -> None:
    """Print balances as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("WALLET", "NETWORK", "BALANCE", "PROMISED", "FREE"):
        table.add_column(column)
    for document in documents:
        names = ("wallet", "network_name", "balance", "promised", "free")
        table.add_row(*(escape(document[name]) for name in names))
    out.print(table)

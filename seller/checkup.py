"""What a seller depends on, looked at without selling: its token, its gas account, the server that it sells."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from urllib.parse import urlsplit

from contracts.address import address_text
from contracts.errors import ChainUnavailable, SettlementUnavailable, UpstreamFailed
from contracts.evm.rpc import Rpc
from seller.config import SellerConfig
from seller.limits import GAS_PER_TRANSFER, UPSTREAM_CONNECT_TIMEOUT_S
from seller.service import Seller
from seller.settlement.key import read_gas_key
from seller.tokens import check_rails, check_token

__all__ = ["has_gas_key", "look_at_gas_account", "look_at_token", "look_at_upstream"]


def has_gas_key(config: SellerConfig) -> bool:
    """Tell whether the key of the gas account is on this machine; another one may settle."""
    path = config.settler.key_file
    return path is not None and Path(path).exists()


async def look_at_token(config: SellerConfig) -> str:
    """Say that the token and the contracts that move it are what the settings say.

    Raises `ConfigInvalid`, as `farebox sell` would at its start, or `ChainUnavailable`.
    """
    offers = Seller(config, settles=has_gas_key(config)).book.offers
    async with Rpc(config.rpc) as rpc:
        await check_token(rpc, config.chain, config.token, {offer.method for offer in offers})
        await check_rails(rpc, offers)
    return f"{config.token.symbol} is the token of the settings, on {config.chain.label}"


async def look_at_gas_account(config: SellerConfig) -> str:
    """Say how many settlements, each in a transaction of its own, the gas account can pay at today's price.

    For settings whose key file is there. Raises `ConfigInvalid`, `ChainUnavailable`, and `SettlementUnavailable` for an
    account that cannot pay one.
    """
    account = read_gas_key(Path(config.settler.key_file or "")).address
    async with Rpc(config.rpc) as rpc:
        balance, price = await rpc.batch([("eth_getBalance", [address_text(account), "latest"]), ("eth_gasPrice", [])])
    try:
        settlements = int(balance, 16) // max(1, int(price, 16) * GAS_PER_TRANSFER)
    except (TypeError, ValueError):
        raise ChainUnavailable("the chain's node did not tell balance or gas price") from None
    if settlements < 1:
        raise SettlementUnavailable(
            f"{address_text(account)} cannot pay the gas of one settlement",
            remedy=f"send ether to {address_text(account)}",
        )
    return f"{address_text(account)} can pay for some {settlements:,} settlements at today's gas price"


async def look_at_upstream(config: SellerConfig) -> str:
    """Say that something listens where the sold server should. Raises `UpstreamFailed`."""
    parts = urlsplit(config.upstream or "")
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(UPSTREAM_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        raise UpstreamFailed(
            f"nothing listens on {host}:{port}", remedy="start the server to sell, or correct `upstream`"
        ) from None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return f"{host}:{port} listens"

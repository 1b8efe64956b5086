"""Parts of live benches: a model served in this process, a `farebox sell` in front of it, and payments signed ahead."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.types import ASGIApp

from buyer.key_signer import KeySigner
from buyer.pool import Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.purchase import terms_from_wire
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from contracts.offers import Offer, requirements
from gateway.demo.ports import free_ports
from gateway.demo.processes import Crew, farebox_command
from seller.config import SellerConfig, read_config

__all__ = ["ROUTE", "Stall", "funded_signer", "open_stall", "serving", "sign_ahead"]

ROUTE = "/v1/chat/completions"
_TTL_S = 86_400
_WALLET_ATOMIC = 10**12
_GAS_WEI = 10**21


@dataclass(frozen=True, slots=True)
class Stall:
    """A running seller: its settings, and where its books are shown."""

    config: SellerConfig
    admin_url: str


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """Serve an application on a free port of this process."""
    bound = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical", ws="none"))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


async def open_stall(
    chain: Devnet, crew: Crew, folder: Path, name: str, *, upstream_port: int, settings: Mapping[str, Any]
) -> Stall:
    """Start a seller that settles by itself, late, and trusts everybody; `settings` say what it sells and how."""
    settler, payee = secrets.token_bytes(32), KeySigner(secrets.token_bytes(32))
    (key_file := folder / f"{name}.key").write_text(settler.hex())
    key_file.chmod(0o600)
    chain.fund_gas(address_text(KeySigner(settler).address), _GAS_WEI)
    port, admin_port = free_ports(2)
    document = {
        "upstream": f"http://127.0.0.1:{upstream_port}",
        "listen": f"127.0.0.1:{port}",
        "network": chain.network,
        "rpc": [chain.rpc_url],
        "asset": {"address": chain.token, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"},
        "pay_to": address_text(payee.address),
        "settle": "async",
        "settler": {"kind": "chain", "key_file": key_file.name},
        "exposure": {"per_payer": "1000", "total": "1000"},
        "store": f"sqlite:///{name}.db",
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    command = farebox_command("sell", "--config", str(path), "--admin-listen", f"127.0.0.1:{admin_port}")
    stall = Stall(read_config(path), f"http://127.0.0.1:{admin_port}")
    await asyncio.to_thread(crew.wait_ready, crew.start(f"seller-{name}", command), f"{stall.admin_url}/readyz")
    return stall


def funded_signer(chain: Devnet) -> KeySigner:
    """Return a new buyer with more money than any bench spends."""
    signer = KeySigner(secrets.token_bytes(32))
    chain.mint(address_text(signer.address), _WALLET_ATOMIC)
    return signer


async def sign_ahead(
    pool: Pool, chain: Devnet, signer: KeySigner, stall: Stall, offer: Offer, *, name: str, model: str, count: int
) -> None:
    """Sign `count` payments of an offer into a pool, as a purchase of its own."""
    draft = Draft(
        name=name,
        kind="pool",
        endpoint=stall.config.base_url,
        model=model,
        payer=signer.address,
        terms=terms_from_wire(requirements(offer)),
        price_cap_atomic=offer.amount_atomic,
        ttl_s=_TTL_S,
        refill=None,
        rpc_urls=(chain.rpc_url,),
    )
    carry_out(pool, await prepare(pool, draft, count, int(time.time())), signer)

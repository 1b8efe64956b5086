"""One real seller with a background tier on a local chain, and two real buyers: one who pays in full, one who can wait.

The seller is `farebox sell`, the first buyer a `farebox serve`, the second `farebox background run`; payments are
signed, verified and settled as anybody's. Only the model behind the seller is a stand-in: a call takes as many
milliseconds as it asks for tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from buyer.home import Home
from buyer.key_signer import KeySigner
from buyer.pool import Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.purchase import terms_from_wire
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from contracts.offers import requirements
from contracts.tiers import BACKGROUND, NORMAL
from gateway.background.backlog import Backlog
from gateway.demo.processes import Child, Crew, farebox_command, free_ports
from seller.config import SellerConfig, read_config
from seller.pricebook import PriceBook

__all__ = ["MODEL", "IdleTown", "open_idle_town"]

MODEL = "patient"
PRICE = "0.001"
_CHAT = "/v1/chat/completions"
_TTL_S = 86_400
_WALLET_ATOMIC = 10**12
_GAS_WEI = 10**21
_STEPS_S = 0.02


class Model:
    """The stand-in behind the seller. `calls` were begun; those numbered in `endless` last until they are stopped."""

    def __init__(self) -> None:
        self.calls = 0
        self.endless: set[int] = set()
        self.app = Starlette(routes=[Route(_CHAT, self._chat, methods=["POST"])])

    async def _chat(self, request: Request) -> Response:
        document = await request.json()
        self.calls += 1
        takes_s = float("inf") if self.calls in self.endless else document["max_tokens"] / 1000
        ends_s = time.monotonic() + takes_s
        # Whoever stops the work hangs up, and the model notices.
        while (left_s := ends_s - time.monotonic()) > 0 and not await request.is_disconnected():  # noqa: ASYNC110
            await asyncio.sleep(min(left_s, _STEPS_S))
        text = {"role": "assistant", "content": "done"}
        return JSONResponse({"object": "chat.completion", "choices": [{"index": 0, "message": text}]})


@dataclass(frozen=True, slots=True)
class IdleTown:
    """Everything that runs. `homes` are the buyers' pools by the tier they bought."""

    folder: Path
    chain: Devnet
    crew: Crew
    model: Model
    seller: SellerConfig
    homes: Mapping[str, Path]

    @contextlib.contextmanager
    def backlog(self) -> Iterator[Backlog]:
        """Open the backlog of the buyer who can wait."""
        backlog = Backlog.open(f"sqlite:///{self.homes[BACKGROUND] / 'background.db'}")
        try:
            yield backlog
        finally:
            backlog.close()

    def add(self, backlog: Backlog, takes_ms: int, *, max_price_units: int, lives_ms: int = 3_600_000) -> str:
        """Give that buyer one more task of so many milliseconds, and return its id."""
        request = json.dumps({"messages": [{"role": "user", "content": "wait"}], "max_tokens": takes_ms}).encode()
        now_ms = time.time_ns() // 1_000_000
        return backlog.add(
            MODEL, request, max_price_units=max_price_units, now_ms=now_ms, expires_ms=now_ms + lives_ms
        ).id

    def start_filling(self, *options: str) -> Child:
        """Let that buyer buy from now on."""
        return self.crew.start(
            "background", farebox_command("background", "run", "--config", str(self._config(BACKGROUND)), *options)
        )

    async def start_gateway(self) -> str:
        """Start the gateway of the buyer who pays in full, and return its address."""
        port, admin_port = free_ports(2)
        listen = {"listen": f"127.0.0.1:{port}", "admin_listen": f"127.0.0.1:{admin_port}"}
        child = self.crew.start("gateway", farebox_command("serve", "--config", str(self._config(NORMAL, **listen))))
        await asyncio.to_thread(self.crew.wait_ready, child, f"http://127.0.0.1:{admin_port}/readyz")
        return f"http://127.0.0.1:{port}"

    def earned_atomic(self) -> int:
        """Return what the seller holds on chain."""
        return self.chain.balance_of(self.seller.pay_to)

    def _config(self, tier: str, **given: str) -> Path:
        path = self.folder / f"{tier}.yaml"
        path.write_text(yaml.safe_dump({"home": str(self.homes[tier]), **given}))
        return path


@contextlib.asynccontextmanager
async def open_idle_town(
    folder: Path, *, slots: int, payments: Mapping[str, int], chain: Devnet | None = None
) -> AsyncIterator[IdleTown]:
    """Start chain, model and seller, and sign so many `payments` ahead for each tier; it ends with the context."""
    async with contextlib.AsyncExitStack() as stack:
        chain = chain or stack.enter_context(Devnet(log_file=folder / "anvil.log"))
        crew = stack.enter_context(Crew(folder, {}))
        model = Model()
        port = await stack.enter_async_context(_serving(model.app))
        path, admin_url = _seller_config(chain, folder, slots, port)
        seller = read_config(path)
        command = farebox_command("sell", "--config", str(path), "--admin-listen", admin_url.removeprefix("http://"))
        await asyncio.to_thread(crew.wait_ready, crew.start("seller", command), f"{admin_url}/readyz")
        homes = {tier: folder / f"home-{tier}" for tier in payments}
        for tier, count in payments.items():
            await _stock(chain, homes[tier], seller, tier, count)
        yield IdleTown(folder, chain, crew, model, seller, homes)


@contextlib.asynccontextmanager
async def _serving(app: Starlette) -> AsyncIterator[int]:
    """Serve an application on a free port of this process."""
    bound = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical", ws="none"))
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await serving


def _seller_config(chain: Devnet, folder: Path, slots: int, upstream_port: int) -> tuple[Path, str]:
    secret, payee = secrets.token_bytes(32), KeySigner(secrets.token_bytes(32))
    (key_file := folder / "settler.key").write_text(secret.hex())
    key_file.chmod(0o600)
    chain.fund_gas(address_text(KeySigner(secret).address), _GAS_WEI)
    port, admin_port = free_ports(2)
    path = folder / "seller.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "upstream": f"http://127.0.0.1:{upstream_port}",
                "listen": f"127.0.0.1:{port}",
                "network": chain.network,
                "rpc": [chain.rpc_url],
                "asset": {"address": chain.token, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"},
                "pay_to": address_text(payee.address),
                "settle": "async",
                "settler": {"kind": "chain", "key_file": key_file.name},
                "exposure": {"per_payer": "1000", "total": "1000"},
                "capacity": {"slots": slots, "queue": 1_000},
                "tiers": {NORMAL: {}, BACKGROUND: {"price_bp": 5_000}},
                "store": "sqlite:///seller.db",
                "routes": [{"match": f"POST {_CHAT}", "models": {MODEL: PRICE}}],
            }
        )
    )
    return path, f"http://127.0.0.1:{admin_port}"


async def _stock(chain: Devnet, home: Path, seller: SellerConfig, tier: str, count: int) -> None:
    """Sign `count` payments of one tier of the seller."""
    signer = KeySigner(secrets.token_bytes(32))
    chain.mint(address_text(signer.address), _WALLET_ATOMIC)
    offer = PriceBook(seller).routes[0].quote_for(MODEL).tiers[tier].offer
    draft = Draft(
        name=tier,
        kind="pool",
        endpoint=seller.base_url,
        model=MODEL,
        payer=signer.address,
        terms=terms_from_wire(requirements(offer)),
        price_cap_atomic=offer.amount_atomic,
        ttl_s=_TTL_S,
        refill=None,
        rpc_urls=(chain.rpc_url,),
    )
    with Pool.open(Home.open(home)) as pool:
        carry_out(pool, await prepare(pool, draft, count, int(time.time())), signer)

"""One real seller with a background tier on a local chain, and two real buyers: one who pays in full, one who can wait.

The seller is `farebox sell`, the first buyer a `farebox serve`, the second `farebox background run`; payments are
signed, verified and settled as anybody's. Only the model behind the seller is a stand-in: a call takes as many
milliseconds as it asks for tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bench.live_parts import ROUTE, Stall, funded_signer, open_stall, serving, sign_ahead
from buyer.home import Home
from buyer.pool import Pool
from contracts.evm.devnet import Devnet
from contracts.tiers import BACKGROUND, NORMAL
from gateway.background.backlog import Backlog
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, Crew, farebox_command
from seller.config import SellerConfig
from seller.pricebook import PriceBook

__all__ = ["MODEL", "IdleTown", "open_idle_town"]

MODEL = "patient"
PRICE = "0.001"
_STEPS_S = 0.02


class Model:
    """The stand-in behind the seller. `calls` were begun; those numbered in `endless` last until they are stopped."""

    def __init__(self) -> None:
        self.calls = 0
        self.endless: set[int] = set()
        self.app = Starlette(routes=[Route(ROUTE, self._chat, methods=["POST"])])

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
        port = await stack.enter_async_context(serving(model.app))
        stall = await open_stall(chain, crew, folder, "seller", upstream_port=port, settings=_settings(slots))
        homes = {tier: folder / f"home-{tier}" for tier in payments}
        for tier, count in payments.items():
            await _stock(chain, homes[tier], stall, tier, count)
        yield IdleTown(folder, chain, crew, model, stall.config, homes)


def _settings(slots: int) -> dict[str, Any]:
    return {
        "capacity": {"slots": slots, "queue": 1_000},
        "tiers": {NORMAL: {}, BACKGROUND: {"price_bp": 5_000}},
        "routes": [{"match": f"POST {ROUTE}", "models": {MODEL: PRICE}}],
    }


async def _stock(chain: Devnet, home: Path, stall: Stall, tier: str, count: int) -> None:
    """Sign `count` payments of one tier of the seller."""
    offer = PriceBook(stall.config).routes[0].quote_for(MODEL).tiers[tier].offer
    with Pool.open(Home.open(home)) as pool:
        await sign_ahead(pool, chain, funded_signer(chain), stall, offer, name=tier, model=MODEL, count=count)

"""The town of `bench.live_bidder`: three real sellers on one local chain, and a gateway of its own for each policy.

Sellers are `farebox sell`, gateways are `farebox serve`, payments are signed, verified and settled as anybody's. Only
the models behind the sellers are stand-ins: they take the time that a call's work takes at their speed, and fail now
and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import yaml

from bench.live_parts import ROUTE, Stall, funded_signer, open_stall, serving, sign_ahead
from buyer.home import Home
from buyer.pool import Pool
from contracts.evm.devnet import Devnet
from contracts.tiers import load_of, tier_of
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, Crew, farebox_command
from seller.pricebook import PriceBook

__all__ = ["MODEL", "SELLERS", "Gateway", "SellerSpec", "Town", "open_town"]

MODEL = "live"
TOKENS_PER_WORK = 500


@dataclass(frozen=True, slots=True)
class SellerSpec:
    """One seller: `second_s` for a call of ordinary work, `slots` at once, `ok` the share of good answers.

    From half-way on, a call takes `slowdown` times as long. `price` is that of a call, in tokens.
    """

    name: str
    second_s: float
    slots: int
    price: str
    ok: float
    tiers: dict[str, dict[str, int]]
    slowdown: float = 1.0


_NORMAL = {"normal": {"price_bp": 10_000, "queue": 12}}
_URGENT = {"urgent": {"price_bp": 17_000, "queue": 8}}
_BACKGROUND = {"background": {"price_bp": 6_500, "queue": 24}}

SELLERS = (
    SellerSpec("thrifty", 1.2, 3, "0.0005", 0.93, _NORMAL | _BACKGROUND),
    SellerSpec("plain", 0.6, 3, "0.0009", 0.97, _URGENT | _NORMAL | _BACKGROUND, slowdown=3.0),
    SellerSpec("swift", 0.3, 2, "0.0016", 0.99, _URGENT | _NORMAL),
)
"""Dear ones are fast and good, as in the simulated market; the one in the middle degrades half-way."""


class Model:
    """A stand-in for the model behind one seller: an ASGI application that takes its time."""

    def __init__(self, spec: SellerSpec, seed: int) -> None:
        self.spec = spec
        self.slowdown = 1.0
        self._random = Random(f"{seed} {spec.name}")

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        """Answer one call."""
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        work = msgspec.json.decode(body)["max_tokens"] / TOKENS_PER_WORK
        luck, is_good = self._random.gammavariate(6, 1 / 6), self._random.random() < self.spec.ok
        await asyncio.sleep(work * self.spec.second_s * self.slowdown * luck)
        status, answer = (200, b'{"choices":[]}') if is_good else (500, b'{"error":{"message":"out of luck"}}')
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@dataclass(frozen=True, slots=True)
class Gateway:
    """One policy's gateway: where it answers, and its home, where its books are."""

    policy: str
    url: str
    home: Path
    process: Child


@dataclass(frozen=True, slots=True)
class _Shop:
    spec: SellerSpec
    stall: Stall
    model: Model


class Town:
    """Everything that runs. `gateways` are by policy."""

    def __init__(self, chain: Devnet, crew: Crew, shops: list[_Shop], gateways: dict[str, Gateway]) -> None:
        self.chain, self.crew, self.gateways = chain, crew, gateways
        self._shops = shops

    def degrade(self) -> None:
        """Make the sellers that degrade slower from now on."""
        for shop in self._shops:
            shop.model.slowdown = shop.spec.slowdown

    @property
    def admin_urls(self) -> list[str]:
        """Where each seller's books are shown."""
        return [shop.stall.admin_url for shop in self._shops]

    def earned_atomic(self) -> int:
        """Return what the sellers hold on chain."""
        return sum(self.chain.balance_of(shop.stall.config.pay_to) for shop in self._shops)


@contextlib.asynccontextmanager
async def open_town(folder: Path, policies: Sequence[str], calls: int, seed: int) -> AsyncIterator[Town]:
    """Start everything, with `calls` payments of each offer signed ahead for every gateway; end it with the context."""
    async with contextlib.AsyncExitStack() as stack:
        chain = stack.enter_context(Devnet(log_file=folder / "anvil.log"))
        crew = stack.enter_context(Crew(folder, {}))
        models = [Model(spec, seed) for spec in SELLERS]
        shops = []
        for model in models:
            port = await stack.enter_async_context(serving(model))
            stall = await open_stall(
                chain, crew, folder, model.spec.name, upstream_port=port, settings=_settings(model.spec)
            )
            shops.append(_Shop(model.spec, stall, model))
        gateways = {}
        for policy in policies:
            home = folder / f"home-{policy}"
            await _stock(chain, home, shops, calls)
            gateways[policy] = await _open_gateway(crew, folder, home, policy)
        yield Town(chain, crew, shops, gateways)


def _settings(spec: SellerSpec) -> dict[str, Any]:
    return {
        "capacity": {"slots": spec.slots, "load_price": {"max_bp": 15_000, "steps": 1, "quote_valid_s": 5}},
        "tiers": spec.tiers,
        "routes": [{"match": f"POST {ROUTE}", "models": {MODEL: spec.price}}],
    }


async def _stock(chain: Devnet, home: Path, shops: Sequence[_Shop], calls: int) -> None:
    """Sign `calls` payments of every offer of every seller: each tier, at the list price and at the risen one."""
    signer = funded_signer(chain)
    with Pool.open(Home.open(home)) as pool:
        for shop in shops:
            quote = PriceBook(shop.stall.config).routes[0].quote_for(MODEL)
            for offer in (each.offer for step in quote.steps for each in step.tiers.values()):
                name = f"{shop.spec.name}-{tier_of(offer.extra)}-{load_of(offer.extra)}"
                await sign_ahead(pool, chain, signer, shop.stall, offer, name=name, model=MODEL, count=calls)


async def _open_gateway(crew: Crew, folder: Path, home: Path, policy: str) -> Gateway:
    port, admin_port = free_ports(2)
    path = folder / f"gateway-{policy}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "listen": f"127.0.0.1:{port}",
                "admin_listen": f"127.0.0.1:{admin_port}",
                "home": str(home),
                "routing": {"*": {"policy": policy}},
            }
        )
    )
    child = crew.start(f"gateway-{policy}", farebox_command("serve", "--config", str(path)))
    await asyncio.to_thread(crew.wait_ready, child, f"http://127.0.0.1:{admin_port}/readyz")
    return Gateway(policy, f"http://127.0.0.1:{port}", home, child)

"""The servers that `bench.seller_http` compares, each a process on one core, selling the same route over HTTP.

Ours run in uvicorn with uvloop and httptools, as does the official FastAPI middleware; the TypeScript peers run in
Node. The store is a real one on the disk, and where payments settle, `farebox settle`'s worker settles them on the
local chain, from a process on the other core.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from bench import official
from bench.stacks import APPLICATIONS, Chain, settings_of
from bench.tree import Tree, on_core
from bench.workload import PATH
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from contracts.heap import settle_heap
from contracts.offers import Offer, requirements
from contracts.signature import SigningKey
from seller import PaymentMiddleware
from seller.config import SellerConfig
from seller.pricebook import PriceBook
from seller.service import Seller

__all__ = ["HttpServer", "PeerMissing", "Place", "Shop", "offer_of", "start"]

_SCRIPT = Path(__file__).parent / "peers" / "sellers.mjs"
_PACKAGES = Path(__file__).parents[1] / "config" / "interop" / "package.json"
_STARTED_S, _STOP_TIMEOUT_S = 120.0, 10.0
_GAS_WEI = 10**21


class PeerMissing(Exception):
    """A peer's packages are not installed."""


@dataclass(frozen=True, slots=True)
class Shop:
    """How a server is set up: who takes the money, on which application, and when it settles."""

    seller: Literal["nobody", "Farebox", "official SDK", "@x402/express", "@x402/hono"]
    application: str = ""
    settle: Literal["async", "auto", "before"] = "async"


@dataclass(frozen=True, slots=True)
class Place:
    """Where servers run: a folder, the core they are kept on, the core of everything else, and the local chain."""

    folder: Path
    core: int
    others_core: int
    devnet: Devnet
    chain: Chain


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A running server: where it listens, and its processes. `stop_settling` ends the worker that settles for it."""

    port: int
    tree: Tree
    stop_settling: Callable[[], None]


def offer_of(chain: Chain) -> Offer:
    """Return the one offer of every shop."""
    (offer,) = PriceBook(settings_of(chain, Path())).offers
    return offer


@contextmanager
def start(shop: Shop, place: Place) -> Iterator[HttpServer]:
    """Run a server. Raises `PeerMissing`."""
    with ExitStack() as life:
        if shop.seller in ("@x402/express", "@x402/hono"):
            yield life.enter_context(_on_node(shop.seller.removeprefix("@x402/"), place))
            return
        folder = place.folder / "-".join(filter(None, asdict(shop).values())).replace(" ", "-")
        folder.mkdir()
        config = settings_of(place.chain, folder).model_copy(update={"settle": shop.settle})
        settling = _Settling(config, place) if shop.seller == "Farebox" and shop.settle != "async" else None
        if settling is not None:
            life.callback(settling.stop)
        process, port = life.enter_context(_process(_serve, place.core, (shop, place.chain, config)))
        yield HttpServer(port, Tree((process,)), settling.stop if settling is not None else lambda: None)


class _Settling:
    """The worker that settles what one shop has sold."""

    def __init__(self, config: SellerConfig, place: Place) -> None:
        key_file = Path(str(config.settler.key_file))
        secret = os.urandom(32)
        key_file.touch(0o600)
        key_file.write_text(secret.hex())
        place.devnet.fund_gas(address_text(SigningKey(secret).address), _GAS_WEI)
        self._life = ExitStack()
        self._life.enter_context(_process(_settle, place.others_core, (config,)))

    def stop(self) -> None:
        """End it."""
        self._life.close()


@contextmanager
def _process(main: Callable[..., None], core: int, arguments: tuple[Any, ...]) -> Iterator[tuple[int, int]]:
    """Run `main(*arguments, pipe)` in a process on one core; yield its id and the number it sends when it is ready."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with on_core(core):
        process = context.Process(target=main, args=(*arguments, theirs), daemon=True)
        process.start()
    theirs.close()
    try:
        assert ours.poll(_STARTED_S), "the server did not start"
        assert process.pid is not None
        yield process.pid, ours.recv()
    finally:
        process.terminate()
        process.join(_STOP_TIMEOUT_S)
        if process.is_alive():
            process.kill()


def _serve(shop: Shop, chain: Chain, config: SellerConfig, ready: Connection) -> None:
    import uvicorn

    logging.disable(logging.WARNING)
    app = APPLICATIONS[shop.application]()
    if shop.seller == "Farebox":
        app = PaymentMiddleware(app, seller=Seller(config, settles=False))
    elif shop.seller == "official SDK":
        official.add_middleware(app, official.Reach.LOOPBACK, chain.facilitator_url, offer_of(chain))
    lifespan: Literal["on", "off"] = "on" if shop.seller == "Farebox" else "off"
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    settings = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan=lifespan, log_level="critical", access_log=False
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            # As `farebox sell` does; the peers in Python get the same.
            settle_heap()

    # What comes before it serves waits in the backlog.
    ready.send(listener.getsockname()[1])
    Server(settings).run(sockets=[listener])


def _settle(config: SellerConfig, ready: Connection) -> None:
    from seller.run import settle

    logging.disable(logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(settle(Seller(config, settles=True), None, lambda *_: ready.send(0)))


@contextmanager
def _on_node(kind: str, place: Place) -> Iterator[HttpServer]:
    if not (_PACKAGES.parent / "node_modules" / "@x402").is_dir() or shutil.which("node") is None:
        raise PeerMissing("the official TypeScript packages are not installed: run `make setup-interop`")
    ours = requirements(offer_of(place.chain))
    option = {
        "scheme": ours.scheme,
        "payTo": ours.pay_to,
        "price": {"amount": ours.amount, "asset": ours.asset, "extra": ours.extra},
        "network": ours.network,
        "maxTimeoutSeconds": ours.max_timeout_seconds,
    }
    command = ["node", str(_SCRIPT), kind, PATH, place.chain.facilitator_url, json.dumps(option)]
    environment = {**os.environ, "FAREBOX_INTEROP_PACKAGES": str(_PACKAGES), "NODE_ENV": "production"}
    with on_core(place.core):
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield HttpServer(port, Tree((process.pid,)), lambda: None)
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

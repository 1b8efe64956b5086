"""`farebox serve`: the gateway as a process. It opens a pool and a port; it never sees a key.

Two listeners share one event loop: the one agents talk to, and the admin plane. On SIGTERM or SIGINT both stop
accepting, calls in flight end, and what this process had leased goes back to the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from buyer.pool import Pool
from contracts.errors import ConfigInvalid, FareboxError
from contracts.event_loop import fast_runner
from contracts.heap import settle_heap
from gateway.admin import admin_app, readiness
from gateway.admin_token import TokenCheck, admin_token
from gateway.app import GatewayApp, HostCheck
from gateway.bidder.opening import open_bidder
from gateway.config import GatewayConfig, Listen, parse_listen
from gateway.delegator.delegation import delegator_at
from gateway.delegator.model import DelegateModel
from gateway.desk import Desk
from gateway.limits import POOL_POLL_S, QUEUE_POLL_EVERY_S, STOP_TIMEOUT_S
from gateway.reconciler import Reconciler
from gateway.upstream import Upstream

__all__ = ["Addresses", "open_desk", "run", "shed_wallet_environment"]

log = logging.getLogger("farebox.gateway")

Addresses = tuple[Listen, Listen]

# Variables with which other commands are told about wallets. FAREBOX_HOME is not one of them.
_WALLET_VARIABLES = ("FAREBOX_KEYSTORE", "FAREBOX_SIGNER", "FAREBOX_KEY", "FAREBOX_PRIVATE", "FAREBOX_WALLET")
_KEEPALIVE_S = 75
_BACKLOG = 1024


def shed_wallet_environment() -> None:
    """Start this command again without wallet variables, if there are any.

    Deleting them from `os.environ` would leave them in the memory the kernel set up for this process, where
    /proc/PID/environ shows them.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_WALLET_VARIABLES)}
    if len(kept) != len(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)  # noqa: S606 - our own command line


def run(config: GatewayConfig, announce: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM or SIGINT; `announce` is called with the bound addresses once both listen.

    Raises `ConfigInvalid` when an address cannot be bound, `StoreUnavailable` when the pool cannot be opened.
    """
    with fast_runner() as runner:
        runner.run(_serve(config, announce))


async def _serve(config: GatewayConfig, announce: Callable[[Addresses], None]) -> None:
    listen, admin_listen = parse_listen(config.listen), parse_listen(config.admin_listen)
    token = admin_token(admin_listen)
    async with contextlib.AsyncExitStack() as stack:
        sockets = [
            stack.enter_context(_bound("listen", listen)),
            stack.enter_context(_bound("admin_listen", admin_listen)),
        ]
        desk = await stack.enter_async_context(open_desk(config))
        servers = [
            _Server(HostCheck(GatewayApp(desk, delegates=await _delegates(stack, desk)), listen)),
            _Server(HostCheck(TokenCheck(admin_app(desk), token), admin_listen)),
        ]
        _stop_on_signals(servers, desk)
        chores = [asyncio.create_task(_watch_pool(desk)), asyncio.create_task(_reconcile(desk))]
        serving = [
            asyncio.create_task(server.serve(sockets=[bound])) for server, bound in zip(servers, sockets, strict=True)
        ]
        settle_heap()
        for reason in await readiness(desk):
            log.warning("no paid call can be served: %s", reason)
        announce((_address(listen, sockets[0]), _address(admin_listen, sockets[1])))
        await asyncio.gather(*serving)
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)


async def _delegates(stack: contextlib.AsyncExitStack, desk: Desk) -> DelegateModel | None:
    """Return the model that delegates, where the settings want it."""
    if desk.config.delegate is None:
        return None
    return DelegateModel(await stack.enter_async_context(delegator_at(desk, desk.config.delegate)))


@contextlib.asynccontextmanager
async def open_desk(config: GatewayConfig) -> AsyncIterator[Desk]:
    """Give the desk of a gateway, which serves whoever is in this process. Raises as opening the pool does."""
    async with contextlib.AsyncExitStack() as stack:
        home = config.open_home()
        pool = Pool.open(home)
        stack.callback(pool.close)
        bidder = open_bidder(home)
        stack.push_async_callback(bidder.close)
        upstream = await stack.enter_async_context(Upstream())
        desk = Desk(config, pool, upstream, bidder=bidder)
        stack.callback(desk.close)
        watching = asyncio.create_task(_watch_queues(desk, upstream))
        stack.callback(watching.cancel)
        yield desk


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: two of them share one process."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEPALIVE_S,
                timeout_graceful_shutdown=int(STOP_TIMEOUT_S),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _stop_on_signals(servers: list[_Server], desk: Desk) -> None:
    def stop() -> None:
        desk.stopping = True
        for server in servers:
            # A second signal does not wait for calls in flight.
            server.force_exit = server.should_exit
            server.should_exit = True

    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop)


async def _watch_pool(desk: Desk) -> None:
    """Notice what other processes buy, refill and remove."""
    while True:
        await asyncio.sleep(POOL_POLL_S)
        try:
            await desk.in_store(desk.shelf.reload)
        except FareboxError as error:
            log.warning("%s: %s", error.code, error.message)


async def _reconcile(desk: Desk) -> None:
    reconciler = Reconciler(desk.pool, desk.shelf, desk.config.rpc)
    while True:
        await asyncio.sleep(POOL_POLL_S)
        await reconciler.run(time.monotonic())


async def _watch_queues(desk: Desk, upstream: Upstream) -> None:
    """Ask the sellers that calls can choose among how long their queues are."""
    while True:
        await asyncio.sleep(QUEUE_POLL_EVERY_S)
        await desk.router.queues.ask(upstream, desk.shelf.purchases, desk.clock)


def _bound(setting: str, listen: Listen) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigInvalid(
            f"{setting}: {listen.text}: {(error.strerror or str(error)).lower()}",
            remedy="end what uses that address, or choose another one",
        ) from None
    return bound


def _address(listen: Listen, bound: socket.socket) -> Listen:
    return Listen(host=listen.host, port=bound.getsockname()[1])

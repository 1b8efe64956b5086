"""Runs a seller as a process: the selling port, the admin port, the settlement worker, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from contracts.errors import ChainUnavailable, ConfigInvalid
from contracts.heap import settle_heap
from seller.admin import admin_app
from seller.asgi import PaymentMiddleware
from seller.config import split_host_port
from seller.facilitate.app import facilitator_app
from seller.facilitate.service import Facilitator
from seller.limits import SHUTDOWN_GRACE_S
from seller.proxy import ReverseProxy
from seller.service import Seller

__all__ = ["facilitate", "sell", "settle"]

_log = logging.getLogger("farebox.seller")

Announce = Callable[[str, str], None]


async def sell(seller: Seller, admin_listen: str | None, announce: Announce) -> None:
    """Sell `upstream` until SIGTERM or SIGINT; then finish what is in flight.

    `announce(selling address, admin address)` is called when both ports answer. Raises `ConfigInvalid` when there is no
    upstream, the token is not what the settings say, or a port is taken.
    """
    upstream = seller.config.upstream
    if upstream is None:
        raise ConfigInvalid("upstream: is missing; it is the server to sell")
    application = PaymentMiddleware(ReverseProxy(upstream), seller=seller)
    with _listening(seller.config.listen, "listen") as port, _optional(admin_listen) as admin_port:
        async with _opened(seller), _stopping() as stopped:
            servers = [(_server(application, lifespan="on"), port), *_admin(seller, admin_listen, admin_port)]
            await _serve(servers, stopped, lambda: announce(_address(port), _address(admin_port)))


async def settle(seller: Seller, admin_listen: str | None, announce: Announce) -> None:
    """Settle what other processes put into the store, until SIGTERM or SIGINT."""
    with _optional(admin_listen) as admin_port:
        async with _opened(seller), _stopping() as stopped:
            servers = _admin(seller, admin_listen, admin_port)
            await _serve(servers, stopped, lambda: announce("", _address(admin_port)))


async def facilitate(facilitator: Facilitator, announce: Announce) -> None:
    """Verify and settle for others until SIGTERM or SIGINT."""
    with _listening(facilitator.config.listen, "listen") as port:
        async with _opened(facilitator), _stopping() as stopped:
            servers = [(_server(facilitator_app(facilitator), lifespan="off"), port)]
            await _serve(servers, stopped, lambda: announce(_address(port), ""))


@asynccontextmanager
async def _opened(seller: Seller | Facilitator) -> AsyncIterator[None]:
    await seller.open()
    try:
        try:
            await seller.check_token()
        except ChainUnavailable as error:
            _log.warning("work begins when the chain answers: %s", error.message)
        yield
    finally:
        await seller.close()


@asynccontextmanager
async def _stopping() -> AsyncIterator[asyncio.Event]:
    """Turn SIGTERM and SIGINT into an event."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """A server that says when it listens, in a process whose signals belong to somebody else."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _admin(seller: Seller, admin_listen: str | None, port: socket.socket | None) -> list[tuple[_Server, socket.socket]]:
    if admin_listen is None or port is None:
        return []
    host, _ = split_host_port(admin_listen, "--admin-listen")
    return [(_server(admin_app(seller, host), lifespan="off"), port)]


def _server(application: Any, *, lifespan: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            application,
            lifespan=lifespan,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        )
    )


async def _all_listen(servers: list[_Server]) -> None:
    for server in servers:
        await server.listening.wait()


async def _serve(
    servers: list[tuple[_Server, socket.socket]], stopped: asyncio.Event, ready: Callable[[], None]
) -> None:
    tasks = [asyncio.create_task(server.serve(sockets=[listening])) for server, listening in servers]
    stop = asyncio.create_task(stopped.wait())
    up = asyncio.create_task(_all_listen([server for server, _ in servers]))  # noqa: RUF006 - held and cancelled below
    await asyncio.wait([stop, up, *tasks], return_when=asyncio.FIRST_COMPLETED)
    if up.done():
        settle_heap()
        ready()
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    up.cancel()
    for server, _ in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)


@contextlib.contextmanager
def _listening(address: str, field: str) -> Iterator[socket.socket]:
    host, port = split_host_port(address, field)
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        # Python adds the address once more, in its own notation.
        reason = str(error.strerror).partition(" (")[0].lower()
        raise ConfigInvalid(
            f"{field}: {address}: {reason}", remedy="end what uses that address, or choose another one"
        ) from None
    with listening:
        # Python's own event loop leaves this off for accepted connections, and an answer written in two parts would
        # wait 40 ms for the client's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening


@contextlib.contextmanager
def _optional(address: str | None) -> Iterator[socket.socket | None]:
    if address is None:
        yield None
    else:
        with _listening(address, "--admin-listen") as listening:
            yield listening


def _address(listening: socket.socket | None) -> str:
    if listening is None:
        return ""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

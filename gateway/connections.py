"""Connections to sellers: made within a time, kept for the next call, dropped before a seller drops them.

A payment goes out at most once. So a connection that was kept is looked at before it is used: one that its seller has
closed, or on which anything came unasked, is dropped and another one is taken, and nothing has left. Once a byte has
left, nothing is sent again.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast

import aiohappyeyeballs

from buyer.flow import NeverLeft
from gateway.exchange import Exchange
from gateway.limits import CONNECT_TIMEOUT_S, IDLE_CONNECTIONS_MAX, KEEPALIVE_S, SILENCE_TIMEOUT_S, UNREAD_BYTES_MAX

__all__ = ["Connection", "Connections", "Origin"]

# How often silence and idleness are looked for. Both limits are seconds and more.
_SWEEP_EVERY_S = 0.5
# RFC 8305: the other address family is tried when the first has not answered by then.
_NEXT_ADDRESS_AFTER_S = 0.25
# The body goes out in one piece with the head up to this size; copying a larger one costs more than a second write.
_ONE_PIECE_BYTES_MAX = 64 * 1024


class Origin(NamedTuple):
    """Where a connection leads: `host` as in a URL, without brackets."""

    is_tls: bool
    host: str
    port: int


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, which carries one exchange at a time. `free` gets it back after a whole one."""

    def __init__(self, origin: Origin, free: Callable[[Connection], None], gone: Callable[[Connection], None]) -> None:
        self.origin = origin
        self._free, self._gone = free, gone
        self._exchange: Exchange | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._readable = select.poll()
        self._is_paused = False
        # When anything was last sent or received.
        self._heard_s = self._loop.time()

    def ask(self, head: bytes, body: bytes) -> Exchange:
        """Send a request, and return what its answer will be. Raises `NeverLeft` when the connection is closed."""
        assert self._exchange is None, "one exchange at a time"
        if self._transport is None or self._transport.is_closing():
            raise NeverLeft("the connection was closed before anything was sent")
        self._exchange = Exchange(self._resume)
        self._heard_s = self._loop.time()
        if len(body) <= _ONE_PIECE_BYTES_MAX:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return self._exchange

    def is_usable(self) -> bool:
        """Tell whether a kept connection may be used again: not too old, and the seller has said nothing on it.

        The kernel is asked, because an end that it knows of may not have come up to the event loop yet.
        """
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and self._loop.time() - self._heard_s < KEEPALIVE_S
            and not self._readable.poll(0)
        )

    def look(self) -> None:
        """End an exchange whose seller is silent for too long, and a kept connection that nobody has used."""
        waited_s = self._loop.time() - self._heard_s
        if self._exchange is None:
            if waited_s >= KEEPALIVE_S:
                self.drop()
        elif waited_s >= SILENCE_TIMEOUT_S and not self._is_paused:
            self._exchange.fail("no answer in time")
            self.drop()

    def drop(self) -> None:
        """Close at once, whatever is on its way."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail("the connection was closed")
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio's interface, as are all below."""
        # uvloop's transports are such by their methods, not by their class.
        self._transport = cast("asyncio.Transport", transport)
        self._readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.drop()
            return
        self._heard_s = self._loop.time()
        exchange.feed(data)
        if exchange.is_over:
            self._exchange = None
            if exchange.keeps_alive and self._has_sent_all():
                self._resume()
                self._free(self)
            else:
                self.drop()
        elif exchange.waiting_bytes > UNREAD_BYTES_MAX and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._exchange.end_of_stream()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if error is None:
                exchange.end_of_stream()
            exchange.fail("the connection broke")
        self._gone(self)

    def _has_sent_all(self) -> bool:
        """Tell whether a seller that has answered was sent the whole request; it may answer before."""
        return self._transport is not None and self._transport.get_write_buffer_size() == 0

    def _resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._heard_s = self._loop.time()
            self._transport.resume_reading()


class Connections:
    """Every connection of one process to sellers, kept ones by origin. Use inside one running loop."""

    def __init__(self) -> None:
        self._all: set[Connection] = set()
        self._kept: dict[Origin, list[Connection]] = {}
        self._kept_count = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def take(self, origin: Origin) -> Connection:
        """Return a connection on which nothing is under way. Raises `NeverLeft`."""
        kept = self._kept.get(origin)
        while kept:
            connection = kept.pop()
            self._kept_count -= 1
            if connection.is_usable():
                return connection
            connection.drop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await self._connect(origin)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise NeverLeft(_reason(error)) from None

    def close(self) -> None:
        """Drop every connection."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in list(self._all):
            connection.drop()

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        connected = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER_S, interleave=1, loop=loop
        )
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await loop.create_connection(
                lambda: Connection(origin, self._keep, self._forget),
                sock=connected,
                ssl=self._tls_context() if origin.is_tls else None,
                server_hostname=origin.host if origin.is_tls else None,
            )
        except BaseException:
            connected.close()
            raise
        self._all.add(connection)
        self._look_later()
        return connection

    def _keep(self, connection: Connection) -> None:
        if self._kept_count >= IDLE_CONNECTIONS_MAX:
            connection.drop()
            return
        self._kept_count += 1
        self._kept.setdefault(connection.origin, []).append(connection)

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        kept = self._kept.get(connection.origin)
        if kept is not None and connection in kept:
            kept.remove(connection)
            self._kept_count -= 1
        if not kept:
            self._kept.pop(connection.origin, None)

    def _look_later(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_EVERY_S, self._look)

    def _look(self) -> None:
        self._sweep = None
        for connection in list(self._all):
            connection.look()
        if self._all:
            self._look_later()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _reason(error: Exception) -> str:
    """Return why there is no connection, without addresses: it is shown to clients."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "the host name is not known"
    if isinstance(error, ssl.SSLError):
        return "no trusted TLS connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number else "no connection"

"""Sends prebuilt HTTP requests over connections that stay open, from a process and a core of its own.

Each connection sends its next request when it has its answer. Nothing is built, signed or read into a document between.
The clocks start when every connection is open and has had one answer, so that a slice's length decides nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from bench.pinned import PinnedProcess
from bench.tree import Tree

__all__ = ["Load", "LoadGenerator", "Taken"]

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


# What a server still does when its answer has left belongs to the request.
_AFTERWARDS_S = 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """Which bytes to send to `server`'s port, and the status that every answer must have.

    `first` are the requests before the clocks start, one for each connection.
    """

    port: int
    server: Tree
    first: Sequence[bytes]
    requests: Sequence[bytes]
    status: int


@dataclass(slots=True)
class Taken:
    """What it took: seconds for all, of the clock and of the server's CPU, and microseconds of each request."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    latencies_us: list[float] = field(default_factory=list)


class LoadGenerator(PinnedProcess):
    """The process, running. Use as a context manager."""

    def __init__(self, core: int) -> None:
        super().__init__(_main, core)

    def send(self, load: Load) -> Taken:
        """Send all requests and return what they took. Raises `RuntimeError` for an answer of another status."""
        taken: Taken = self.do(load)
        return taken


def _main(core: int, commands: Connection) -> None:
    os.sched_setaffinity(0, {core})
    commands.send("ready")
    while True:
        try:
            load: Load = commands.recv()
        except EOFError:
            return
        try:
            commands.send(uvloop.run(_send(load)))
        except (OSError, RuntimeError) as error:
            commands.send(f"{type(error).__name__}: {error}")


async def _send(load: Load) -> Taken:
    taken, loop = Taken(), asyncio.get_running_loop()
    clients = []
    for _ in load.first:
        _, client = await loop.create_connection(lambda: _Client(load.status), "127.0.0.1", load.port)
        clients.append(client)
    await _all_send(clients, iter(load.first), [])
    cpu_s, wall_s = load.server.cpu_s(), time.perf_counter()
    await _all_send(clients, iter(load.requests), taken.latencies_us)
    taken.wall_s = time.perf_counter() - wall_s
    await asyncio.sleep(_AFTERWARDS_S)
    taken.cpu_s = load.server.cpu_s() - cpu_s
    for client in clients:
        client.close()
    return taken


async def _all_send(clients: Sequence[_Client], waiting: Iterator[bytes], latencies_us: list[float]) -> None:
    await asyncio.gather(*[client.send_all(waiting, latencies_us) for client in clients])


class _Client(asyncio.Protocol):
    """One connection. Of an answer it reads the status, and how long it is."""

    def __init__(self, status: int) -> None:
        self._status = b" %d " % status
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: Iterator[bytes] = iter(())
        self._latencies_us: list[float] = []
        self._transport: Any = None
        self._received = b""
        self._sent_ns = 0

    def send_all(self, waiting: Iterator[bytes], latencies_us: list[float]) -> asyncio.Future[None]:
        """Send one request after the other for as long as some are waiting; return what ends with the last answer."""
        self._done = asyncio.get_running_loop().create_future()
        self._waiting, self._latencies_us = waiting, latencies_us
        self._send_next()
        return self._done

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the server closed the connection: {error}")

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        if not _is_whole(received):
            return
        self._latencies_us.append((time.perf_counter_ns() - self._sent_ns) / 1000)
        self._received = b""
        if received[8:13] != self._status:
            self._fail(f"expected{self._status.decode()}, the server answered {received[:200]!r}")
            return
        self._send_next()

    def _send_next(self) -> None:
        request = next(self._waiting, None)
        if request is not None:
            self._sent_ns = time.perf_counter_ns()
            self._transport.write(request)
        elif not self._done.done():
            self._done.set_result(None)

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(why))


def _is_whole(received: bytes) -> bool:
    """Tell whether an HTTP/1.1 answer is all there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _LENGTH.search(received, 0, end + 2)
    return received.endswith(b"0\r\n\r\n") if length is None else len(received) >= end + 4 + int(length[1])

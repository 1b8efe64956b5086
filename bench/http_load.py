"""Sends prebuilt HTTP requests over connections that stay open, from a process and a core of its own.

Each connection sends its next request when it has its answer. Nothing is built, signed or read into a document between.
The clocks start when every connection is open and has had one answer, so that a slice's length decides nothing.
"""

from __future__ import annotations

import os
import re
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Self

from bench.pinned import PinnedProcess
from bench.tree import Tree

__all__ = ["Load", "LoadGenerator", "Taken"]

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_RECEIVED_BYTES = 65_536
# So long may a server say nothing.
_SILENCE_S = 60.0
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
            commands.send(_send(load))
        except (OSError, RuntimeError) as error:
            commands.send(f"{type(error).__name__}: {error}")


def _send(load: Load) -> Taken:
    taken = Taken()
    with select.epoll() as poller, ExitStack() as connections:
        clients = [connections.enter_context(_Client(load)) for _ in load.first]
        by_number = {client.number: client for client in clients}
        for number in by_number:
            poller.register(number, select.EPOLLIN)
        _all_send(poller, by_number, iter(load.first), [])
        cpu_s, wall_s = load.server.cpu_s(), time.perf_counter()
        _all_send(poller, by_number, iter(load.requests), taken.latencies_us)
        taken.wall_s = time.perf_counter() - wall_s
        time.sleep(_AFTERWARDS_S)
        taken.cpu_s = load.server.cpu_s() - cpu_s
    return taken


def _all_send(
    poller: select.epoll, clients: Mapping[int, _Client], waiting: Iterator[bytes], latencies_us: list[float]
) -> None:
    """Let every connection send one request after the other while some are waiting; return with the last answer."""
    unanswered = 0
    for client, first in zip(clients.values(), waiting, strict=False):
        client.send(first)
        unanswered += 1
    while unanswered:
        ready = poller.poll(_SILENCE_S)
        if not ready:
            raise RuntimeError(f"the server has not answered {unanswered} requests for {_SILENCE_S:.0f} s")
        for number, _ in ready:
            client = clients[number]
            if not client.has_answer():
                continue
            latencies_us.append((time.perf_counter_ns() - client.sent_ns) / 1000)
            request = next(waiting, None)
            if request is None:
                unanswered -= 1
            else:
                client.send(request)


class _Client:
    """One connection. Of an answer it reads the status, and how long it is. Use as a context manager.

    A plain socket: an event loop would take longer for a request than the fastest of the servers.
    """

    def __init__(self, load: Load) -> None:
        self._socket = socket.create_connection(("127.0.0.1", load.port), timeout=_SILENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(True)
        self._status = b" %d " % load.status
        self._received = b""
        self.number = self._socket.fileno()
        self.sent_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, request: bytes) -> None:
        """Send a request, which fits into the kernel's buffer."""
        self.sent_ns = time.perf_counter_ns()
        self._socket.sendall(request)

    def has_answer(self) -> bool:
        """Read what has come, and tell whether the answer is all there. Raises `RuntimeError` for another status."""
        data = self._socket.recv(_RECEIVED_BYTES)
        if not data:
            raise RuntimeError("the server closed the connection")
        received = self._received + data
        if not _is_whole(received):
            self._received = received
            return False
        self._received = b""
        if received[8:13] != self._status:
            raise RuntimeError(f"expected{self._status.decode()}, the server answered {received[:200]!r}")
        return True


def _is_whole(received: bytes) -> bool:
    """Tell whether an HTTP/1.1 answer is all there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = _LENGTH.search(received, 0, end + 2)
    return received.endswith(b"0\r\n\r\n") if length is None else len(received) >= end + 4 + int(length[1])

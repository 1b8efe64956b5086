"""Goal: a client that reads slowly gets every byte of a stream once, in order, and its seller waits meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

from starlette.types import Message, Receive, Scope, Send

from buyer.home import Home
from buyer.pool import Counts, Pool
from gateway.client import Client
from gateway.desk import Desk
from tests.gateway.parts import MODEL, Gateway, StandInSeller, gateway, listening, sign_pool
from tests.patience import PATIENCE_S, eventually

ROOM_BYTES = 4096
# At first and at last what goes on at once, between them far more than waits in the gateway, and than the system keeps
# for a connection with so little room.
SIZES = [10] * 100 + [256 * 1024] * 32 + [10] * 100
EVENTS = [b"data: %06d" % number + b"x" * size + b"\n\n" for number, size in enumerate(SIZES)]


async def streams(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for event in EVENTS:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


def is_seller_waiting(desk: Desk) -> bool:
    return any(connection._is_paused for connection in desk._upstream._connections._all)


def test_a_stream_to_a_slow_client_arrives_whole_and_in_order(tmp_path: Path) -> None:
    with listening(StandInSeller(app=streams)) as seller:
        pool = Pool.open(Home.open(tmp_path / "home"))
        sign_pool(pool, seller.url, 1)
        pool.close()
        with gateway(tmp_path / "home") as running, slow_connection(running) as client:
            body = json.dumps({"model": f"paid/{MODEL}", "messages": [], "stream": True})
            client.request("POST", "/v1/chat/completions", body)
            eventually(lambda: running.call(is_seller_waiting), "the seller waits for the client")
            answer = client.getresponse().read()
            assert running.counts() == Counts(spent=1)
    whole = b"".join(EVENTS)
    is_whole = answer.startswith(whole)  # apart, for a failure would print all of it
    assert is_whole
    assert answer[len(whole) :].startswith(b": farebox"), "its receipt comes after it, and nothing between"


@contextlib.contextmanager
def slow_connection(running: Gateway) -> Iterator[http.client.HTTPConnection]:
    """Connect with little room for what is not read yet, at both ends."""
    listener = running._servers[0].socket
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM_BYTES)
    address = listener.getsockname()
    with socket.socket() as connected:
        connected.settimeout(PATIENCE_S)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM_BYTES)
        connected.connect(address)
        connection = http.client.HTTPConnection(*address)
        connection.sock = connected
        yield connection


class Server:
    """A stand-in for the server under a gateway, whose client reads nothing while it is `full`."""

    def __init__(self) -> None:
        self.is_full = False
        self.sent: list[bytes] = []

    async def receive(self) -> Message:
        raise AssertionError("nobody asks whether the client has left")

    async def send(self, message: Message) -> None:
        if self.is_full:
            await asyncio.Event().wait()
        self.sent.append(message["body"])


async def test_what_would_have_to_wait_for_the_client_is_not_sent_at_all() -> None:
    server = Server()
    client = Client(server.receive, server.send)
    assert client.body_at_once(b"one")
    server.is_full = True
    assert not client.body_at_once(b"two")
    server.is_full = False
    await client.body(b"two")
    assert server.sent == [b"one", b"two"]

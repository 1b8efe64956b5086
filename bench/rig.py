"""Both ends of a proxy in one process: it asks, and it is the seller that answers. Pinned to a core of its own.

The seller is a stand-in: it takes any payment header, verifies and settles nothing, and answers prepared bytes with a
valid receipt, so that what is measured is the proxy between. Under `/free` it wants no payment. One process for both
ends has one clock: every piece of a stream carries the moment at which it was written.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import httptools
import msgspec
import uvloop

from bench.pinned import PinnedProcess
from bench.workload import MODEL, PATH, an_offer
from contracts.headers import encode_header
from contracts.offers import requirements
from contracts.wire import PaymentRequired, SettlementResponse

__all__ = ["FREE", "PIECES", "Load", "Rig", "Taken"]

FREE = "/free"
# A stream is this many events, one every few milliseconds, as a model writes them.
PIECES = 200
PIECE_EVERY_S = 0.002

_PROMPT = "hello " * 50
_MARK = b'"fp_'
_MARK_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask: `count` calls over `connections`, spread over `ports`, each sent when the last was answered.

    A stream has `pieces`, and its end.
    """

    ports: tuple[int, ...]
    path: str = PATH
    kind: Literal["json", "stream"] = "json"
    count: int = 1
    connections: int = 1
    pieces: int = PIECES
    model: str = MODEL
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Taken:
    """What it took, in microseconds: whole calls, first bytes of bodies, and pieces from writer to reader."""

    wall_s: float = 0.0
    calls_us: list[float] = field(default_factory=list)
    first_us: list[float] = field(default_factory=list)
    lag_us: list[float] = field(default_factory=list)


class Rig(PinnedProcess):
    """The process, running. Use as a context manager; `port` is the stand-in seller's."""

    def __init__(self, core: int) -> None:
        super().__init__(_main, core)
        self.port: int = self.ready

    def ask(self, load: Load) -> Taken:
        """Send the calls and return what they took. Raises `RuntimeError` for an answer that is not 200 and whole."""
        taken: Taken = self.do(load)
        return taken


def _main(core: int, commands: Connection) -> None:
    os.sched_setaffinity(0, {core})
    uvloop.run(_serve(commands))


async def _serve(commands: Connection) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_StandIn, "127.0.0.1", 0)
    commands.send(server.sockets[0].getsockname()[1])
    while True:
        try:
            load = await loop.run_in_executor(None, commands.recv)
        except EOFError:
            return
        try:
            commands.send(await _ask(load))
        except (OSError, RuntimeError) as error:
            commands.send(str(error))


async def _ask(load: Load) -> Taken:
    taken, numbers = Taken(), iter(range(load.count))
    connected = [await _connect(load, load.ports[each % len(load.ports)], taken) for each in range(load.connections)]

    async def one_after_another(asker: _Asker) -> None:
        for _ in numbers:
            await asker.ask()

    started = time.perf_counter()
    await asyncio.gather(*map(one_after_another, connected))
    taken.wall_s = time.perf_counter() - started
    for asker in connected:
        asker.close()
    return taken


async def _connect(load: Load, port: int, taken: Taken) -> _Asker:
    _, asker = await asyncio.get_running_loop().create_connection(lambda: _Asker(load, port, taken), "127.0.0.1", port)
    return asker


class _Asker(asyncio.Protocol):
    """One keep-alive connection to the proxy."""

    _asked = 0

    def __init__(self, load: Load, port: int, taken: Taken) -> None:
        self._load, self._taken = load, taken
        named = "".join(f"{name}: {value}\r\n" for name, value in load.headers)
        self._head = f"POST {load.path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n{named}"
        self._transport: Any = None
        self._done: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._started_ns = 0
        self._has_begun = False

    def ask(self) -> asyncio.Future[None]:
        """Send a call that no other call equals, and return what ends with its answer."""
        _Asker._asked += 1
        body = msgspec.json.encode(
            {
                "model": self._load.model,
                "messages": [{"role": "user", "content": f"{os.getpid()}-{_Asker._asked:08} {_PROMPT}"}],
                "stream": self._load.kind == "stream",
                "max_tokens": self._load.pieces,
            }
        )
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._has_begun = False
        self._started_ns = time.perf_counter_ns()
        self._transport.write(f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)
        return self._done

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the proxy closed the connection: {error}")

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        now_ns, position = time.perf_counter_ns(), data.find(_MARK)
        while position >= 0:
            written_ns = int(data[position + len(_MARK) : position + len(_MARK) + _MARK_DIGITS] or b"0")
            self._taken.lag_us.append((now_ns - written_ns) / 1000)
            position = data.find(_MARK, position + 1)

    def on_headers_complete(self) -> None:
        if (status := self._parser.get_status_code()) != 200:
            self._fail(f"the proxy answered {status}")

    def on_body(self, piece: bytes) -> None:
        if b"event: error" in piece:
            self._fail(f"the stream broke off: {piece!r}")
        if not self._has_begun:
            self._has_begun = True
            self._taken.first_us.append((time.perf_counter_ns() - self._started_ns) / 1000)

    def on_message_complete(self) -> None:
        self._taken.calls_us.append((time.perf_counter_ns() - self._started_ns) / 1000)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(why))


_NETWORK = "eip155:84532"
_PAID = SettlementResponse(success=True, transaction="0x" + "ab" * 32, network=_NETWORK)
_RECEIPT = f"payment-response: {encode_header(_PAID)}\r\n".encode()
_ASKED = encode_header(PaymentRequired(x402_version=2, error="pay first", accepts=[requirements(an_offer())]))
_ASK = f"HTTP/1.1 402 Payment Required\r\npayment-required: {_ASKED}\r\ncontent-length: 2\r\n\r\n{{}}".encode()


def _completion() -> bytes:
    message = {"role": "assistant", "content": "x" * 200}
    body = msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 50, "total_tokens": 55},
        }
    )
    return b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


_COMPLETION = _completion()
_STREAM = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
# LiteLLM breaks off a stream that repeats one piece, so each has its number and its moment.
_PIECE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"system_fingerprint":"fp_%018d","choices":[{"index":0,"delta":{"content":"tok%03d "},"finish_reason":null}]}\n\n'
)
_PIECES = re.compile(rb'"max_tokens": ?(\d+)')
_LAST = b"data: [DONE]\n\n"


class _StandIn(asyncio.Protocol):
    """One connection of the seller."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        lower = head.lower() + b"\r\n"
        if b"\ntransfer-encoding:" in lower:
            if not body.endswith(b"0\r\n\r\n"):
                return
        elif len(body) < _content_length(lower):
            return
        self._received = b""
        self._answer(lower, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        is_paid = b"\npayment-signature:" in head
        if not is_paid and not head.startswith(b"post " + FREE.encode()):
            self._transport.write(_ASK)
            return
        receipt = _RECEIPT if is_paid else b""
        if b'"stream":true' in body.replace(b" ", b""):
            self._transport.write(b"HTTP/1.1 200 OK\r\n" + receipt + _STREAM)
            stated = _PIECES.search(body)
            pieces = PIECES if stated is None else int(stated[1])
            asyncio.get_running_loop().call_later(PIECE_EVERY_S, self._write_piece, 1, pieces)
        else:
            self._transport.write(b"HTTP/1.1 200 OK\r\n" + receipt + _COMPLETION)

    def _write_piece(self, number: int, pieces: int) -> None:
        if self._transport is None:
            return
        if number > pieces:
            self._transport.write(_chunk(_LAST) + b"0\r\n\r\n")
            return
        asyncio.get_running_loop().call_later(PIECE_EVERY_S, self._write_piece, number + 1, pieces)
        self._transport.write(_chunk(_PIECE % (time.perf_counter_ns(), number)))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _content_length(head: bytes) -> int:
    _, found, rest = head.partition(b"\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0

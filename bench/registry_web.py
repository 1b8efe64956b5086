"""The hosts of a town of registrations, on one loopback port, in a process of their own; the Host header tells them
apart. A stand-in: sellers that answer 402, thieves that ask for another payee, redirects and bodies without end."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from bench.registry_town import QUERIES, THIEF, Entry, card_of, price_atomic, town
from contracts.address import parse_address
from contracts.headers import PAYMENT_REQUIRED, encode_header
from contracts.money import Asset
from contracts.networks import DEVNET_CHAIN_ID, Network
from contracts.offers import Offer, requirements
from contracts.wire import PaymentRequired

__all__ = ["web_of"]

_HOST = re.compile(rb"\r\nhost: *[a-z]+(\d+)\.example", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HUGE_BYTES = 4 * 1024 * 1024
_REDIRECT = b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/meta-data\r\ncontent-length: 0\r\n\r\n"


@contextmanager
def web_of(registrations: int, seed: int, token: str) -> Iterator[int]:
    """Run the hosts of `town(registrations, seed, port)` and give the port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, registrations, seed, token), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, registrations: int, seed: int, token: str) -> None:
    asyncio.run(_serving(pipe, registrations, seed, token))


async def _serving(pipe: Connection, registrations: int, seed: int, token: str) -> None:
    hosts: dict[int, Entry] = {}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _converse(reader, writer, lambda entry, path: _answer(entry, path, port, token), hosts)

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    hosts.update({entry.number: entry for entry in town(registrations, seed, port)})
    pipe.send(port)
    await server.serve_forever()


async def _converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[Entry | None, str], bytes],
    hosts: dict[int, Entry],
) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is not None:
                await reader.readexactly(int(length[1]))
            found = _HOST.search(head)
            entry = None if found is None else hosts.get(int(found[1]))
            writer.write(answer(entry, head.split(b" ", 2)[1].decode("latin-1")))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _answer(entry: Entry | None, path: str, port: int, token: str) -> bytes:
    if entry is None:
        return _response(404, b"")
    if entry.kind == "redirect":
        return _REDIRECT
    if entry.kind == "huge":
        return _response(200, b'{"name": "' + b"x" * _HUGE_BYTES + b'"}')
    if path == "/card.json":
        return _response(200, card_of(entry, port))
    if path == "/v1/models":
        model = QUERIES[entry.topic or 0].replace(" ", "-")
        return _response(200, json.dumps({"data": [{"id": model}]}).encode())
    if path == "/v1/chat/completions":
        required = PaymentRequired(x402_version=2, accepts=[requirements(_offer(entry, token))])
        return _response(402, b"{}", f"{PAYMENT_REQUIRED}: {encode_header(required)}\r\n")
    return _response(404, b"")


def _offer(entry: Entry, token: str) -> Offer:
    payee = THIEF if entry.kind == "thief" else entry.owner
    asset = Asset(parse_address(token), "USDC", "2", 6, "USDC")
    return Offer("exact", Network(DEVNET_CHAIN_ID), asset, price_atomic(entry), payee, 60)


def _response(status: int, body: bytes, fields: str = "") -> bytes:
    head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
    return head.encode() + body

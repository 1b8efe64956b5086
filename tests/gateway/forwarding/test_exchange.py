"""Goal: an answer is understood however its bytes are cut, and a hostile one ends before it costs memory or trust."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable

import pytest

from buyer.flow import Lost
from gateway.exchange import Exchange
from gateway.limits import HEAD_BYTES_MAX

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-One: a\r\nx-one: b\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;note=x\r\nllo\r\n0\r\nafter: 1\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + LENGTH
FLOOD_BYTES_MAX = 4 * HEAD_BYTES_MAX


def fed(*pieces: bytes) -> Exchange:
    """Return an exchange after these bytes."""
    exchange = Exchange(lambda: None)
    for piece in pieces:
        exchange.feed(piece)
    return exchange


def body_of(exchange: Exchange) -> bytes:
    async def read() -> bytes:
        body = b""
        while piece := await exchange.read():
            body += piece
        return body

    return asyncio.run(read())


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, INTERIM], ids=["length", "chunked", "interim answers first"])
def test_an_answer_is_the_same_wherever_its_bytes_are_cut(answer: bytes) -> None:
    for cut in range(len(answer)):
        exchange = fed(answer[:cut], answer[cut:])
        assert (exchange.status, exchange.is_complete, exchange.keeps_alive) == (200, True, True)
        assert body_of(exchange) == b"hello"
        assert "after" not in exchange.headers, "what follows a body is no header"
        assert "link" not in exchange.headers, "nor is what an interim answer says"


def test_an_answer_that_comes_byte_by_byte_is_whole() -> None:
    assert body_of(fed(*(bytes([byte]) for byte in CHUNKED))) == b"hello"


@pytest.mark.parametrize("turns", [0, 1, 3], ids=["in one turn", "a turn between", "turns between"])
@pytest.mark.parametrize("refused", [0, 1, 2], ids=["all taken", "every second refused", "two of three refused"])
def test_what_a_waiting_reader_takes_or_refuses_comes_once_and_in_order(refused: int, turns: int) -> None:
    async def read() -> tuple[bytes, int]:
        exchange, got, offered, taken = Exchange(lambda: None), bytearray(), 0, 0

        def take(piece: bytes) -> bool:
            nonlocal offered, taken
            offered += 1
            if offered % 3 < refused:
                return False
            taken += 1
            got.extend(piece)
            return True

        async def read_all() -> None:
            while piece := await exchange.read(take):
                got.extend(piece)

        reader = asyncio.create_task(read_all())
        for byte in CHUNKED:
            for _ in range(turns):
                await asyncio.sleep(0)
            exchange.feed(bytes([byte]))
        await reader
        return bytes(got), taken

    got, taken = asyncio.run(read())
    assert got == b"hello"
    assert (taken > 0) == (turns > 0), "nobody takes anything who does not wait for it"


def test_a_reader_that_was_given_up_takes_nothing_more() -> None:
    async def read() -> list[bytes]:
        exchange, taken = Exchange(lambda: None), list[bytes]()

        def take(piece: bytes) -> bool:
            taken.append(piece)
            return True

        reader = asyncio.create_task(exchange.read(take))
        await asyncio.sleep(0)
        exchange.feed(CHUNKED[:-20])
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader
        exchange.feed(CHUNKED[-20:])
        return taken

    assert b"".join(asyncio.run(read())) in (b"he", b"hel", b"hell")


@pytest.mark.parametrize(
    "end",
    [
        lambda exchange: exchange.feed(CHUNKED[-1:]),
        lambda exchange: exchange.feed(b"no chunk's end"),
        lambda exchange: exchange.end_of_stream(),
        lambda exchange: exchange.fail("no answer in time"),
    ],
    ids=["whole", "ambiguous", "broken off", "given up"],
)
def test_an_answer_that_is_over_goes_with_its_reader_and_waits_for_no_garbage_collector(
    end: Callable[[Exchange], None],
) -> None:
    def drained() -> None:
        raise AssertionError("nothing waited")

    exchange, kept = Exchange(drained), weakref.ref(drained)
    del drained
    exchange.feed(CHUNKED[:-1])
    gc.disable()
    try:
        end(exchange)
        del exchange
        assert kept() is None
    finally:
        gc.enable()


def test_a_header_is_found_in_any_spelling_and_the_first_of_two_counts() -> None:
    headers = fed(LENGTH).headers
    assert headers["X-ONE"] == headers.get("x-one") == "a"
    assert [value for name, value in headers.raw if name == b"x-one"] == [b"a", b"b"]


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_is_whole_with_its_head(status: int) -> None:
    exchange = fed(b"HTTP/1.1 %d X\r\n\r\n" % status)
    assert (exchange.status, exchange.is_complete, body_of(exchange)) == (status, True, b"")


def test_an_answer_without_a_length_ends_where_its_connection_does() -> None:
    exchange = fed(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo")
    assert not exchange.is_complete
    exchange.end_of_stream()
    assert (exchange.is_complete, exchange.keeps_alive, body_of(exchange)) == (True, False, b"hello")


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_half_an_answer_of_known_length_is_never_taken_for_a_whole_one(answer: bytes) -> None:
    for cut in range(len(answer)):
        exchange = fed(answer[:cut])
        exchange.end_of_stream()
        assert not exchange.is_complete
        with pytest.raises(Lost, match="closed before"):
            body_of(exchange)


@pytest.mark.parametrize(
    "after",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"H", b"\x00junk"],
    ids=["an answer", "a byte", "junk"],
)
def test_what_comes_after_an_answer_is_no_answer_to_the_next_request(after: bytes) -> None:
    exchange = fed(LENGTH + after)
    assert (exchange.is_complete, exchange.keeps_alive) == (True, False)
    assert body_of(exchange) == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=[
        "two framings",
        "two lengths",
        "no length",
        "huge chunk",
        "NUL",
        "upgrade",
        "bare 101",
        "not HTTP",
        "a request",
    ],
)
def test_an_ambiguous_or_foreign_answer_is_lost_and_its_connection_not_used_again(answer: bytes) -> None:
    exchange = fed(answer)
    assert exchange.failure is not None
    assert not exchange.keeps_alive
    with pytest.raises(Lost):
        body_of(exchange)


def _numbered(number: int) -> bytes:
    return b"x-%d: y\r\n" % number


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", lambda _: b"HTTP/1.1 100 \r\n\r\n"),
        (b"HTTP/1.1 200 ", lambda _: b"a" * 1000),
        (b"HTTP/1.1 200 OK\r\n", _numbered),
        (b"HTTP/1.1 200 OK\r\nx: ", lambda _: b"a" * 1000),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;", lambda _: b"a" * 1000),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", lambda _: b"a" * 1000),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", _numbered),
    ],
    ids=["interim answers", "status line", "headers", "one header", "chunk extension", "trailer", "trailers"],
)
def test_what_never_ends_is_given_up_before_it_is_large(begin: bytes, more: Callable[[int], bytes]) -> None:
    exchange, sent = fed(begin), 0
    while exchange.failure is None:
        piece = more(sent)
        exchange.feed(piece)
        sent += len(piece)
        assert sent < FLOOD_BYTES_MAX
    assert not exchange.keeps_alive

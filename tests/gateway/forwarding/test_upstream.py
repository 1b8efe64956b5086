"""Goal: a request leaves once or not at all, and which of the two is never in doubt. Real sockets, hostile ends."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import gateway.connections as gateway_connections
import gateway.exchange as gateway_exchange
from buyer.flow import Lost, NeverLeft, Outgoing
from gateway.limits import UNREAD_BYTES_MAX
from gateway.upstream import Answer, Upstream
from tests.buyer.parts import closed_port_url
from tests.patience import PATIENCE_S

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Seller:
    """A port on which `talk` answers each request; it counts connections and keeps what was asked."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.connections = 0
        self.asked: list[bytes] = []
        self.was_asked, self.ended = asyncio.Event(), asyncio.Event()
        self.url = ""
        self.tasks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.asked.append(head + await reader.readexactly(length))
                self.was_asked.set()
                await self.talk(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self.ended.set()


@contextlib.asynccontextmanager
async def selling(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[Seller]:
    seller = Seller(talk)
    async with asyncio.timeout(PATIENCE_S):
        server = await asyncio.start_server(seller.serve, "127.0.0.1", 0, ssl=tls)
        seller.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield seller
        finally:
            server.close()
            await asyncio.gather(*(task for task in seller.tasks if task is not None), return_exceptions=True)


def says(*pieces: bytes) -> Talk:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return talk


def call(url: str, *, body: bytes = b"{}", headers: list[tuple[str, str]] | None = None) -> Outgoing:
    return Outgoing("POST", url + "/v1/chat/completions", headers or [], body)


async def body_of(answer: Answer) -> bytes:
    try:
        return b"".join([chunk async for chunk in answer.chunks()])
    finally:
        answer.close()


async def test_calls_one_after_the_other_share_a_connection() -> None:
    async with selling(says(OK)) as seller, Upstream() as upstream:
        for number in range(3):
            answer = await upstream.open(call(seller.url, body=b"x" * number))
            assert (answer.status, await body_of(answer)) == (200, b"ok")
        assert (len(seller.asked), seller.connections) == (3, 1)


async def test_calls_at_once_have_a_connection_each_and_their_own_answers() -> None:
    async def echo(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = seller.asked[-1].partition(b"\r\n\r\n")[2]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with selling(echo) as seller, Upstream() as upstream:
        bodies = [b"a%d" % number for number in range(8)]
        answers = await asyncio.gather(*(upstream.open(call(seller.url, body=body)) for body in bodies))
        assert [await body_of(answer) for answer in answers] == bodies
        assert seller.connections == 8


async def test_a_large_request_arrives_whole() -> None:
    body = bytes(range(256)) * 8192
    async with selling(says(OK)) as seller, Upstream() as upstream:
        assert await body_of(await upstream.open(call(seller.url, body=body))) == b"ok"
        assert seller.asked[0].endswith(b"\r\n\r\n" + body)


async def test_a_kept_connection_that_the_seller_has_closed_is_not_used_again() -> None:
    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        writer.close()

    async with selling(once) as seller, Upstream() as upstream:
        for _ in range(5):
            assert await body_of(await upstream.open(call(seller.url))) == b"ok"
            await seller.ended.wait()
            seller.ended.clear()
        assert (len(seller.asked), seller.connections) == (5, 5)


async def test_a_connection_that_the_kernel_knows_to_be_closed_carries_no_request() -> None:
    """The seller's end arrives while the event loop has not run: only the kernel can tell."""

    def serve_one() -> socket.socket:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(OK)
        return connection

    async with Upstream() as upstream, asyncio.timeout(PATIENCE_S):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            for _ in range(3):
                serving = asyncio.ensure_future(asyncio.to_thread(serve_one))
                assert await body_of(await upstream.open(call(url))) == b"ok"
                (await serving).close()


async def test_a_request_that_left_on_a_kept_connection_is_not_sent_again_when_that_breaks() -> None:
    async def answer_then_reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(seller.asked) == 1:
            writer.write(OK)
            return
        # Linger zero: closing sends a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with selling(answer_then_reset) as seller, Upstream() as upstream:
        assert await body_of(await upstream.open(call(seller.url))) == b"ok"
        with pytest.raises(Lost):
            await upstream.open(call(seller.url))
        await seller.ended.wait()
        assert (len(seller.asked), seller.connections) == (2, 1)


async def test_what_a_seller_says_unasked_answers_nobody() -> None:
    async def twice(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(seller.asked) == 1:
            writer.write(OK)
            await writer.drain()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        else:
            writer.write(OK)

    async with selling(twice) as seller, Upstream() as upstream:
        for _ in range(3):
            assert await body_of(await upstream.open(call(seller.url))) == b"ok"


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhal",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
async def test_an_answer_that_ends_early_is_lost(half: bytes) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(half)
        writer.close()

    async with selling(hang_up) as seller, Upstream() as upstream:
        with pytest.raises(Lost, match="closed"):
            await body_of(await upstream.open(call(seller.url)))
        assert len(seller.asked) == 1


async def test_a_seller_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_connections, "SILENCE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(gateway_connections, "_SWEEP_EVERY_S", 0.01)
    for begin in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"):
        async with selling(says(begin)) as seller, Upstream() as upstream:
            with pytest.raises(Lost, match="no answer in time"):
                await body_of(await upstream.open(call(seller.url)))


async def test_an_answer_past_the_cap_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_exchange, "ANSWER_BYTES_MAX", 1000)
    async with selling(says(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n", b"x" * 5000)) as seller:
        async with Upstream() as upstream:
            with pytest.raises(Lost, match="larger than 1000 bytes"):
                await body_of(await upstream.open(call(seller.url)))


async def test_a_seller_waits_for_a_client_that_reads_slowly() -> None:
    piece, count, written = b"x" * 65536, 1000, 0

    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (len(piece) * count))
        for _number in range(count):
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    async with selling(much) as seller, Upstream() as upstream:
        answer = await upstream.open(call(seller.url))
        for _turn in range(5 * count):
            await asyncio.sleep(0)
        assert written < len(piece) * count / 2, "the rest waits at the seller, not in this process"
        async for chunk in answer.chunks():
            assert len(chunk) <= 2 * UNREAD_BYTES_MAX
        assert written == len(piece) * count


async def test_giving_up_while_waiting_hangs_up() -> None:
    async with selling(says()) as seller, Upstream() as upstream:
        opening = asyncio.ensure_future(upstream.open(call(seller.url)))
        await seller.was_asked.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await seller.ended.wait()


async def test_giving_up_in_the_turn_in_which_the_answer_came_breaks_nobody_elses_call() -> None:
    async def answer_the_second(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(seller.asked) == 2:
            writer.write(OK)

    async with selling(answer_the_second) as seller, Upstream() as upstream:
        given_up = asyncio.ensure_future(upstream.open(call(seller.url)))
        await seller.was_asked.wait()
        (connection,) = upstream._connections._all
        connection.data_received(OK)  # as the event loop would, in the turn in which the caller is cancelled
        given_up.cancel()
        assert await body_of(await upstream.open(call(seller.url))) == b"ok"
        assert (given_up.cancelled(), seller.connections) == (True, 1)


async def test_an_answer_that_comes_before_the_request_has_left_ends_its_connection() -> None:
    """What is left of the first request must not stand before a second one."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def answer_at_once() -> socket.socket:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(OK)
        return connection

    with listener, contextlib.ExitStack() as kept_open:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with Upstream() as upstream, asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                serving = asyncio.ensure_future(asyncio.to_thread(answer_at_once))
                assert await body_of(await upstream.open(call(url, body=bytes(8 * 2**20)))) == b"ok"
                kept_open.enter_context(await serving)


async def test_where_nobody_listens_nothing_left() -> None:
    async with Upstream() as upstream:
        with pytest.raises(NeverLeft, match="connection refused"):
            await upstream.open(call(closed_port_url()))


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://user:word@host", "http://host:99999", "http://a..b", "http://ho st", ""]
)
async def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    async with Upstream() as upstream:
        with pytest.raises(NeverLeft):
            await upstream.open(call(url))


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\x00b"])
async def test_a_header_cannot_smuggle_another_one(value: str) -> None:
    async with selling(says(OK)) as seller, Upstream() as upstream:
        with pytest.raises(NeverLeft):
            await upstream.open(call(seller.url, headers=[("accept", value)]))
        assert seller.asked == []


async def test_a_query_arrives_as_one_line_whatever_is_in_it() -> None:
    async with selling(says(OK)) as seller, Upstream() as upstream:
        await body_of(await upstream.open(Outgoing("POST", f"{seller.url}?a=%20b&c= \r\nx:\xfc", [], b"")))
        assert seller.asked[0].split(b"\r\n")[0] == b"POST /?a=%20b&c=%20%0D%0Ax:%C3%BC HTTP/1.1"


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
        """Make a certificate for localhost, and let this process trust it."""
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl command to make a certificate")
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
        names = ["-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*make.split(), *files, *names], check=True, capture_output=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
        return context

    async def test_the_name_is_proven_and_the_connection_kept(self, certificate: ssl.SSLContext) -> None:
        async with selling(says(OK), certificate) as seller, Upstream() as upstream:
            for _ in range(2):
                url = seller.url.replace("127.0.0.1", "localhost")
                assert await body_of(await upstream.open(call(url))) == b"ok"
            assert len(seller.asked) == 2

    async def test_under_a_wrong_name_nothing_leaves(self, certificate: ssl.SSLContext) -> None:
        async with selling(says(OK), certificate) as seller, Upstream() as upstream:
            with pytest.raises(NeverLeft, match="no trusted TLS connection"):
                await upstream.open(call(seller.url))
            assert seller.asked == []

    async def test_a_certificate_nobody_vouches_for_is_not_trusted(
        self, certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        async with selling(says(OK), certificate) as seller, Upstream() as upstream:
            with pytest.raises(NeverLeft, match="no trusted TLS connection"):
                await upstream.open(call(seller.url.replace("127.0.0.1", "localhost")))
            assert seller.asked == []

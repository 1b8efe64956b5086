"""The JSON-RPC client against real sockets: what answered, what refused, and what did not answer at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

import pytest

from contracts.address import parse_address
from contracts.errors import ChainUnavailable, ConfigInvalid
from contracts.evm import rpc as rpc_module
from contracts.evm.devnet import Devnet
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import Token, read_head
from contracts.limits import RPC_BATCH_MAX
from tests.buyer.parts import closed_port_url

Answer = Callable[[Any, asyncio.StreamWriter], Awaitable[None]]
# Longer than any test may take: what would wait for this has been given up before.
FOREVER_S = 3600


class Endpoint:
    """A small HTTP server that answers JSON-RPC requests the way a test wants."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[Any] = []
        self._answer = answer

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._connections: set[asyncio.Task[None]] = set()
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
                request = json.loads(await reader.readexactly(length))
                self.requests.append(request)
                await self._answer(request, writer)
        finally:
            writer.close()


async def send(writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK", header: str = "") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{header}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def answering(body: Any, status: str = "200 OK", header: str = "") -> Answer:
    """Answer with the same bytes, or the same JSON, whatever is asked; `id` 1 is that of a client's first request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda _request, writer: send(writer, data, status, header)


def result(value: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": value}


def refusal(code: Any, message: str = "no", data: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": message, "data": data}}


async def hang_up(_request: Any, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def say_nothing(_request: Any, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(FOREVER_S)


async def speak_ssh(_request: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await writer.drain()


async def drip(_request: Any, writer: asyncio.StreamWriter) -> None:
    """Send a byte often enough that no read ever times out, and never finish."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def echo_method(request: Any, writer: asyncio.StreamWriter) -> None:
    """Answer every request with its own method, the last one first."""
    asked = request if isinstance(request, list) else [request]
    replies = [{"jsonrpc": "2.0", "id": one["id"], "result": one["method"]} for one in reversed(asked)]
    await send(writer, json.dumps(replies if isinstance(request, list) else replies[0]).encode())


@pytest.fixture
async def good() -> AsyncIterator[Endpoint]:
    async with Endpoint(echo_method) as endpoint:
        yield endpoint


async def test_a_request_is_json_rpc_and_its_result_comes_back(good: Endpoint) -> None:
    async with Rpc([good.url]) as rpc:
        assert await rpc.call("eth_chainId") == "eth_chainId"
        assert await rpc.call("eth_call", {"to": "0x"}, "latest") == "eth_call"
    assert good.requests == [
        {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_call", "params": [{"to": "0x"}, "latest"]},
    ]


async def test_a_null_result_is_a_result() -> None:
    async with Endpoint(answering(result(None))) as endpoint, Rpc([endpoint.url]) as rpc:
        assert await rpc.call("eth_getTransactionReceipt", "0x12") is None


async def test_a_batch_is_one_request_and_comes_back_in_the_order_asked(good: Endpoint) -> None:
    calls = [(f"method_{number}", [number]) for number in range(RPC_BATCH_MAX)]
    async with Rpc([good.url]) as rpc:
        assert await rpc.batch(calls) == [method for method, _ in calls]
    assert [len(request) for request in good.requests] == [RPC_BATCH_MAX]


async def test_a_large_batch_is_cut_into_allowed_ones(good: Endpoint) -> None:
    calls: list[tuple[str, list[Any]]] = [(f"method_{number}", []) for number in range(RPC_BATCH_MAX + 1)]
    async with Rpc([good.url]) as rpc:
        assert await rpc.batch(calls) == [method for method, _ in calls]
    assert len(good.requests) == 2


async def test_an_empty_batch_asks_nobody(good: Endpoint) -> None:
    async with Rpc([good.url]) as rpc:
        assert await rpc.batch([]) == []
    assert good.requests == []


async def test_a_refusal_is_the_result_and_no_other_endpoint_is_asked(good: Endpoint) -> None:
    async with Endpoint(answering(refusal(3, "execution reverted", "0x08c379a0"))) as endpoint:
        async with Rpc([endpoint.url, good.url]) as rpc:
            with pytest.raises(RpcRefused) as refused:
                await rpc.call("eth_call")
    assert (refused.value.message, refused.value.rpc_code, refused.value.data) == (
        "execution reverted",
        3,
        "0x08c379a0",
    )
    assert good.requests == []


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
async def test_a_refusal_under_an_http_error_status_is_still_a_refusal(status: str) -> None:
    async with Endpoint(answering(refusal(-32601, "no such method"), status)) as endpoint, Rpc([endpoint.url]) as rpc:
        with pytest.raises(RpcRefused, match="no such method"):
            await rpc.call("eth_nonsense")


async def test_one_refused_call_of_a_batch_leaves_the_others_their_results() -> None:
    async def answer(request: Any, writer: asyncio.StreamWriter) -> None:
        replies = [{"id": one["id"], "result": "0x1"} for one in request]
        replies[1] = {"id": request[1]["id"], "error": {"code": 3, "message": "reverted"}}
        await send(writer, json.dumps(replies).encode())

    async with Endpoint(answer) as endpoint, Rpc([endpoint.url]) as rpc:
        first, second, third = await rpc.batch([("a", []), ("b", []), ("c", [])])
    assert (first, third) == ("0x1", "0x1")
    assert isinstance(second, RpcRefused)


@pytest.mark.parametrize("code", ["3", None, [], 1.5])
async def test_a_refusal_with_an_odd_code_is_still_a_refusal(code: object) -> None:
    async with Endpoint(answering(refusal(code, "m" * 1000))) as endpoint, Rpc([endpoint.url]) as rpc:
        with pytest.raises(RpcRefused) as refused:
            await rpc.call("eth_call")
    assert refused.value.rpc_code == 0
    assert len(refused.value.message) == 300


USELESS: dict[str, Answer] = {
    "hangs up": hang_up,
    "is busy": answering(refusal(-32000, "busy"), "503 Service Unavailable"),
    "limits us": answering(refusal(429, "slow down"), "429 Too Many Requests"),
    "is a broken gateway": answering(b"<html>Bad Gateway</html>", "502 Bad Gateway"),
    "has reached its limit": answering(refusal(-32005, "limit exceeded")),
    "forbids": answering(b"forbidden", "403 Forbidden"),
    "redirects": answering(b"", "307 Temporary Redirect", "location: http://127.0.0.1:9/\r\n"),
    "says html": answering(b"<html></html>"),
    "says nothing": answering(b""),
    "says half a document": answering(b'{"id": 1, "result"'),
    "says bad utf-8": answering(b'{"id": 1, "result": "\xff"}'),
    "nests": answering(b"[" * 100_000),
    "says a number": answering(b"42"),
    "says null": answering(b"null"),
    "says an empty list": answering(b"[]"),
    "says a list of nonsense": answering([1, None, "x", {"id": []}, {"id": {}}, {}]),
    "answers another request": answering({"jsonrpc": "2.0", "id": 99, "result": "0x1"}),
    "answers a text id": answering({"jsonrpc": "2.0", "id": "1", "result": "0x1"}),
    "answers nobody": answering({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "parse"}}),
    "says neither": answering({"jsonrpc": "2.0", "id": 1}),
    "says an error that is none": answering({"jsonrpc": "2.0", "id": 1, "error": "bad"}),
    "lies about compression": answering(b"not gzip", header="content-encoding: gzip\r\n"),
    "speaks another protocol": speak_ssh,
}


@pytest.mark.parametrize("answer", USELESS.values(), ids=USELESS)
async def test_an_endpoint_that_gives_no_answer_is_passed_over_for_the_next(answer: Answer, good: Endpoint) -> None:
    async with Endpoint(answer) as useless, Rpc([useless.url, good.url]) as rpc:
        assert await rpc.call("eth_chainId") == "eth_chainId"
    assert len(good.requests) == 1


@pytest.mark.parametrize("answer", USELESS.values(), ids=USELESS)
async def test_when_none_answers_the_chain_is_unavailable_which_is_our_failure(answer: Answer) -> None:
    async with Endpoint(answer) as useless, Rpc([useless.url]) as rpc:
        with pytest.raises(ChainUnavailable, match=r"no RPC endpoint answered \(127\.0\.0\.1: ") as unavailable:
            await rpc.call("eth_chainId")
    assert (unavailable.value.http_status, unavailable.value.retry_after_s) == (503, 5)
    assert "_Unusable" not in unavailable.value.message


async def test_a_closed_port_is_passed_over_and_every_failure_is_named(good: Endpoint) -> None:
    async with Rpc([closed_port_url(), good.url]) as rpc:
        assert await rpc.call("eth_chainId") == "eth_chainId"
    async with Rpc([closed_port_url(), closed_port_url()]) as rpc:
        with pytest.raises(ChainUnavailable, match=r"127.0.0.1: ConnectError, 127.0.0.1: ConnectError"):
            await rpc.call("eth_chainId")


@pytest.mark.parametrize("answer", [say_nothing, drip], ids=["silent", "dripping"])
async def test_the_deadline_covers_the_whole_request(answer: Answer) -> None:
    async with Endpoint(answer) as slow, Rpc([slow.url], timeout_s=0.2) as rpc:
        with pytest.raises(ChainUnavailable, match=r"127\.0\.0\.1: no answer in 0\.2 s"):
            await rpc.call("eth_chainId")


@pytest.mark.parametrize("answer", [say_nothing, drip], ids=["silent", "dripping"])
async def test_an_endpoint_past_its_deadline_is_passed_over_for_the_next(answer: Answer, good: Endpoint) -> None:
    async with Endpoint(answer) as slow:
        # The next one has no more time; a busy machine may need some of it.
        for timeout_s in (0.2, 2, 20):
            async with Rpc([slow.url, good.url], timeout_s=timeout_s) as rpc:
                with contextlib.suppress(ChainUnavailable):
                    assert await rpc.call("eth_chainId") == "eth_chainId"
                    return
    raise AssertionError("the next one was never asked")


async def test_an_answer_over_the_cap_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, good: Endpoint) -> None:
    monkeypatch.setattr(rpc_module, "RPC_ANSWER_BYTES_MAX", 1000)
    async with Endpoint(answering(result("x" * 1001))) as large, Rpc([large.url, good.url]) as rpc:
        assert await rpc.call("eth_chainId") == "eth_chainId"
    async with Endpoint(answering(result("x" * 900))) as fitting, Rpc([fitting.url]) as rpc:
        assert await rpc.call("eth_chainId") == "x" * 900


async def test_a_redirect_is_not_followed(good: Endpoint) -> None:
    header = f"location: {good.url}\r\n"
    async with Endpoint(answering(b"", "307 Temporary Redirect", header)) as endpoint, Rpc([endpoint.url]) as rpc:
        with pytest.raises(ChainUnavailable):
            await rpc.call("eth_sendRawTransaction", "0x02")
    assert good.requests == []


async def test_no_error_shows_the_credentials_of_a_url() -> None:
    url = closed_port_url().replace("http://", "http://user:hunter2@") + "/v3/apikey12345?token=tokentoken"
    async with Rpc([url]) as rpc:
        with pytest.raises(ChainUnavailable) as unavailable:
            await rpc.call("eth_chainId")
    shown = repr(unavailable.value)
    assert "127.0.0.1" in shown
    assert not [secret for secret in ("user", "hunter2", "apikey", "token") if secret in shown]


@pytest.mark.parametrize(
    "url", ["", "localhost", "127.0.0.1:8545", "ws://127.0.0.1:8545", "http://", "file:///etc/passwd", "http://[::1"]
)
def test_what_is_no_http_url_is_refused_at_start_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigInvalid, match="rpc: expected http") as refused:
        Rpc(["http://127.0.0.1:1", url])
    assert refused.value.message.endswith("got something else")


def test_no_url_at_all_is_refused_at_start() -> None:
    with pytest.raises(ConfigInvalid, match="no endpoint is configured"):
        Rpc([])


async def test_a_real_chain_answers_batches_and_refuses_nonsense(devnet: Devnet) -> None:
    async with Rpc([closed_port_url(), devnet.rpc_url]) as rpc:
        chain_id, refused = await rpc.batch([("eth_chainId", []), ("eth_noSuchMethod", [])])
        head = await read_head(rpc)
        facts = await Token(rpc, parse_address(devnet.token)).facts()
    assert int(chain_id, 16) == devnet.chain_id
    assert isinstance(refused, RpcRefused)
    assert head.number >= 1
    assert (facts.chain_id, facts.has_code, facts.decimals) == (devnet.chain_id, True, 6)

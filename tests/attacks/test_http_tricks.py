"""HTTP against the seller: caches, bombs, doubled headers, smuggling, steering, and what errors give away."""

from __future__ import annotations

import asyncio
import gzip
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from contracts.limits import HEADER_BYTES_MAX
from tests.attacks.parts import GOODS, attacked
from tests.attacks.wire import behind_proxy
from tests.seller.shop import BODY, CHAT, GAS, OTHER, PRICE_ATOMIC, error_of, open_shop


class CachingProxy(httpx.AsyncBaseTransport):
    """A stand-in for a shared cache, greedy as some are: it keeps every 2xx, 402 and 404 that does not forbid it."""

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app=app)
        self._kept: dict[tuple[str, ...], httpx.Response] = {}
        self.hits = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for key, kept in self._kept.items():
            if key == self._key(request, kept):
                self.hits += 1
                return httpx.Response(kept.status_code, headers=kept.headers, content=kept.content)
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        control = answer.headers.get("cache-control", "")
        if answer.status_code in (200, 203, 402, 404) and not any(word in control for word in ("no-store", "private")):
            self._kept[self._key(request, answer)] = answer
        return answer

    def _key(self, request: httpx.Request, answer: httpx.Response) -> tuple[str, ...]:
        varied = [name.strip().lower() for name in answer.headers.get("vary", "").split(",") if name.strip()]
        return (request.method, str(request.url), *(request.headers.get(name, "") for name in varied))


@pytest.mark.parametrize("settle", ["auto", "before", "after", "async"])
async def test_a_shared_cache_gives_a_paid_answer_to_nobody_else(chain: Devnet, tmp_path: Path, settle: str) -> None:
    """S12, I21: the model server asks for caching in every way it can."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, till):
        shop.app.headers = [
            (b"content-type", b"application/json"),
            (b"cache-control", b"public, max-age=600, s-maxage=600, immutable"),
            (b"expires", b"Thu, 01 Jan 2099 00:00:00 GMT"),
            (b"surrogate-control", b"max-age=600"),
            (b"x-accel-expires", b"600"),
            (b"cdn-cache-control", b"public, max-age=600"),
            (b"etag", b'"1"'),
            (b"age", b"1"),
            (b"last-modified", b"Thu, 01 Jan 2015 00:00:00 GMT"),
        ]
        proxy = CachingProxy(shop.middleware)
        async with httpx.AsyncClient(transport=proxy, base_url="http://shop") as client:
            till.watch(client)
            paid = await client.get("/paid", headers={"PAYMENT-SIGNATURE": shop.payment(path="/paid")})
            assert paid.content == GOODS
            assert paid.headers["cache-control"] == "no-store"
            assert "payment-signature" in paid.headers["vary"].lower()
            assert not {"etag", "age", "expires", "last-modified", "surrogate-control"} & set(paid.headers)
            assert not {"cdn-cache-control", "x-accel-expires"} & set(paid.headers)
            unpaid = await client.get("/paid")
            assert (unpaid.status_code, unpaid.headers["cache-control"]) == (402, "no-store")
            second = await client.get("/paid", headers={"PAYMENT-SIGNATURE": shop.payment(path="/paid")})
            assert second.content == GOODS
        assert proxy.hits == 0
        assert shop.app.runs == 2


async def test_a_conditional_request_is_no_way_to_pay_less(chain: Devnet, tmp_path: Path) -> None:
    """S12: unpaid, it is a 402; nothing is learnt about the goods."""
    async with attacked(chain, tmp_path) as (shop, _):
        for name in ("If-None-Match", "If-Modified-Since", "If-Match", "Range", "If-Range"):
            assert (await shop.client.get("/paid", headers={name: "*"})).status_code == 402
        assert shop.app.runs == 0


BOMBS: dict[str, bytes] = {
    "arrays": b'{"model":' + b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "mixed and closed": b'{"model":"m","x":' + b'[{"a":' * 30_000 + b"1" + b"}]" * 30_000 + b"}",
    "a number of a million digits": b'{"model":"m","n":' + b"9" * 1_000_000 + b"}",
    "an exponent": b'{"model":"m","n":1e999999999}',
    "a million keys": b'{"model":"m",' + b",".join(b'"%d":0' % number for number in range(200_000)) + b"}",
    "equal keys": b'{"model":"m",' + b'"k":0,' * 200_000 + b'"z":0}',
    "a long name": b'{"model":"' + b"m" * 1_000_000 + b'"}',
    "escapes": b'{"model":"' + b"\\u0061" * 100_000 + b'"}',
    "lone surrogates": b'{"model":"\\ud800"}',
    "nothing but spaces": b" " * 1_000_000,
    "zero bytes": bytes(1_000_000),
    "gzip": gzip.compress(bytes(10_000_000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("paid", [False, True], ids=["unpaid", "with a payment"])
async def test_a_bomb_in_the_body_is_a_4xx_and_the_payment_stays_good(
    chain: Devnet, tmp_path: Path, bomb: str, paid: bool
) -> None:
    """S16, I17."""
    async with attacked(chain, tmp_path) as (shop, _):
        header = shop.payment()
        headers = {"PAYMENT-SIGNATURE": header} if paid else {}
        if bomb == "gzip":
            headers["content-encoding"] = "gzip"
        answer = await shop.client.post(CHAT, content=BOMBS[bomb], headers=headers)
        if answer.status_code == 200:
            # Odd but well-formed: served as it is, for its price.
            assert shop.app.seen[-1]["body"] == BOMBS[bomb]
        else:
            assert 400 <= answer.status_code < 500
            assert shop.app.runs == 0
            assert (await shop.buy(header)).status_code == 200


async def test_header_bombs_are_refused_before_they_are_decoded(chain: Devnet, tmp_path: Path) -> None:
    """S16: longer than any payment, in one header or in many."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        for size in (HEADER_BYTES_MAX + 4, 60_000, 300_000):
            status, _, _ = await wire.send("POST", CHAT, [("PAYMENT-SIGNATURE", "A" * size)])
            assert status in (0, 400, 431), size
        for count in (500, 5000):
            status, _, _ = await wire.send("POST", CHAT, [(f"X-{number}", "a" * 50) for number in range(count)])
            assert status in (0, 400, 402, 431)
        assert shop.app.runs == 0
        assert (await wire.send("POST", CHAT, [("PAYMENT-SIGNATURE", shop.payment())]))[0] == 200


async def test_two_payments_in_one_request_are_400_whatever_they_are(chain: Devnet, tmp_path: Path) -> None:
    """S17."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        one, two = shop.payment(), shop.payment()
        for pair in (
            [("PAYMENT-SIGNATURE", one), ("PAYMENT-SIGNATURE", one)],
            [("PAYMENT-SIGNATURE", one), ("payment-signature", two)],
            [("PAYMENT-SIGNATURE", one), ("X-PAYMENT", two)],
            [("PAYMENT-SIGNATURE", f"{one}, {two}")],
            [("PAYMENT-SIGNATURE", ""), ("PAYMENT-SIGNATURE", one)],
            [("PAYMENT-SIGNATURE", one), ("X-PAYMENT", "")],
        ):
            assert (await wire.send("POST", CHAT, pair))[0] == 400
        assert shop.app.runs == 0
        assert (await wire.send("POST", CHAT, [("PAYMENT-SIGNATURE", one)]))[0] == 200


async def test_no_payment_or_credential_reaches_the_model_server(chain: Devnet, tmp_path: Path) -> None:
    """S17, I22: payments, cookies, authorization, and what `Connection` lists."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        secret = [
            ("PAYMENT-SIGNATURE", shop.payment()),
            ("Cookie", "session=1"),
            ("Authorization", "Bearer sk-client"),
            ("Proxy-Authorization", "Basic eA=="),
            ("X-Secret-Hop", "1"),
            ("Connection", "close, X-Secret-Hop, Keep-Alive"),
            ("Payment_Signature", "smuggled"),
            ("X_Payment", "smuggled"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
        ]
        assert (await wire.send("POST", CHAT, secret))[0] == 200
        (seen,) = shop.app.seen
        assert set(seen["headers"]) == {b"host", b"content-length"}
        assert seen["body"] == BODY


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nX: a\nPAYMENT-SIGNATURE: b\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_requests_that_two_servers_could_read_differently_run_nothing(
    chain: Devnet, tmp_path: Path, raw: bytes
) -> None:
    """S17: two lengths, a length and chunks, odd line ends."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        closing = raw.replace(b"Host: s\r\n", b"Host: s\r\nConnection: close\r\n", 1)
        try:
            status, _, body = await wire.send("POST", CHAT, raw=closing)
        except TimeoutError:
            pytest.fail("the server waits for more instead of an end")
        assert status in (0, 400, 402, 413)
        assert shop.app.runs == 0, "a handler ran"
        assert GOODS not in body


async def test_a_model_server_cannot_speak_for_the_seller(chain: Devnet, tmp_path: Path) -> None:
    """S18, I22: receipts, prices, settlement overrides and charges in its answer go no further."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        shop.app.headers = [
            (b"content-type", b"application/json"),
            (b"settlement-overrides", b'{"amount":"0"}'),
            (b"payment-response", b"eyJzdWNjZXNzIjp0cnVlfQ=="),
            (b"x-payment-response", b"eyJzdWNjZXNzIjp0cnVlfQ=="),
            (b"payment-required", b"e30="),
            (b"x-farebox-charged", b"false"),
            (b"x-farebox-replayed", b"true"),
            (b"set-cookie", b"a=b"),
        ]
        status, headers, _ = await wire.send("POST", CHAT, [("PAYMENT-SIGNATURE", shop.payment())])
        assert status == 200
        assert not {"settlement-overrides", "payment-required", "x-payment-response", "set-cookie"} & set(headers)
        assert not {"x-farebox-charged", "x-farebox-replayed"} & set(headers)
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


@pytest.mark.parametrize("name", ["Settlement-Overrides", "PAYMENT-RESPONSE", "PAYMENT-REQUIRED", "X-Farebox-Charged"])
async def test_a_client_cannot_steer_settlement_by_headers(chain: Devnet, tmp_path: Path, name: str) -> None:
    """S18."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        steering = [("PAYMENT-SIGNATURE", shop.payment()), (name, '{"amount":"0"}')]
        assert (await wire.send("POST", CHAT, steering))[0] == 200
        assert name.lower().encode() not in shop.app.seen[0]["headers"]
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC


async def test_a_model_server_that_asks_for_payment_itself_is_not_paid_twice(chain: Devnet, tmp_path: Path) -> None:
    """S18: its 402 is its own failure: passed on without terms of ours, and not charged."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        shop.app.status, shop.app.body = 402, b'{"error":"pay me"}'
        status, headers, _ = await wire.send("POST", CHAT, [("PAYMENT-SIGNATURE", shop.payment())])
        assert (status, headers["x-farebox-charged"]) == (402, "false")
        assert "payment-required" not in headers
        await shop.settled()
        assert shop.earned == 0
        wire.expect_failed_run()


async def test_errors_and_logs_give_no_address_key_or_path_away(
    chain: Devnet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S19, I23: the chain, the store and the application fail in turn; their secrets stay here."""
    caplog.set_level(logging.DEBUG, logger="farebox")
    told: list[bytes] = []
    async with open_shop(chain, tmp_path, rpc=["http://user:hunter2@127.0.0.1:9/v3/TOKEN123"], settles=False) as shop:
        for header in (shop.payment(), shop.payment(OTHER)):
            answer = await shop.buy(header)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "chain_unavailable")
            told += [answer.content, repr(answer.headers).encode()]
    folder = tmp_path / "second"
    folder.mkdir()
    async with open_shop(chain, folder, settle="after", funds=0) as shop:

        async def fail(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError(f"cannot open {folder}/secret.key")

        shop.app.behave = fail
        answer = await shop.buy()
        assert answer.status_code == 502
        told += [answer.content, repr(answer.headers).encode()]
    everything = b"\n".join(told)
    for secret in (b"TOKEN123", b"hunter2", b"127.0.0.1:9", str(tmp_path).encode(), b"Traceback", b"RuntimeError"):
        assert secret not in everything
    key = chain.accounts[GAS].key.hex()
    logged = caplog.text
    assert key not in logged
    assert "TOKEN123" not in logged
    assert "hunter2" not in logged


async def test_many_slow_requests_hold_up_nobody(chain: Devnet, tmp_path: Path) -> None:
    """S7, I17: a hundred bodies that never end, and somebody else is served meanwhile."""
    async with behind_proxy(chain, tmp_path) as (shop, wire):
        host, port = wire.url.removeprefix("http://").split(":")
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
        for _, writer in slow:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: 1000\r\n\r\n{")
        assert (await wire.send("POST", CHAT, [("PAYMENT-SIGNATURE", shop.payment())]))[0] == 200
        assert shop.app.runs == 1
        for _, writer in slow:
            writer.close()

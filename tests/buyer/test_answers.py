"""What an SDK client takes of an answer has an end, in bytes and in time, and giving one up costs no second price.

The sellers here are stand-ins: they answer whatever payment they are shown, with a body that does not end well.
"""

from __future__ import annotations

import asyncio
import gzip
import re
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from buyer import AsyncClient, Client, SpendPolicy
from buyer.home import Home
from buyer.limits import ANSWER_PIECE_BYTES_MAX
from buyer.pool import Counts, Pool
from buyer.signers import KeySigner
from contracts.errors import (
    AnswerOverLimit,
    FareboxError,
    MalformedMessage,
    OutcomeUnknown,
    SellerUnreachable,
    UsageError,
)
from contracts.headers import PAYMENT_RESPONSE, PAYMENT_SIGNATURE
from tests.buyer.parts import Shop, offer_of, receipt, serving
from tests.buyer.test_client import CHAT, stock
from tests.patience import PATIENCE_S

KEY = bytes(range(1, 33))
BYTES_MAX = 100_000
# How long an answer may take, in turn: on a slow machine its head needs longer than the first of them.
TIMES_S = (0.2, 1, 5, 25, 120)
Bodies = Callable[[], AsyncIterator[bytes]]


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"more " * 1000


async def dripping() -> AsyncIterator[bytes]:
    while True:
        yield b"."
        await asyncio.sleep(0.02)


async def bomb() -> AsyncIterator[bytes]:
    yield gzip.compress(bytes(50_000_000))


async def past_the_end() -> AsyncIterator[bytes]:
    yield gzip.compress(b"short")
    async for chunk in endless():
        yield chunk


async def empty_blocks() -> AsyncIterator[bytes]:
    yield gzip.compress(b"")[:10]
    while True:
        yield b"\x00\x00\x00\xff\xff" * 1000


async def short() -> AsyncIterator[bytes]:
    yield b"all of it"


class Seller:
    """Asks for payment, and answers a paid request with a body; counts connections that the buyer closed on it."""

    def __init__(self, body: Bodies, encoding: str = "") -> None:
        self.shop = Shop([offer_of()])
        self.body = body
        self.encoding = encoding
        self.payments: list[str] = []
        self.left = threading.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        payment = headers.get(PAYMENT_SIGNATURE.lower())
        if payment is None:
            return await self.shop(scope, receive, send)
        self.payments.append(payment)
        told = {PAYMENT_RESPONSE: receipt(), "content-encoding": self.encoding}
        pairs = [(name.lower().encode(), value.encode()) for name, value in told.items() if value]
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        gone = asyncio.ensure_future(self._gone(receive))
        async for chunk in self.body():
            if gone.done():
                self.left.release()
                return None
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})
        gone.cancel()
        return None

    async def _gone(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


@contextmanager
def sold(pool: Pool, body: Bodies, encoding: str = "") -> Iterator[Seller]:
    """Sell that body to a pool of five payments."""
    seller = Seller(body, encoding)
    with serving(seller) as url:
        stock(pool, url)
        yield seller


def read(pool: Pool, how: str, **limits: Any) -> bytes:
    """Buy one answer in one of the four ways a client can read it."""

    async def read_async() -> bytes:
        async with AsyncClient(pool=pool, purchase="p", **limits) as client:
            if how == "async at once":
                return (await client.post(CHAT, json={})).content
            async with client.stream("POST", CHAT, json={}) as answer:
                return b"".join([piece async for piece in answer.aiter_bytes()])

    if how.startswith("async"):
        return asyncio.run(read_async())
    with Client(pool=pool, purchase="p", **limits) as client:
        if how == "at once":
            return client.post(CHAT, json={}).content
        with client.stream("POST", CHAT, json={}) as answer:
            return b"".join(answer.iter_bytes())


def given_up_in_time(pool: Pool, how: str) -> str:
    """Read a dripping answer with ever more patience until its head comes in time; return why it was given up then."""
    for time_s in TIMES_S:
        with pytest.raises((AnswerOverLimit, OutcomeUnknown)) as given_up:
            read(pool, how, answer_timeout_s=time_s)
        if isinstance(given_up.value, AnswerOverLimit):
            return given_up.value.message
    raise AssertionError("the head of the answer never came")


WAYS = ["at once", "streamed", "async at once", "async streamed"]


@pytest.mark.parametrize("how", WAYS)
def test_an_endless_answer_is_given_up_and_its_payment_is_booked(pool: Pool, how: str) -> None:
    with sold(pool, endless) as seller:
        with pytest.raises(AnswerOverLimit, match=f"answer_bytes_max = {BYTES_MAX} bytes") as given_up:
            read(pool, how, answer_bytes_max=BYTES_MAX)
        assert seller.left.acquire(timeout=PATIENCE_S), "the connection was not closed"
        assert len(seller.payments) == 1
    assert given_up.value.receipt is not None
    assert given_up.value.receipt.success
    assert pool.counts("p") == Counts(ready=4, spent=1)
    (booked,) = pool.receipts()
    assert (booked.state, booked.transaction) == ("spent", "0x" + "ab" * 32)


@pytest.mark.parametrize("how", WAYS)
def test_a_dripping_answer_is_given_up_after_the_whole_time(pool: Pool, how: str) -> None:
    with sold(pool, dripping) as seller:
        message = given_up_in_time(pool, how)
        assert re.search(r"answer_timeout_s = [0-9.]+ s", message)
        assert seller.left.acquire(timeout=PATIENCE_S), "the connection was not closed"
    assert pool.counts("p") == Counts(ready=4, spent=1)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_seller_that_never_begins_to_answer_is_given_up_and_the_outcome_is_open(
    pool: Pool, asynchronous: bool
) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(never) as url:
        stock(pool, url)
        how, why = "async at once" if asynchronous else "at once", ""
        for time_s in TIMES_S:
            with pytest.raises((OutcomeUnknown, SellerUnreachable)) as given_up:
                read(pool, how, answer_timeout_s=time_s)
            why = str(given_up.value)
            if isinstance(given_up.value, OutcomeUnknown):
                break  # or else a busy machine had not even sent it in time
    assert "paid, but no answer" in why
    assert pool.counts("p") == Counts(ready=4, unknown=1)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("body", [bomb, past_the_end, empty_blocks])
def test_a_compressed_answer_unfolds_to_no_more_than_the_limit(pool: Pool, body: Bodies, how: str) -> None:
    with sold(pool, body, "gzip"), pytest.raises(AnswerOverLimit):
        read(pool, how, answer_bytes_max=BYTES_MAX)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("encoding", ["", "identity", "gzip", "deflate"])
def test_an_ordinary_answer_comes_whole_and_decoded(pool: Pool, encoding: str, how: str) -> None:
    text = bytes(range(256)) * (3 * ANSWER_PIECE_BYTES_MAX // 256)
    packed = gzip.compress(text) if encoding == "gzip" else zlib.compress(text) if encoding == "deflate" else text

    async def whole() -> AsyncIterator[bytes]:
        yield packed[:1000]
        yield packed[1000:]

    with sold(pool, whole, encoding):
        assert read(pool, how) == text


@pytest.mark.parametrize("how", WAYS[:3:2])
@pytest.mark.parametrize(("body", "encoding"), [(short, "br"), (short, "gzip")])
def test_an_answer_that_cannot_be_decoded_is_named(pool: Pool, body: Bodies, encoding: str, how: str) -> None:
    with sold(pool, body, encoding), pytest.raises(MalformedMessage, match=r"(?i)content-encoding"):
        read(pool, how)


def test_repeating_a_request_whose_answer_was_given_up_presents_the_same_payment(pool: Pool) -> None:
    with sold(pool, endless) as seller:
        for _ in range(3):
            with pytest.raises(AnswerOverLimit):
                read(pool, "at once", answer_bytes_max=BYTES_MAX)
        seller.body = short
        assert read(pool, "at once") == b"all of it"
        assert len(seller.payments) == 4
        assert len(set(seller.payments)) == 1
        # It was delivered: the same request is a new purchase.
        assert read(pool, "at once") == b"all of it"
        assert len(set(seller.payments)) == 2
    assert pool.counts("p") == Counts(ready=3, spent=2)


def test_the_retries_of_the_openai_client_buy_an_endless_answer_once(pool: Pool) -> None:
    with sold(pool, endless) as seller, Client(pool=pool, purchase="p", answer_bytes_max=BYTES_MAX) as client:
        transport: Any = client
        agent = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", http_client=transport, max_retries=2)
        with pytest.raises((openai.APIConnectionError, FareboxError)):
            agent.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        assert len(set(seller.payments)) == 1


def test_with_a_signer_the_repetition_signs_nothing_new() -> None:
    seller = Seller(endless)
    policy = SpendPolicy(max_price="0.001", max_total="0.001")
    with (
        serving(seller) as url,
        Client(signer=KeySigner(KEY), policy=policy, base_url=url, answer_bytes_max=BYTES_MAX) as client,
    ):
        for _ in range(2):
            with pytest.raises(AnswerOverLimit):
                client.post(CHAT, json={})
        seller.body = short
        assert client.post(CHAT, json={}).text == "all of it"
    assert len(seller.payments) == 3
    assert len(set(seller.payments)) == 1


def test_who_stops_reading_has_had_the_answer(pool: Pool) -> None:
    with sold(pool, endless) as seller:
        with Client(pool=pool, purchase="p") as client:
            for _ in range(2):
                with client.stream("POST", CHAT, json={}) as answer:
                    assert next(answer.iter_bytes())
        assert len(set(seller.payments)) == 2


def test_an_answer_that_breaks_off_is_asked_for_again_with_the_same_payment(pool: Pool) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError

    with sold(pool, broken) as seller:
        # How the connection ended, in order or with a reset, is the system's choice.
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            read(pool, "at once")
        seller.body = short
        assert read(pool, "at once") == b"all of it"
        assert len(set(seller.payments)) == 1


def test_a_request_asks_for_no_encoding_that_would_be_decoded_unbounded(pool: Pool) -> None:
    asked: list[bytes] = []

    async def seller(scope: Any, receive: Any, send: Any) -> None:
        asked.append(dict(scope["headers"])[b"accept-encoding"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with serving(seller) as url:
        stock(pool, url)
        with Client(pool=pool, purchase="p", headers={"accept-encoding": "br, zstd"}) as client:
            client.get(CHAT)
            client.get(CHAT, headers={"accept-encoding": "identity"})
    assert asked == [b"gzip, deflate", b"identity"]


@pytest.mark.parametrize("limits", [{"answer_bytes_max": 0}, {"answer_timeout_s": 0.0}, {"answer_timeout_s": -1.0}])
def test_a_limit_of_nothing_is_refused_by_name(pool: Pool, limits: dict[str, Any]) -> None:
    stock(pool, "http://127.0.0.1:9")
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError, match=next(iter(limits))):
            kind(pool=pool, purchase="p", **limits)

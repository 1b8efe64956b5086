"""The SDK clients against a real HTTP seller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpcore._async.http11
import httpcore._sync.http11
import httpx
import openai
import pytest

from buyer import AsyncClient, Client, SpendPolicy
from buyer.home import Home
from buyer.pool import Counts, Pool
from buyer.signers import KeySigner
from contracts.errors import (
    BudgetExceeded,
    OutcomeUnknown,
    PriceAboveCap,
    SellerUnreachable,
    TermsNotAllowed,
    UsageError,
)
from contracts.offers import PERMIT2, Offer
from tests.buyer.parts import KEY, Shop, add_purchase, add_signed, closed_port_url, hanging_up, offer_of, serving

CHAT = "/v1/chat/completions"
SIGNER = KeySigner(bytes(range(1, 33)))
UVICORN_KEEPALIVE_S = 5
POLICY = SpendPolicy(max_price="0.001", max_total="0.003")


@pytest.fixture
def shop() -> Shop:
    return Shop([offer_of()])


@pytest.fixture
def url(shop: Shop) -> Iterator[str]:
    with serving(shop) as address:
        yield address


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


def stock(pool: Pool, url: str, count: int = 5) -> None:
    purchase = add_purchase(pool, endpoint=url)
    add_signed(pool, purchase, count, valid_before_s=int(time.time()) + 86_400, key=KEY)


def test_a_client_with_a_pool_pays_on_the_first_request(shop: Shop, url: str, pool: Pool) -> None:
    stock(pool, url)
    with Client(pool=pool, purchase="p") as client:
        answer = client.post(CHAT, json={"model": "m"})
    assert answer.status_code == 200
    assert answer.text.startswith("answer to")
    assert answer.extensions["farebox"].receipt.success
    assert (len(shop.paid), shop.unpaid) == (1, 0)
    assert pool.counts("p") == Counts(ready=4, spent=1)


def test_an_asynchronous_client_with_a_pool_pays_many_at_once(shop: Shop, url: str, pool: Pool) -> None:
    stock(pool, url, 20)

    async def calls() -> list[httpx.Response]:
        async with AsyncClient(pool=pool, purchase="p") as client:
            return await asyncio.gather(*(client.post(CHAT, json={"n": number}) for number in range(20)))

    assert {answer.status_code for answer in asyncio.run(calls())} == {200}
    assert len({authorization.nonce for authorization in shop.paid}) == 20
    assert pool.counts("p") == Counts(spent=20)


def test_reading_what_is_free_costs_nothing(shop: Shop, url: str, pool: Pool) -> None:
    stock(pool, url)
    shop.free = True
    with Client(pool=pool, purchase="p") as client:
        assert client.get("/report").text == "free"
    assert pool.counts("p") == Counts(ready=5)


def test_a_server_error_is_returned_and_its_repetition_presents_the_same_payment(
    shop: Shop, url: str, pool: Pool
) -> None:
    stock(pool, url)
    shop.status = 503
    with Client(pool=pool, purchase="p") as client:
        first = client.post(CHAT, json={"model": "m"})
        assert (first.status_code, first.text) == (503, "busy")
        shop.status = 200
        assert client.post(CHAT, json={"model": "m"}).status_code == 200
    assert len({authorization.nonce for authorization in shop.paid}) == 1
    assert pool.counts("p") == Counts(ready=4, spent=1)


def test_the_retries_of_the_openai_client_buy_once(shop: Shop, url: str, pool: Pool) -> None:
    stock(pool, url)
    shop.status = 503
    with Client(pool=pool, purchase="p") as client:
        # Typed for its own fork of httpx; what it needs of a client is the same.
        transport: Any = client
        agent = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", http_client=transport, max_retries=2)
        with pytest.raises(openai.InternalServerError):
            agent.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], timeout=20)
    assert len(shop.paid) == 3
    assert len({authorization.nonce for authorization in shop.paid}) == 1
    assert pool.counts("p") == Counts(ready=4, unknown=1)


def test_a_lost_answer_and_a_closed_door_are_told_apart(pool: Pool) -> None:
    with hanging_up() as url:
        stock(pool, url)
        with Client(pool=pool, purchase="p") as client, pytest.raises(OutcomeUnknown):
            client.post(CHAT, json={})
    assert pool.counts("p") == Counts(ready=4, unknown=1)
    purchase = add_purchase(pool, "q", endpoint=closed_port_url())
    add_signed(pool, purchase, 1, valid_before_s=int(time.time()) + 86_400)
    with Client(pool=pool, purchase="q") as client, pytest.raises(SellerUnreachable):
        client.post(CHAT, json={})
    assert pool.counts("q") == Counts(ready=1)


def test_a_pool_pays_nowhere_but_at_its_seller(shop: Shop, url: str, pool: Pool) -> None:
    stock(pool, "http://127.0.0.1:9")
    with Client(pool=pool, purchase="p") as client, pytest.raises(TermsNotAllowed):
        client.post(f"{url}{CHAT}", json={})
    assert shop.paid == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_client_with_a_signer_pays_within_its_policy_and_stops_at_its_total(
    shop: Shop, url: str, asynchronous: bool
) -> None:
    async def calls() -> None:
        async with AsyncClient(signer=SIGNER, policy=POLICY) as client:
            for _ in range(3):
                assert (await client.get(f"{url}/report")).status_code == 200
            with pytest.raises(BudgetExceeded):
                await client.get(f"{url}/report")

    if asynchronous:
        asyncio.run(calls())
    else:
        with Client(signer=SIGNER, policy=POLICY) as client:
            for _ in range(3):
                assert client.get(f"{url}/report").status_code == 200
            with pytest.raises(BudgetExceeded):
                client.get(f"{url}/report")
    assert len(shop.paid) == 3


def test_a_dearer_seller_gets_nothing(shop: Shop, url: str) -> None:
    shop.offers = [offer_of(1001)]
    with Client(signer=SIGNER, policy=POLICY) as client, pytest.raises(PriceAboveCap):
        client.get(f"{url}/report")
    assert shop.paid == []


def test_no_redirect_is_followed_with_or_without_a_payment(shop: Shop, url: str) -> None:
    with serving(Shop([offer_of()])) as elsewhere:
        shop.redirect_to = f"{elsewhere}/report"
        with Client(signer=SIGNER, policy=POLICY) as client:
            assert client.get(f"{url}/report").status_code == 307


def test_a_streamed_answer_comes_through(shop: Shop, url: str, pool: Pool) -> None:
    stock(pool, url)
    with Client(pool=pool, purchase="p") as client, client.stream("POST", CHAT, json={}) as answer:
        assert b"".join(answer.iter_bytes()).startswith(b"answer to")


def test_a_cancelled_call_leaves_its_payment_unknown(pool: Pool) -> None:
    arrived = threading.Event()

    async def call(url: str) -> None:
        stock(pool, url)
        async with AsyncClient(pool=pool, purchase="p") as client:
            task = asyncio.create_task(client.post(CHAT, json={}))
            assert await asyncio.to_thread(arrived.wait, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool.counts("p") == Counts(ready=4, unknown=1)

    async def never_answers(scope: Any, receive: Any, send: Any) -> None:
        arrived.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(never_answers) as url:
        asyncio.run(call(url))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"signer": SIGNER},
        {"policy": POLICY},
        {"signer": SIGNER, "policy": POLICY, "purchase": "p"},
        {"signer": SIGNER, "policy": POLICY, "follow_redirects": True},
        {"signer": SIGNER, "policy": POLICY, "trust_env": True},
        {"signer": SIGNER, "policy": POLICY, "mounts": {"all://": httpx.HTTPTransport()}},
    ],
)
def test_a_client_that_is_not_clearly_funded_or_could_be_led_away_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Client(**options)


def in_other_ways() -> list[Offer]:
    over_permit2 = replace(offer_of(), method=PERMIT2)
    return [over_permit2, replace(over_permit2, scheme="upto", extra={"facilitatorAddress": "0x" + "99" * 20})]


@pytest.mark.parametrize("offer", in_other_ways(), ids=["permit2", "upto"])
@pytest.mark.parametrize("funded_by", ["a signer", "a pool"])
def test_a_client_pays_in_the_way_the_seller_wants(
    shop: Shop, url: str, pool: Pool, offer: Offer, funded_by: str
) -> None:
    shop.offers = [offer]
    shop.charge_atomic = 400 if offer.scheme == "upto" else None
    if funded_by == "a pool":
        purchase = add_purchase(pool, endpoint=url, offer=offer)
        add_signed(pool, purchase, 2, valid_before_s=int(time.time()) + 86_400, key=KEY)
        client = Client(pool=pool, purchase="p")
    else:
        client = Client(signer=SIGNER, policy=replace(POLICY, schemes=(offer.scheme,)), base_url=url)
    with client:
        answer = client.post(CHAT, json={"model": "m"})
    assert answer.status_code == 200
    (paid,) = shop.paid
    assert paid.value_atomic == 1000
    assert answer.extensions["farebox"].receipt.amount == ("400" if offer.scheme == "upto" else None)
    if funded_by == "a pool":
        (receipt,) = pool.receipts()
        assert (receipt.price_atomic, receipt.charged_atomic) == (1000, shop.charge_atomic)


def test_a_receipt_above_the_ceiling_is_no_receipt(shop: Shop, url: str, pool: Pool) -> None:
    metered = in_other_ways()[1]
    shop.offers, shop.charge_atomic = [metered], 1001
    purchase = add_purchase(pool, endpoint=url, offer=metered)
    add_signed(pool, purchase, 1, valid_before_s=int(time.time()) + 86_400, key=KEY)
    with Client(pool=pool, purchase="p") as client:
        assert client.post(CHAT, json={"model": "m"}).extensions["farebox"].receipt is None
    (receipt,) = pool.receipts()
    assert (receipt.state, receipt.charged_atomic) == ("spent", None)


def test_a_client_is_not_charged_by_usage_unless_its_policy_says_so(shop: Shop, url: str) -> None:
    shop.offers = [in_other_ways()[1]]
    with Client(signer=SIGNER, policy=POLICY, base_url=url) as client, pytest.raises(TermsNotAllowed, match="by usage"):
        client.post(CHAT, json={"model": "m"})
    assert shop.paid == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_payment_goes_into_a_connection_that_its_seller_may_be_closing(
    shop: Shop, pool: Pool, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    connections: list[int] = []

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        connections.append(scope["client"][1])
        await shop(scope, receive, send)

    def idle() -> None:
        """Let a moment less than uvicorn's five seconds pass, for the connections of clients."""
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + UVICORN_KEEPALIVE_S - 0.5)
        monkeypatch.setattr(httpcore._sync.http11, "time", later)
        monkeypatch.setattr(httpcore._async.http11, "time", later)

    async def twice() -> None:
        async with AsyncClient(pool=pool, purchase="p") as client:
            await client.post(address + CHAT, content=b"{}")
            idle()
            await client.post(address + CHAT, content=b"{}")

    with serving(counted) as address:
        stock(pool, address)
        if asynchronous:
            asyncio.run(twice())
        else:
            with Client(pool=pool, purchase="p") as client:
                client.post(address + CHAT, content=b"{}")
                idle()
                client.post(address + CHAT, content=b"{}")
    assert len(set(connections)) == 2
    assert pool.counts("p").spent == 2

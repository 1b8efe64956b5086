"""The official SDK's httpx client buys from our middleware; the money moves on the local chain."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from openai import AsyncOpenAI
from x402.http.clients.httpx import PaymentError
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    decode_payment_signature_header,
    encode_payment_signature_header,
)
from x402.schemas import PaymentPayload, PaymentRequired

from contracts.evm.devnet import DevAccount, Devnet
from gateway.demo.model_server import model_server_app
from seller import PaymentMiddleware, SellerConfig
from seller.service import Seller
from tests.conformance.sdk_peers import PRICE_ATOMIC, facilitator_app, paying_client, serving
from tests.patience import PATIENCE_S

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "demo-model", "messages": [{"role": "user", "content": "hello"}]}


class Shop:
    """Our middleware in front of the model server stand-in, on a socket."""

    def __init__(self, chain: Devnet, config: SellerConfig) -> None:
        self.chain = chain
        self.pay_to = config.pay_to
        self.models = model_server_app(("demo-model",))
        self.app = PaymentMiddleware(self.models, seller=Seller(config, settles=True))
        self.url = ""

    @property
    def runs(self) -> int:
        """How often a handler ran."""
        runs: int = self.models.state.calls
        return runs

    @property
    def earned_atomic(self) -> int:
        """What the payee holds on chain; it began with nothing."""
        return self.chain.balance_of(self.pay_to)

    async def settled(self, earned_atomic: int) -> None:
        """Wait until the payee holds that much."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.earned_atomic != earned_atomic:
            assert time.monotonic() < deadline_s, f"earned {self.earned_atomic}, not {earned_atomic}"
            await asyncio.sleep(0.05)


OpenShop = Callable[..., Shop]


@pytest.fixture
async def open_shop(chain: Devnet, pay_to: str, tmp_path: Path) -> AsyncIterator[OpenShop]:
    """Return a function that opens a shop with the settings given; it closes with the test."""
    with ExitStack() as stack:
        yield shop_opener(chain, pay_to, tmp_path, stack.enter_context)


def shop_opener(
    chain: Devnet, pay_to: str, folder: Path, enter: Callable[[AbstractContextManager[str]], str]
) -> OpenShop:
    def open_it(**changed: Any) -> Shop:
        key_file = folder / "settler.key"
        key_file.write_text(chain.accounts[1].key.hex())
        key_file.chmod(0o600)
        given: dict[str, Any] = {
            "public_url": "https://shop.example",
            "network": chain.network,
            "rpc": [chain.rpc_url],
            "asset": {"address": chain.token, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"},
            "pay_to": pay_to,
            "settler": {"kind": "chain", "key_file": str(key_file)},
            "store": f"sqlite:///{folder}/seller.db",
            "routes": [
                {"match": f"POST {CHAT}", "price": "0.001", "models": {"demo-model": "0.001"}},
                {"match": "GET /paid", "price": "0.001"},
                {"match": "GET /v1/models", "free": True},
            ],
        } | changed
        shop = Shop(chain, SellerConfig.model_validate(given))
        shop.url = enter(serving(shop.app))
        return shop

    return open_it


@pytest.mark.parametrize("settle", ["before", "after", "auto", "async"])
async def test_a_call_is_served_once_and_paid_once(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop, settle: str
) -> None:
    shop = open_shop(settle=settle)
    async with paying_client(chain, payer) as client:
        answer = await client.get(f"{shop.url}/paid")

    assert answer.status_code == 200, answer.text
    receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    assert (receipt.success, receipt.network, receipt.payer) == (True, chain.network, payer.address)
    if settle in ("before", "after"):
        assert chain.rpc("eth_getTransactionReceipt", receipt.transaction)["status"] == "0x1"
    await shop.settled(PRICE_ATOMIC)
    assert chain.balance_of(payer.address) == 1_000_000 - PRICE_ATOMIC
    assert shop.runs == 1


@pytest.mark.parametrize("settle", ["before", "after", "auto", "async"])
async def test_a_body_and_a_stream_pass_unchanged(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop, settle: str
) -> None:
    shop = open_shop(settle=settle)
    async with paying_client(chain, payer) as client:
        whole = await client.post(shop.url + CHAT, json=ASKED)
        async with client.stream("POST", shop.url + CHAT, json={**ASKED, "stream": True}) as response:
            lines = [line async for line in response.aiter_lines() if line]

    assert (whole.status_code, response.status_code) == (200, 200)
    text = whole.json()["choices"][0]["message"]["content"]
    frames = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames if frame["choices"]) == text
    assert lines[-1] == "data: [DONE]"
    await shop.settled(2 * PRICE_ATOMIC)


async def test_the_official_openai_client_pays_through_the_sdks_transport(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop
) -> None:
    shop = open_shop()
    async with (
        paying_client(chain, payer) as http,
        # The client is typed for a fork of httpx and takes both.
        AsyncOpenAI(base_url=f"{shop.url}/v1", api_key="none", http_client=cast("Any", http), max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == ["demo-model"]
        for _ in range(3):
            answer = await client.chat.completions.create(model="demo-model", messages=ASKED["messages"])
            assert answer.choices[0].message.content
    await shop.settled(3 * PRICE_ATOMIC)
    assert shop.runs == 3


async def test_one_payment_shown_many_times_at_once_is_served_once(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop
) -> None:
    shop = open_shop(settle="before")
    header = await signed_by_the_sdk(chain, payer, shop)
    async with httpx.AsyncClient(trust_env=False, timeout=60) as plain:
        answers = await asyncio.gather(
            *(plain.get(f"{shop.url}/paid", headers={"PAYMENT-SIGNATURE": header}) for _ in range(10))
        )
    assert sorted(answer.status_code for answer in answers).count(200) == 1
    assert {answer.status_code for answer in answers} <= {200, 402, 409}
    await shop.settled(PRICE_ATOMIC)
    assert shop.runs == 1


async def test_a_payment_that_the_sdk_made_for_less_is_refused_with_the_right_offer(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop
) -> None:
    shop = open_shop()

    def haggle(payload: dict[str, Any]) -> None:
        payload["accepted"]["amount"] = "1"

    header = await signed_by_the_sdk(chain, payer, shop, haggle)
    async with httpx.AsyncClient(trust_env=False) as plain:
        answer = await plain.get(f"{shop.url}/paid", headers={"PAYMENT-SIGNATURE": header})
    assert answer.status_code == 402
    offered = decode_payment_required_header(answer.headers["PAYMENT-REQUIRED"])
    assert isinstance(offered, PaymentRequired)
    assert offered.error == "invalid_payment_requirements"
    assert [offer.amount for offer in offered.accepts] == [str(PRICE_ATOMIC)]
    assert shop.runs == 0


async def test_the_sdks_own_cap_keeps_it_from_paying_our_price(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop
) -> None:
    shop = open_shop()
    async with paying_client(chain, payer, cap_atomic=PRICE_ATOMIC - 1) as client:
        with pytest.raises(PaymentError):
            await client.get(f"{shop.url}/paid")
    assert (shop.runs, shop.earned_atomic) == (0, 0)


async def test_an_empty_purse_is_refused_and_nothing_runs(chain: Devnet, open_shop: OpenShop) -> None:
    shop = open_shop()
    async with paying_client(chain, chain.accounts[7]) as client:
        answer = await client.get(f"{shop.url}/paid")
    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "insufficient_funds"
    assert (shop.runs, shop.earned_atomic) == (0, 0)


async def test_a_call_that_fails_upstream_is_not_charged(chain: Devnet, payer: DevAccount, open_shop: OpenShop) -> None:
    shop = open_shop(settle="async")
    async with paying_client(chain, payer) as client:
        failed = await client.post(shop.url + CHAT, json=ASKED, headers={"x-test-status": "503"})
        served = await client.post(shop.url + CHAT, json=ASKED)
    assert (failed.status_code, served.status_code) == (503, 200)
    assert "PAYMENT-RESPONSE" not in failed.headers
    await shop.settled(PRICE_ATOMIC)


async def test_our_middleware_settles_through_the_sdks_facilitator(
    chain: Devnet, payer: DevAccount, open_shop: OpenShop
) -> None:
    facilitating = facilitator_app(chain, chain.accounts[2])
    with serving(facilitating) as facilitator_url:
        shop = open_shop(settle="before", settler={"kind": "facilitator", "url": facilitator_url})
        async with paying_client(chain, payer) as client:
            answer = await client.get(f"{shop.url}/paid")
        assert answer.status_code == 200, answer.text
        receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    assert [settled.transaction for settled in facilitating.state.settled] == [receipt.transaction]
    assert shop.earned_atomic == PRICE_ATOMIC


async def test_a_v1_client_that_reads_only_the_body_pays_with_x_payment(tmp_path: Path, pay_to: str) -> None:
    with Devnet(chain_id=84532) as chain, ExitStack() as stack:
        chain.mint(chain.accounts[0].address, PRICE_ATOMIC)
        shop = shop_opener(chain, pay_to, tmp_path, stack.enter_context)(settle="before")
        async with paying_client(chain, chain.accounts[0], v1_name="base-sepolia") as client:
            answer = await client.get(f"{shop.url}/paid")
        assert answer.status_code == 200, answer.text
        receipt = decode_payment_response_header(answer.headers["X-PAYMENT-RESPONSE"])
        assert receipt.success
        assert shop.earned_atomic == PRICE_ATOMIC


async def signed_by_the_sdk(
    chain: Devnet, payer: DevAccount, shop: Shop, change: Callable[[dict[str, Any]], None] = lambda payload: None
) -> str:
    """Return the header the SDK's client would send for our 402, after `change`."""
    sent: list[httpx.Request] = []

    class Recorder(httpx.AsyncBaseTransport):
        """Passes unpaid requests on and keeps the paid one."""

        def __init__(self) -> None:
            self._inner = httpx.AsyncHTTPTransport(trust_env=False)

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(request)
            if "payment-signature" in request.headers:
                return httpx.Response(204)
            return await self._inner.handle_async_request(request)

        async def aclose(self) -> None:
            await self._inner.aclose()

    async with paying_client(chain, payer, transport=Recorder()) as client:
        await client.get(f"{shop.url}/paid")
    payment = decode_payment_signature_header(sent[-1].headers["payment-signature"])
    document = payment.model_dump(by_alias=True, exclude_none=True)
    change(document)
    return encode_payment_signature_header(PaymentPayload.model_validate(document))

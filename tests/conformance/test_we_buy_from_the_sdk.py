"""Our client buys from the official SDK's FastAPI middleware, settled by its own facilitator on the local chain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from fastapi import FastAPI

from buyer import AsyncClient, Client, SpendPolicy, open_signer
from buyer.signers import Signer
from contracts.errors import OutcomeUnknown, PaymentRefused, PriceAboveCap, TermsNotAllowed
from contracts.evm.devnet import DevAccount, Devnet
from tests.conformance.sdk_peers import PRICE_ATOMIC, facilitator_app, seller_app, serving

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "sdk-model", "messages": [{"role": "user", "content": "hello"}]}
FUNDS_ATOMIC = 1_000_000
POLICY = SpendPolicy(max_price="0.001")


class SdkShop:
    """The SDK's seller and its facilitator, running."""

    def __init__(self, chain: Devnet, pay_to: str, payer: DevAccount, app: FastAPI, url: str) -> None:
        self.app, self.url = app, url
        self._chain, self._pay_to, self._payer = chain, pay_to, payer

    @property
    def runs(self) -> int:
        """How often a handler ran."""
        runs: int = self.app.state.runs
        return runs

    @property
    def earned_atomic(self) -> int:
        """What the seller holds on chain, which is what the payer has lost."""
        earned_atomic = self._chain.balance_of(self._pay_to)
        assert self._chain.balance_of(self._payer.address) == FUNDS_ATOMIC - earned_atomic
        return earned_atomic


@pytest.fixture
def shop(chain: Devnet, pay_to: str, payer: DevAccount) -> Iterator[SdkShop]:
    with serving(facilitator_app(chain, chain.accounts[1])) as facilitator_url:
        app = seller_app(chain, pay_to, facilitator_url)
        with serving(app) as url:
            yield SdkShop(chain, pay_to, payer, app, url)


@pytest.fixture
def signer(payer: DevAccount, tmp_path: Path) -> Signer:
    key_file = tmp_path / "wallet.key"
    key_file.write_text(payer.key.hex())
    key_file.chmod(0o600)
    return open_signer(f"keyfile:{key_file}")


async def test_a_call_is_served_once_and_its_receipt_is_on_the_chain(
    chain: Devnet, shop: SdkShop, signer: Signer
) -> None:
    async with AsyncClient(signer=signer, policy=POLICY) as client:
        answer = await client.get(f"{shop.url}/paid")

    assert (answer.status_code, answer.json()) == (200, {"paid": True})
    outcome = answer.extensions["farebox"]
    assert outcome.kind == "served"
    assert outcome.receipt.success
    assert chain.rpc("eth_getTransactionReceipt", outcome.receipt.transaction)["status"] == "0x1"
    assert (shop.runs, shop.earned_atomic) == (1, PRICE_ATOMIC)


def test_the_synchronous_client_pays_too(shop: SdkShop, signer: Signer) -> None:
    with Client(signer=signer, policy=POLICY) as client:
        answer = client.post(shop.url + CHAT, json=ASKED)
    assert answer.json()["choices"][0]["message"]["content"] == "Paid through the SDK."
    assert (shop.runs, shop.earned_atomic) == (1, PRICE_ATOMIC)


def test_the_official_openai_client_pays_through_ours(shop: SdkShop, signer: Signer) -> None:
    # The client is typed for a fork of httpx and takes both.
    http = cast("Any", Client(signer=signer, policy=POLICY))
    with openai.OpenAI(base_url=f"{shop.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["sdk-model"]
        whole = client.chat.completions.create(model="sdk-model", messages=ASKED["messages"])
        chunks = client.chat.completions.create(model="sdk-model", messages=ASKED["messages"], stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].message.content == streamed.strip() == "Paid through the SDK."
    assert (shop.runs, shop.earned_atomic) == (2, 2 * PRICE_ATOMIC)


async def test_calls_at_once_are_each_paid_once(shop: SdkShop, signer: Signer) -> None:
    async with AsyncClient(signer=signer, policy=POLICY) as client:
        answers = await asyncio.gather(*(client.get(f"{shop.url}/paid?call={call}") for call in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert (shop.runs, shop.earned_atomic) == (8, 8 * PRICE_ATOMIC)


async def test_what_is_free_is_not_paid(shop: SdkShop, signer: Signer) -> None:
    async with AsyncClient(signer=signer, policy=POLICY) as client:
        answer = await client.get(f"{shop.url}/v1/models")
    assert answer.extensions["farebox"].kind == "free"
    assert shop.earned_atomic == 0


@pytest.mark.parametrize(
    ("policy", "refusal"),
    [
        (SpendPolicy(max_price="0.000999"), PriceAboveCap),
        (SpendPolicy(max_price="0.001", allowed_assets=["0x" + "11" * 20]), TermsNotAllowed),
        (SpendPolicy(max_price="0.001", allowed_networks=["base"]), TermsNotAllowed),
        (SpendPolicy(max_price="0.001", allowed_hosts=["seller.example"]), TermsNotAllowed),
    ],
)
async def test_an_offer_outside_the_policy_is_not_paid(
    shop: SdkShop, signer: Signer, policy: SpendPolicy, refusal: type[Exception]
) -> None:
    async with AsyncClient(signer=signer, policy=policy) as client:
        with pytest.raises(refusal):
            await client.get(f"{shop.url}/paid")
    assert (shop.runs, shop.earned_atomic) == (0, 0)


async def test_a_lost_answer_is_not_paid_for_twice(shop: SdkShop, signer: Signer) -> None:
    class LosesTheFirstPaidAnswer(httpx.AsyncBaseTransport):
        """Lets the paid request be served and settled, and drops the answer on the way back."""

        def __init__(self) -> None:
            self._inner = httpx.AsyncHTTPTransport()
            self.presented: list[str] = []

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await self._inner.handle_async_request(request)
            if "payment-signature" in request.headers:
                self.presented.append(request.headers["payment-signature"])
                if len(self.presented) == 1:
                    await response.aread()
                    await response.aclose()
                    raise httpx.ReadError("the answer was lost")
            return response

        async def aclose(self) -> None:
            await self._inner.aclose()

    transport = LosesTheFirstPaidAnswer()
    async with AsyncClient(signer=signer, policy=POLICY, transport=transport) as client:
        with pytest.raises(OutcomeUnknown):
            await client.get(f"{shop.url}/paid")
        # The SDK's server knows no repetition: it says that the payment is used, which is no reason to make another.
        with pytest.raises(PaymentRefused, match="nonce_already_used"):
            await client.get(f"{shop.url}/paid")
    assert len(transport.presented) == 2
    assert len(set(transport.presented)) == 1
    assert (shop.runs, shop.earned_atomic) == (1, PRICE_ATOMIC)


async def test_a_seller_whose_facilitator_is_down_is_not_paid_and_not_paid_again(
    chain: Devnet, pay_to: str, signer: Signer
) -> None:
    with serving(facilitator_app(chain, chain.accounts[1])) as facilitator_url:
        app = seller_app(chain, pay_to, facilitator_url)
    with serving(app) as url:
        async with AsyncClient(signer=signer, policy=SpendPolicy(max_price="0.001", max_total="0.001")) as client:
            # The SDK answers its own failure with 402; a buyer that believed it would sign until its purse is empty.
            for _ in range(3):
                with pytest.raises(PaymentRefused):
                    await client.get(f"{url}/paid")
    assert (app.state.runs, chain.balance_of(pay_to)) == (0, 0)

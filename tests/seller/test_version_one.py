"""Clients of x402 version 1, on a chain that version 1 has a name for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from contracts.headers import decode_settlement_response
from tests.paying import authorize, encode, payment_document, sign_payment_v1
from tests.seller.shop import BODY, BUYER, CHAT, PRICE_ATOMIC, Shop, is_replayed, open_shop

BASE_SEPOLIA = 84532


@pytest.fixture(scope="module")
def named_chain() -> Iterator[Devnet]:
    with Devnet(chain_id=BASE_SEPOLIA) as running:
        yield running


@pytest.fixture
async def shop(named_chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    before = named_chain.snapshot()
    async with open_shop(named_chain, tmp_path, settle="before") as opened:
        yield opened
    named_chain.revert(before)


async def test_a_version_one_payment_is_served_and_answered_in_version_one(shop: Shop) -> None:
    offer = shop.seller.book.routes[0].quote_for(None).offer
    unpaid = (await shop.client.post(CHAT, content=BODY)).json()
    assert unpaid["x402Version"] == 1
    assert unpaid["accepts"][0]["network"] == "base-sepolia"
    header = sign_payment_v1(shop.chain.accounts[BUYER].key, offer)
    answer = await shop.client.post(CHAT, content=BODY, headers={"X-PAYMENT": header})
    assert answer.status_code == 200
    assert "payment-response" not in answer.headers
    receipt = decode_settlement_response(answer.headers["X-PAYMENT-RESPONSE"])
    assert receipt.success
    assert receipt.network == "base-sepolia"
    assert shop.earned == PRICE_ATOMIC


async def test_one_authorization_in_both_versions_is_one_payment(shop: Shop) -> None:
    offer = shop.seller.book.routes[0].quote_for(None).offer
    key, nonce = shop.chain.accounts[BUYER].key, bytes([9]) * 32
    authorization, signature = authorize(key, offer, nonce=nonce)
    both = {
        "PAYMENT-SIGNATURE": encode(payment_document(authorization, signature, offer)),
        "X-PAYMENT": sign_payment_v1(key, offer, nonce=nonce, valid_before_s=authorization.valid_before_s),
    }
    assert (await shop.client.post(CHAT, content=BODY, headers=both)).status_code == 200
    again = await shop.client.post(CHAT, content=BODY, headers={"X-PAYMENT": both["X-PAYMENT"]})
    assert is_replayed(again)
    assert again.headers["X-PAYMENT-RESPONSE"]
    assert shop.earned == PRICE_ATOMIC


async def test_every_spelling_of_one_authorization_is_one_payment(shop: Shop) -> None:
    offer = shop.seller.book.routes[0].quote_for(None).offer
    authorization, signature = authorize(shop.chain.accounts[BUYER].key, offer)
    for spelling in range(4):
        document = payment_document(authorization, signature, offer)
        stated = document["payload"]["authorization"]
        if spelling == 1:
            stated["nonce"] = "0x" + stated["nonce"][2:].upper()
        if spelling == 2:
            stated["from"] = stated["from"].lower()
            document["payload"]["signature"] = "0x" + (signature[:64] + bytes([signature[64] - 27])).hex()
        if spelling == 3:
            document["extra member"] = {"a": 1}
            document["accepted"]["asset"] = document["accepted"]["asset"].lower()
        answer = await shop.client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": encode(document)})
        assert answer.status_code == 200
        assert is_replayed(answer) == (spelling > 0)
    assert shop.app.runs == 1
    assert shop.earned == PRICE_ATOMIC

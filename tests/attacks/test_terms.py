"""Paying for one thing and asking for another; bringing terms of one's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.networks import Network
from contracts.offers import PERMIT2, Offer
from tests.attacks.parts import attacked
from tests.paying import authorize, encode, payment_document, sign_payment
from tests.seller.shop import BODY, BUYER, CHAT, OTHER, SELLER, Shop, error_of

MESSAGES = "/v1/messages"
DEAR = b'{"model":"big-model","messages":[]}'


async def ask(shop: Shop, path: str, header: str, body: bytes = BODY) -> httpx.Response:
    return await shop.client.post(path, content=body, headers={"PAYMENT-SIGNATURE": header})


@pytest.mark.parametrize("settle", ["auto", "before", "after", "async"])
async def test_a_payment_buys_one_of_two_equally_priced_things(chain: Devnet, tmp_path: Path, settle: str) -> None:
    """S3: after one another and at once."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, _):
        header = shop.payment()
        assert (await ask(shop, CHAT, header)).status_code == 200
        refused = await ask(shop, MESSAGES, header)
        assert (refused.status_code, error_of(refused)["code"]) == (402, "payment_replayed")
        header = shop.payment()
        await asyncio.gather(*(ask(shop, path, header) for path in (CHAT, MESSAGES) * 16))
        assert shop.app.runs == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"url": CHAT + "?a=1"},
        {"content": BODY.replace(b"hi", b"ho")},
        {"content": BODY + b" "},
        {"url": MESSAGES},
    ],
)
async def test_a_payment_is_bound_to_path_query_and_body(
    chain: Devnet, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """S3."""
    async with attacked(chain, tmp_path) as (shop, _):
        header = shop.payment()
        assert (await ask(shop, CHAT, header)).status_code == 200
        given = {"url": CHAT, "content": BODY} | changed
        answer = await shop.client.post(**given, headers={"PAYMENT-SIGNATURE": header})
        assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_replayed")
        assert shop.app.runs == 1


async def test_a_cheap_payment_buys_nothing_dear_by_body_path_or_form(chain: Devnet, tmp_path: Path) -> None:
    """S3."""
    async with attacked(chain, tmp_path) as (shop, _):
        header = shop.payment()
        dear = [
            await ask(shop, CHAT, header, DEAR),
            await ask(shop, CHAT, header, b'{"model":"big\\u002dmodel"}'),
            await shop.client.get("/paid", headers={"PAYMENT-SIGNATURE": header}),
        ]
        assert {error_of(answer)["code"] for answer in dear} == {"no_matching_offer"}
        assert shop.app.runs == 0
        assert (await ask(shop, CHAT, header)).status_code == 200


FORGED: dict[str, Any] = {
    "price": lambda offer, chain: replace(offer, amount_atomic=1),
    "no price": lambda offer, chain: replace(offer, amount_atomic=0),
    "payee": lambda offer, chain: replace(offer, pay_to=parse_address(chain.accounts[OTHER].address)),
    "payer as payee": lambda offer, chain: replace(offer, pay_to=parse_address(chain.accounts[BUYER].address)),
    "token": lambda offer, chain: replace(
        offer, asset=replace(offer.asset, address=parse_address(chain.accounts[SELLER].address))
    ),
    "network": lambda offer, chain: replace(offer, network=Network(1)),
    "token name": lambda offer, chain: replace(offer, asset=replace(offer.asset, name="Play Dollar")),
    "token version": lambda offer, chain: replace(offer, asset=replace(offer.asset, version="9")),
    "scheme": lambda offer, chain: replace(
        offer, scheme="upto", method=PERMIT2, extra={"facilitatorAddress": chain.accounts[OTHER].address}
    ),
    "method": lambda offer, chain: replace(offer, method=PERMIT2),
}


# What the signature does not name can only be forged in the echo; a payload of another rail is not even read (400).
UNREADABLE = {("scheme", "ours"), ("method", "ours")}


@pytest.mark.parametrize(
    ("what", "echo"),
    [(what, echo) for what in FORGED for echo in ("ours", "forged") if (what, echo) not in UNREADABLE],
)
async def test_terms_a_client_brings_are_not_believed(chain: Devnet, tmp_path: Path, what: str, echo: str) -> None:
    """S4, F1: signed over the client's own terms, with our terms or its own in the echo."""
    async with attacked(chain, tmp_path) as (shop, _):
        ours: Offer = shop.seller.book.routes[0].quote_for(None).offer
        forged: Offer = FORGED[what](ours, chain)
        authorization, signature = authorize(chain.accounts[BUYER].key, forged)
        document = payment_document(authorization, signature, ours if echo == "ours" else forged)
        answer = await ask(shop, CHAT, encode(document))
        assert answer.status_code == 402
        assert error_of(answer)["code"] in (
            "no_matching_offer",
            "invalid_signature",
            "amount_mismatch",
            "recipient_mismatch",
        )
        assert shop.app.runs == 0


async def test_the_echo_may_say_what_it_likes_where_nothing_depends_on_it(chain: Devnet, tmp_path: Path) -> None:
    """S4: resource and extensions of a payment change neither price nor binding."""
    async with attacked(chain, tmp_path) as (shop, _):
        offer = shop.seller.book.routes[0].quote_for(None).offer
        document = payment_document(*authorize(chain.accounts[BUYER].key, offer), offer)
        document |= {"resource": {"url": "http://cheap.example/"}, "extensions": {"free": {"info": True}}}
        assert (await ask(shop, CHAT, encode(document))).status_code == 200
        assert (await ask(shop, CHAT, sign_payment(chain.accounts[BUYER].key, offer))).status_code == 200
        assert shop.app.runs == 2

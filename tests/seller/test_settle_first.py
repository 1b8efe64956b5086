"""A payment that is settled before its goods leave: `before`, and `auto` for a payer that is new here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contracts.evm.devnet import Devnet
from tests.seller.shop import (
    BODY,
    BUYER,
    OTHER,
    PRICE_ATOMIC,
    Shop,
    error_of,
    is_replayed,
    open_shop,
    receipt_of,
    served_once,
)


@pytest.fixture(params=["before", "auto", "after"])
async def shop(request: pytest.FixtureRequest, chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle=request.param) as opened:
        yield opened


async def test_a_paid_call_is_served_and_the_money_is_on_chain_when_the_answer_arrives(shop: Shop) -> None:
    answer = await shop.buy()
    assert answer.status_code == 200
    assert answer.json() == {"ok": True}
    assert shop.earned == PRICE_ATOMIC
    receipt = receipt_of(answer)
    assert receipt.success
    assert receipt.network == shop.chain.network
    transaction = shop.chain.rpc("eth_getTransactionReceipt", receipt.transaction)
    assert transaction["status"] == "0x1"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["vary"] == "PAYMENT-SIGNATURE, X-PAYMENT"


async def test_sixty_four_equal_payments_at_once_run_the_handler_once_and_settle_once(shop: Shop) -> None:
    header = shop.payment()
    answers = await asyncio.gather(*(shop.buy(header) for _ in range(64)))
    assert served_once(answers)
    assert shop.app.runs == 1
    assert shop.earned == PRICE_ATOMIC
    refusals = {error_of(answer)["code"] for answer in answers if answer.status_code == 409}
    assert refusals <= {"request_in_progress", "payment_replayed"}


async def test_a_payment_that_was_used_buys_its_answer_again_and_nothing_more(shop: Shop) -> None:
    header = shop.payment()
    assert (await shop.buy(header)).status_code == 200
    same = await shop.buy(header)
    other = await shop.buy(header, body=BODY.replace(b"hi", b"ho"))
    assert (same.status_code, same.content, is_replayed(same)) == (200, b'{"ok":true}', True)
    assert (other.status_code, error_of(other)["code"]) == (402, "payment_replayed")
    assert "payment-required" in other.headers
    assert shop.app.runs == 1


async def test_a_payer_without_money_gets_402_and_nothing_runs(shop: Shop) -> None:
    answer = await shop.buy(shop.payment(OTHER))
    assert (answer.status_code, error_of(answer)["code"]) == (402, "insufficient_funds")
    assert shop.app.runs == 0
    assert shop.seller.ledger.sums().outstanding_atomic == 0


async def test_the_same_payment_may_come_again_after_the_payer_was_funded(shop: Shop) -> None:
    header = shop.payment(OTHER)
    assert (await shop.buy(header)).status_code == 402
    shop.chain.mint(shop.chain.accounts[OTHER].address, PRICE_ATOMIC)
    assert (await shop.buy(header)).status_code == 200
    assert shop.earned == PRICE_ATOMIC


async def test_an_authorization_that_was_used_elsewhere_before_is_refused(shop: Shop) -> None:
    from contracts.evm.token import call_object
    from contracts.schemes.exact_eip3009 import transfer_call
    from tests.paying import authorize, encode, payment_document

    offer = shop.seller.book.routes[0].quote_for(None).offer
    authorization, signature = authorize(shop.chain.accounts[BUYER].key, offer)
    sender = shop.chain.accounts[OTHER].address
    shop.chain.rpc(
        "eth_sendTransaction",
        {"from": sender} | call_object(offer.asset.address, transfer_call(authorization, signature)),
    )
    shop.chain.mine()
    answer = await shop.buy(encode(payment_document(authorization, signature, offer)))
    assert (answer.status_code, error_of(answer)["code"]) == (402, "payment_replayed")
    assert shop.app.runs == 0


async def test_a_token_that_stops_refuses_the_call_and_nothing_leaves(shop: Shop) -> None:
    shop.chain.set_paused(True)
    answer = await shop.buy()
    # Settled before anything else, its settlement is what fails; else it is tried first, and the reason known.
    assert (answer.status_code, error_of(answer)["code"]) in ((402, "token_paused"), (402, "settlement_failed"))
    assert shop.app.body not in answer.content
    assert shop.app.runs == 0


async def test_the_handler_never_sees_the_payment(shop: Shop) -> None:
    await shop.buy()
    assert b"payment-signature" not in shop.app.seen[0]["headers"]
    assert shop.app.seen[0]["body"] == BODY


async def test_an_upstream_receipt_does_not_reach_the_client(shop: Shop) -> None:
    shop.app.headers = [
        (b"payment-response", b"forged"),
        (b"X-Farebox-Charged", b"false"),
        (b"Cache-Control", b"public"),
    ]
    answer = await shop.buy()
    assert receipt_of(answer).success
    assert "x-farebox-charged" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


async def test_a_contract_wallet_is_refused(shop: Shop) -> None:
    shop.chain.rpc("anvil_setCode", shop.chain.accounts[BUYER].address, "0x60006000")
    try:
        answer = await shop.buy()
    finally:
        shop.chain.rpc("anvil_setCode", shop.chain.accounts[BUYER].address, "0x")
    assert (answer.status_code, error_of(answer)["code"]) == (402, "contract_payer")
    assert shop.app.runs == 0


def failing(status: int) -> Any:
    async def behave(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain"), (b"retry-after", b"7")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"busy"})

    return behave

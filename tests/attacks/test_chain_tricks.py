"""Tricks on the chain between check and settlement: revoked, emptied, submitted by others, burnt for other payees."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.evm.preinstalls import MULTICALL3
from contracts.headers import decode_payment
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization, Call
from contracts.schemes.exact_eip3009 import cancel_call, cancel_digest, decode_payload, transfer_call
from contracts.signature import SigningKey
from seller.settlement.multicall import aggregate_call
from tests.attacks.parts import attacked, payments_on_chain
from tests.buyer.parts import call_token
from tests.patience import PATIENCE_S
from tests.paying import authorize, encode, payment_document
from tests.seller.shop import BUYER, OTHER, PRICE_ATOMIC, SELLER, Shop, error_of


def offer_of(shop: Shop) -> Offer:
    return shop.seller.book.routes[0].quote_for(None).offer


def signed_in(header: str) -> tuple[Authorization, bytes]:
    return decode_payload(decode_payment("PAYMENT-SIGNATURE", header).payload)


def revoke(chain: Devnet, shop: Shop, header: str) -> None:
    """Let the payer revoke an authorization on chain."""
    authorization, _ = signed_in(header)
    signer = SigningKey(chain.accounts[BUYER].key)
    signature = signer.sign(cancel_digest(authorization.payer, authorization.nonce, offer_of(shop).domain))
    call_token(chain, chain.token, cancel_call(authorization.payer, authorization.nonce, signature))


def empty_wallet(chain: Devnet, shop: Shop) -> None:
    """Let the payer move all it has to another account of its own."""
    everything = chain.balance_of(chain.accounts[BUYER].address)
    away = parse_address(chain.accounts[OTHER].address)
    moved = authorize(chain.accounts[BUYER].key, offer_of(shop), value_atomic=everything, payee=away)
    call_token(chain, chain.token, transfer_call(*moved))


class Thinking:
    """An application that answers when it is told to, and says when it has begun."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


# `async` asks for the balance alone: what a revoked payment can take there is bounded by the caps, see below.
@pytest.mark.parametrize(
    ("settle", "trick"),
    [
        *((settle, trick) for settle in ("auto", "before", "after") for trick in ("revoked", "emptied")),
        ("async", "emptied"),
    ],
)
async def test_money_taken_away_before_the_request_buys_nothing(
    chain: Devnet, tmp_path: Path, settle: str, trick: str
) -> None:
    """S5: the payment was good when it was signed."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, _):
        header = shop.payment()
        if trick == "revoked":
            revoke(chain, shop, header)
        else:
            empty_wallet(chain, shop)
        assert (await shop.buy(header)).status_code == 402
        assert shop.app.runs == 0


@pytest.mark.parametrize("settle", ["auto", "after"])
@pytest.mark.parametrize("trick", ["revoked", "emptied", "paused"])
async def test_money_taken_away_while_the_model_computes_yields_no_goods(
    chain: Devnet, tmp_path: Path, settle: str, trick: str
) -> None:
    """S5, ADR 0002: the model has computed for nothing, and nothing of it leaves."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, till):
        thinking = shop.app.behave = Thinking(shop.app.body)
        header = shop.payment()
        call = asyncio.ensure_future(shop.buy(header))
        await thinking.begun.wait()
        if trick == "revoked":
            await asyncio.to_thread(revoke, chain, shop, header)
        elif trick == "emptied":
            await asyncio.to_thread(empty_wallet, chain, shop)
        else:
            await asyncio.to_thread(chain.set_blocked, chain.accounts[BUYER].address, True)
        thinking.go_on.set()
        answer = await call
        assert answer.status_code in (402, 503)
        assert shop.app.body not in answer.content
        # This work is the price of not taking money for a model that fails: bounded by the payer's own gas or block.
        till.expect(withdrawn_runs=1)


async def test_on_credit_a_payer_can_take_no_more_than_its_cap(chain: Devnet, tmp_path: Path) -> None:
    """S5: a known payer who revokes everything after it was served gets away with `per_payer`, and is known for it."""
    async with attacked(chain, tmp_path, exposure={"per_payer": "0.003", "total": "1"}) as (shop, till):
        await shop.trust()
        shop.seller.counter.announce()
        answers = []
        for _ in range(6):
            header = shop.payment()
            await asyncio.to_thread(revoke, chain, shop, header)
            answers.append((await shop.buy(header)).status_code)
        await shop.settled()
        lost = shop.seller.ledger.sums().lost_atomic
        assert 0 < lost <= 3 * PRICE_ATOMIC
        assert answers.count(200) == lost // PRICE_ATOMIC
        till.expect(unpaid_credit=lost // PRICE_ATOMIC)


@pytest.mark.parametrize("settle", ["auto", "before", "after", "async"])
async def test_somebody_else_submits_the_payment_first_and_the_goods_leave_once(
    chain: Devnet, tmp_path: Path, settle: str
) -> None:
    """S6: our own transaction fails, and the chain still shows the money; the client gets its goods."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, _):
        thinking = shop.app.behave = Thinking(shop.app.body)
        if settle == "before":
            thinking.go_on.set()
        header = shop.payment()
        call = asyncio.ensure_future(shop.buy(header))
        if settle != "before":
            await thinking.begun.wait()
        with contextlib.suppress(AssertionError):
            await asyncio.to_thread(call_token, chain, chain.token, transfer_call(*signed_in(header)))
        thinking.go_on.set()
        assert (await call).status_code == 200
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC
        await shop.buy(header)
        assert shop.app.runs == 1


async def test_a_payment_settled_before_it_was_presented_is_no_payment_for_this_request(
    chain: Devnet, tmp_path: Path
) -> None:
    """S6: what somebody can read on the chain is not a payment any more."""
    async with attacked(chain, tmp_path) as (shop, till):
        header = shop.payment()
        call_token(chain, chain.token, transfer_call(*signed_in(header)))
        chain.mine()
        answer = await shop.buy(header)
        assert answer.status_code == 402
        assert shop.app.runs == 0
        till.expect_gift(signed_in(header)[0])


async def test_one_transfer_in_a_batch_pays_for_one_authorization(chain: Devnet, tmp_path: Path) -> None:
    """S6, S10: the payer burns the nonce of a second payment in the same transaction that pays the first."""
    async with attacked(chain, tmp_path, settle="after") as (shop, till):
        offer = offer_of(shop)
        thinking = shop.app.behave = Thinking(shop.app.body)
        key = chain.accounts[BUYER].key
        honest, burnt = shop.payment(), shop.payment()
        elsewhere = parse_address(chain.accounts[OTHER].address)
        # The same nonce, signed for another payee: the chain will show it used.
        other_use = authorize(key, offer, nonce=signed_in(burnt)[0].nonce, payee=elsewhere)
        calls = [asyncio.ensure_future(shop.buy(header)) for header in (honest, burnt)]
        async with asyncio.timeout(PATIENCE_S):
            while shop.app.runs < 2:  # noqa: ASYNC110 - the application is started by two requests
                await asyncio.sleep(0.01)
        transfers = [transfer_call(*other_use), transfer_call(*signed_in(honest))]
        batch = aggregate_call([Call(parse_address(chain.token), transfer) for transfer in transfers])
        await asyncio.to_thread(chain.send, chain.accounts[9].address, "0x" + MULTICALL3.hex(), batch)
        thinking.go_on.set()
        statuses = [answer.status_code for answer in await asyncio.gather(*calls)]
        assert statuses == [200, 402]
        assert shop.earned == PRICE_ATOMIC
        assert len(payments_on_chain(chain, chain.accounts[SELLER].address)) == 1
        till.expect(withdrawn_runs=1)


async def test_worthless_payments_cost_no_gas(chain: Devnet, tmp_path: Path) -> None:
    """S11: what the chain would refuse is simulated and never sent; no factory is called for anybody."""
    async with attacked(chain, tmp_path) as (shop, _):
        await shop.trust()
        gas_account = chain.accounts[2].address
        before = chain.rpc("eth_getTransactionCount", gas_account, "latest")
        for _ in range(5):
            header = shop.payment()
            revoke(chain, shop, header)
            empty = shop.payment(OTHER)
            await shop.buy(empty)
        for _ in range(5):
            offer = offer_of(shop)
            wrapped = payment_document(
                (pair := authorize(chain.accounts[BUYER].key, offer))[0],
                bytes(64) + pair[1] + bytes(31) + b"\x64\x92" * 16,
                offer,
            )
            answer = await shop.buy(encode(wrapped))
            assert error_of(answer)["code"] == "invalid_signature"
        assert chain.rpc("eth_getTransactionCount", gas_account, "latest") == before

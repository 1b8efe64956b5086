"""Many at once: one payment for many answers, one balance for many payments, a flood against everybody else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts.address import Address
from contracts.evm.devnet import Devnet
from seller.bucket import Bucket
from tests.attacks.parts import attacked
from tests.faults.rpc_proxy import RpcProxy
from tests.paying import authorize, encode, payment_document, sign_payment
from tests.seller.shop import BUYER, OTHER, PRICE_ATOMIC, error_of, open_shop

COPIES = 64
SETTLE = ["auto", "before", "after", "async"]


@pytest.mark.parametrize("settle", SETTLE)
async def test_64_copies_of_one_payment_are_served_once(chain: Devnet, tmp_path: Path, settle: str) -> None:
    """S1, I1, I5."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, till):
        header = shop.payment()
        await asyncio.gather(*(shop.buy(header) for _ in range(COPIES)))
        await asyncio.gather(*(shop.buy(header) for _ in range(COPIES)))
        assert shop.app.runs == 1
        assert set(till.statuses) <= {200, 402, 409}


@pytest.mark.parametrize("settle", SETTLE)
async def test_64_requests_for_different_things_with_one_payment_are_served_once(
    chain: Devnet, tmp_path: Path, settle: str
) -> None:
    """S1, S3."""
    async with attacked(chain, tmp_path, settle=settle) as (shop, till):
        header = shop.payment()
        bodies = [b'{"model":"m","messages":[{"role":"user","content":"%d"}]}' % number for number in range(COPIES)]
        await asyncio.gather(*(shop.buy(header, body=body) for body in bodies))
        assert shop.app.runs == 1
        assert till.statuses[200] == 1


@pytest.mark.parametrize("settle", SETTLE)
@pytest.mark.parametrize("known", [False, True], ids=["a stranger", "a known payer"])
async def test_funds_for_one_and_eight_payments_at_once_start_the_handler_once(
    chain: Devnet, tmp_path: Path, settle: str, known: bool
) -> None:
    """S1, S7, I5."""
    async with attacked(chain, tmp_path, settle=settle, funds=0) as (shop, till):
        if known:
            chain.mint(chain.accounts[BUYER].address, PRICE_ATOMIC)
            await shop.trust()
        runs = shop.app.runs
        chain.mint(chain.accounts[BUYER].address, PRICE_ATOMIC)
        held = asyncio.Event()

        async def think(scope: Any, receive: Any, send: Any) -> None:
            await held.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": shop.app.body})

        shop.app.behave = think
        calls = [asyncio.ensure_future(shop.buy(shop.payment())) for _ in range(8)]
        # All that are refused are refused before anybody is served.
        for refused, done in enumerate(asyncio.as_completed(calls), start=1):
            await done
            if refused == 7:
                held.set()
        assert till.statuses[200] == 1 + known
        assert shop.app.runs == runs + 1


async def test_a_flood_of_payments_from_an_empty_wallet_costs_no_work_and_delays_nobody(
    chain: Devnet, tmp_path: Path
) -> None:
    """S7: every refused payment leaves its key free and nothing outstanding."""
    async with attacked(chain, tmp_path) as (shop, till):
        flood = [shop.payment(OTHER) for _ in range(100)]
        answers, served = await asyncio.gather(
            asyncio.gather(*(shop.buy(header) for header in flood)),
            asyncio.gather(*(shop.buy() for _ in range(5))),
        )
        assert {answer.status_code for answer in answers} == {402}
        assert {error_of(answer)["code"] for answer in answers} == {"insufficient_funds"}
        assert [answer.status_code for answer in served] == [200] * 5
        assert shop.app.runs == 5
        assert sum(shop.seller.ledger.sums().payments.values()) == 5
        # The same authorizations buy once there is money for them: nothing was burnt.
        chain.mint(chain.accounts[OTHER].address, PRICE_ATOMIC)
        assert (await shop.buy(flood[0])).status_code == 200
        assert till.statuses[402] == 100


async def test_a_flood_of_fresh_keys_costs_a_bounded_number_of_questions_and_known_payers_are_served(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S7: anybody can make a key and sign with it; the chain is asked about so many of them, and no more."""
    monkeypatch.setattr("seller.payers.STRANGER_QUESTIONS_MAX", 5)
    monkeypatch.setattr("seller.payers.STRANGER_QUESTIONS_PER_S", 0)
    async with attacked(chain, tmp_path) as (shop, till):
        await shop.trust()
        verifier, offer = shop.seller.verifier, shop.seller.book.routes[0].quote_for(None).offer
        headers = [sign_payment((2000 + number).to_bytes(32, "big"), offer) for number in range(30)]
        asked: list[Address] = []
        ask = verifier._payers._ask

        async def counted(payer: Address, *more: Any) -> Any:
            asked.append(payer)
            return await ask(payer, *more)

        monkeypatch.setattr(verifier._payers, "_ask", counted)
        answers = await asyncio.gather(*(shop.buy(header) for header in headers))
        assert 0 < len(asked) <= 4, "one question was about the payer who is known by now"
        turned_away = [answer for answer in answers if answer.status_code == 429]
        assert len(turned_away) >= 26
        assert {error_of(answer)["code"] for answer in turned_away} == {"too_many_strangers"}
        assert {answer.headers["retry-after"] for answer in turned_away} == {"2"}
        assert {answer.status_code for answer in answers} <= {402, 429}
        verifier._payers._known.clear()
        assert (await shop.buy()).status_code == 200
        # Nothing was taken: the same payment is good when there is time for it.
        chain.mint(chain.accounts[OTHER].address, PRICE_ATOMIC)
        waiting = shop.payment(OTHER)
        assert (await shop.buy(waiting)).status_code == 429
        verifier._payers._strangers = Bucket(1, 0)
        assert (await shop.buy(waiting)).status_code == 200
        assert till.statuses[200] == 3


async def test_what_is_wrong_by_itself_is_refused_without_asking_the_chain(chain: Devnet, tmp_path: Path) -> None:
    """S7: amount, time and signature are ours to judge; of the time alone the chain is asked, once for all."""
    with RpcProxy(chain.rpc_url) as proxy:
        async with open_shop(chain, tmp_path, settles=False, rpc=[proxy.url]) as shop:
            await shop.seller.check_token()
            offer = shop.seller.book.routes[0].quote_for(None).offer
            key = (3000).to_bytes(32, "big")
            authorization, signature = authorize(key, offer)
            too_small = msgspec.structs.replace(authorization, value_atomic=authorization.value_atomic - 1)
            made_up = bytes([signature[0] ^ 1]) + signature[1:]
            proxy.calls.clear()
            wrong = [
                encode(payment_document(too_small, signature, offer)),
                sign_payment(key, offer, valid_before_s=int(time.time()) - 3600),
                sign_payment(key, offer, valid_after_s=int(time.time()) + 3600),
            ]
            answers = [await shop.buy(header) for header in wrong]
            assert {answer.status_code for answer in answers} == {402}
            assert set(proxy.calls) <= {"eth_getBlockByNumber"}
            assert (await shop.buy(encode(payment_document(authorization, made_up, offer)))).status_code == 402
            # Perhaps a contract would vouch for it: asked so often and no more (C6).
            assert proxy.calls["eth_call"] <= 2


async def test_exposure_never_passes_its_cap_under_100_parallel_calls(chain: Devnet, tmp_path: Path) -> None:
    """S7, S8: what is served and not settled is bounded, whoever asks how often."""
    caps = {"per_payer": "0.005", "total": "0.008"}
    async with attacked(chain, tmp_path, settle="async", exposure=caps, settles=False) as (shop, till):
        chain.mint(chain.accounts[OTHER].address, 1_000_000)
        headers = [shop.payment(account) for account in (BUYER, OTHER) for _ in range(50)]
        await asyncio.gather(*(shop.buy(header) for header in headers))
        sums = shop.seller.ledger.sums()
        assert sums.exposure_atomic == 8 * PRICE_ATOMIC
        assert till.statuses == {200: 8, 429: 92}
        assert shop.app.runs == 8
        # A second seller on the same store settles what the first one owes.
        async with open_shop(chain, tmp_path, funds=0):
            await shop.settled()

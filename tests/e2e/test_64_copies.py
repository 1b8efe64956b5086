"""One payment, 64 copies at once, against the real `farebox sell`."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import pytest

from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.typed_data import word_of_address
from tests.e2e.parts import MODEL, PRICE_ATOMIC, Market, address_of, market
from tests.warm import Warm

COPIES = 64
PROMPT = "sold once"
TRANSFER = "0x" + keccak(b"Transfer(address,address,uint256)").hex()


@pytest.mark.parametrize("settle", ["before", "async", "auto"])
async def test_64_copies_of_one_payment_are_one_run_one_settlement_and_63_refusals(
    tmp_path: Path, chain: Devnet, warm: Warm, settle: str
) -> None:
    with market(tmp_path, chain, settle=settle, warm=warm) as shop:
        shop.start_model_server()
        seller = shop.start_seller()
        shop.buy(1)
        header = shop.claim_payment_header()
        limits = httpx.Limits(max_connections=COPIES, max_keepalive_connections=COPIES)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            answers = await send_copies(client, shop, header)
            late = await asyncio.gather(*(send(client, shop, header) for _ in range(COPIES)))

        statuses = Counter(answer.status_code for answer in answers)
        assert statuses[200] == 1
        assert set(statuses) <= {200, 402, 409}
        # Who comes late with the same payment for the same request gets that one answer again, as often as it is given.
        goods = next(answer.content for answer in answers if answer.status_code == 200)
        assert {answer.status_code for answer in late} <= {200, 409}
        assert {answer.content for answer in late if answer.status_code == 200} <= {goods}
        assert shop.runs_of(PROMPT) == 1
        shop.wait_settled(seller)
        assert transfers(shop) == 1
        assert shop.earned_atomic() == PRICE_ATOMIC


async def send_copies(client: httpx.AsyncClient, shop: Market, header: str) -> list[httpx.Response]:
    """Send all copies while the model holds its answer back until every other copy was refused."""
    sends = [asyncio.create_task(send(client, shop, header)) for _ in range(COPIES)]
    answers = []
    for count, done in enumerate(asyncio.as_completed(sends), start=1):
        answers.append(await done)
        if count == COPIES - 1:
            await client.post(f"{shop.model_url}/test/release/gate")
    return answers


async def send(client: httpx.AsyncClient, shop: Market, header: str) -> httpx.Response:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "metadata": {"x-test-hold": "gate"},
    }
    url = f"{shop.seller_url}/v1/chat/completions"
    return await client.post(url, json=body, headers={"PAYMENT-SIGNATURE": header})


def transfers(shop: Market) -> int:
    """Return how many transfers the chain shows from the wallet to the payee."""
    parties = ["0x" + word_of_address(parse_address(each)).hex() for each in (address_of(shop.wallet_key), shop.payee)]
    logs = shop.chain.rpc(
        "eth_getLogs", {"address": shop.chain.token, "fromBlock": "0x0", "topics": [TRANSFER, *parties]}
    )
    return len(logs)

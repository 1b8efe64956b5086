"""Goal: a seller that is killed in the middle of a metered stream is paid once, for no more than had been made.

Real processes: the step at which one kills itself is named in its environment (`contracts.crash`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from contracts.crash import VARIABLE
from contracts.evm.devnet import Devnet
from gateway.demo.model_server import model_server_app
from seller.config import read_config
from seller.pricebook import PriceBook
from tests.patience import PATIENCE_S
from tests.paying import sign_payment
from tests.seller.shop import BUYER, CHAT, GAS, SELLER, is_replayed, write_settings
from tests.seller.test_processes import selling
from tests.seller.test_streams import listening
from tests.seller.test_upto import MODEL, PROMPT, USED, request
from tests.warm import Warm

MINIMUM = 3
# Pieces come slower than the books are written, and the last of them never.
PIECES = 10
HALTING = {"x-test-delay-ms": "100", "x-test-hold": "for-good", "x-test-hold-after-chunks": str(PIECES + 1)}
MADE = 100 * (len(PROMPT) // 8) + 7 * PIECES


def metered(chain: Devnet, folder: Path, upstream: str) -> Path:
    routes = f"""\
  - match: "POST {CHAT}"
    price: {{per_million_input_tokens: "100", per_million_output_tokens: "7", minimum: "0.000003",
             max_input_tokens: 400, max_output_tokens: 1000}}
"""
    more = f'upto: {{facilitator: "{chain.accounts[GAS].address}"}}'
    return write_settings(chain, folder, upstream, "async", routes, more)


@pytest.mark.parametrize("step", ["seller.delivered", "seller.piece_kept", "seller.charged"])
async def test_a_seller_that_is_killed_in_mid_stream_is_paid_once_for_what_was_made(
    chain: Devnet, warm: Warm, tmp_path: Path, step: str
) -> None:
    chain.mint(chain.accounts[BUYER].address, 1_000_000)
    chain.approve_permit2(chain.accounts[BUYER].address, 10**12)
    async with listening(model_server_app([MODEL])) as upstream, httpx.AsyncClient(timeout=60) as client:
        config = metered(chain, tmp_path, upstream)
        offer = PriceBook(read_config(config)).routes[0].quote_for(None).offer
        headers = {"PAYMENT-SIGNATURE": sign_payment(chain.accounts[BUYER].key, offer)}
        body = request(stream=True, metadata={} if step == "seller.charged" else HALTING)
        async with selling(warm, config, **{VARIABLE: step}) as (process, document):
            with pytest.raises(httpx.HTTPError):
                await client.post(document["listening"] + CHAT, json=body, headers=headers)
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == -9
        async with selling(warm, config) as (_, document):
            again = await client.post(document["listening"] + CHAT, json=body, headers=headers)
            assert again.status_code == 200
            assert is_replayed(again)
            await _settled(client, document["admin"])
    earned = chain.balance_of(chain.accounts[SELLER].address)
    assert earned == USED if step == "seller.charged" else MINIMUM <= earned <= MADE


async def _settled(client: httpx.AsyncClient, admin: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get(admin + "/status")).json()["unsettled_atomic"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)

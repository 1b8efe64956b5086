"""Two real `farebox sell` processes on one store, and copies of payments at both at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from contracts.evm.devnet import Devnet
from contracts.headers import decode_payment_required
from contracts.offers import Offer, offer_from_wire
from gateway.demo.ports import free_ports
from gateway.demo.processes import farebox_command
from tests.attacks.parts import Till
from tests.e2e.parts import MODEL, PRICE_ATOMIC, Market, market
from tests.paying import sign_payment
from tests.warm import Warm

CHAT = "/v1/chat/completions"
COPIES = 32
PAYMENTS = 4
# Every answer of the stand-in model server begins with it.
GOODS = b'"object":"chat.completion"'


def call(number: int) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": f"prompt {number}"}]}


def start_second(shop: Market) -> str:
    """Start another seller on the same store and key; return its URL."""
    port, admin = free_ports(2)
    settings = (shop.crew.folder / "seller.yaml").read_text()
    listen = shop.seller_url.removeprefix("http://")
    (shop.crew.folder / "second.yaml").write_text(settings.replace(listen, f"127.0.0.1:{port}"))
    command = farebox_command("sell", "--config", "second.yaml", "--admin-listen", f"127.0.0.1:{admin}")
    shop.crew.wait_ready(shop.crew.start("sell-2", command), f"http://127.0.0.1:{admin}/readyz")
    return f"http://127.0.0.1:{port}"


async def test_copies_of_payments_at_two_sellers_at_once_are_served_once_each(
    chain: Devnet, warm: Warm, tmp_path: Path
) -> None:
    """S1, I1: 32 copies of each of four payments, half of them at each process; then all once more."""
    with market(tmp_path, chain, warm=warm) as shop:
        shop.start_model_server()
        first = shop.start_seller()
        urls = (shop.seller_url, start_second(shop))
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            asked = await client.post(urls[0] + CHAT, json=call(0))
            offer: Offer = offer_from_wire(decode_payment_required(asked.headers["PAYMENT-REQUIRED"]).accepts[0])

            def runs() -> int:
                return sum(shop.runs_of(f"prompt {number}") for number in range(PAYMENTS))

            till = Till(chain, shop.payee, runs, lambda request: PRICE_ATOMIC, GOODS)
            till.watch(client)
            headers = [{"PAYMENT-SIGNATURE": sign_payment(shop.wallet_key, offer)} for _ in range(PAYMENTS)]
            for _ in range(2):
                await asyncio.gather(
                    *(
                        client.post(urls[copy % 2] + CHAT, json=call(number), headers=headers[number])
                        for copy in range(COPIES)
                        for number in range(PAYMENTS)
                    )
                )
            assert till.statuses[200] >= PAYMENTS
            assert set(till.statuses) <= {200, 402, 409}
        shop.wait_settled(first)
        score = till.close()
        assert (score.paid, score.runs) == (PAYMENTS, PAYMENTS)
        assert shop.earned_atomic() == PAYMENTS * PRICE_ATOMIC

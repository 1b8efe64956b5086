"""What comes before the first byte of a stream on credit, and what does not: no transaction is waited for."""

from __future__ import annotations

from pathlib import Path

import httpx

from contracts.evm.devnet import Devnet
from seller.proxy import ReverseProxy
from tests.patience import PATIENCE_S
from tests.seller.shop import BODY, CHAT, PRICE_ATOMIC, open_shop, receipt_of
from tests.seller.test_streams import Tap, listening


async def test_the_first_byte_for_a_known_payer_comes_after_the_debt_and_before_any_settlement(
    chain: Devnet, tmp_path: Path
) -> None:
    async with open_shop(chain, tmp_path, settle="auto") as shop, listening(shop.app) as upstream:
        await shop.trust()
        # From here no block is made: whoever waits for a settlement waits for ever.
        chain.rpc("evm_setAutomine", False)
        try:
            tap = shop.app.behave = Tap()
            proxy = shop.middleware.app = ReverseProxy(upstream)
            async with listening(shop.middleware) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
                tap.turns.put_nowait(b"data: 0\n\n")
                headers = {"PAYMENT-SIGNATURE": shop.payment()}
                async with client.stream("POST", CHAT, content=BODY, headers=headers) as answer:
                    got = answer.aiter_raw()
                    # The model server has not made its second piece: the first one is not held for it.
                    assert await anext(got) == b"data: 0\n\n"
                    assert receipt_of(answer).transaction == ""
                    sums = shop.seller.ledger.sums()
                    assert (sums.exposure_atomic, sums.earned_atomic) == (PRICE_ATOMIC, PRICE_ATOMIC)
                    tap.turns.put_nowait(None)
                    assert b"".join([chunk async for chunk in got]) == b""
            await proxy.close()
        finally:
            chain.rpc("evm_setAutomine", True)
            chain.mine()
        await shop.settled()
        assert shop.earned == 2 * PRICE_ATOMIC

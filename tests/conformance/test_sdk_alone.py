"""The control: the SDK's client buys from the SDK's server on our chain, so that a failure elsewhere is ours."""

from __future__ import annotations

import httpx
from eth_account import Account
from x402.http.utils import decode_payment_response_header

from contracts.evm.devnet import Devnet
from tests.conformance.sdk_peers import PRICE_ATOMIC, facilitator_app, paying_client, seller_app, serving


async def test_the_sdks_own_client_and_server_settle_on_our_chain(chain: Devnet) -> None:
    payer, settler = chain.accounts[:2]
    pay_to = Account.create().address
    chain.mint(payer.address, 10 * PRICE_ATOMIC)
    before = chain.balance_of(payer.address)

    facilitating = facilitator_app(chain, settler)
    with serving(facilitating) as facilitator_url:
        selling = seller_app(chain, pay_to, facilitator_url)
        with serving(selling) as url:
            async with httpx.AsyncClient(trust_env=False) as poor:
                assert (await poor.get(f"{url}/paid")).status_code == 402
            async with paying_client(chain, payer) as client:
                answer = await client.get(f"{url}/paid")

    assert (answer.status_code, answer.json()) == (200, {"paid": True})
    receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
    assert (receipt.success, receipt.network, receipt.payer) == (True, chain.network, payer.address)
    assert chain.balance_of(pay_to) == PRICE_ATOMIC
    assert before - chain.balance_of(payer.address) == PRICE_ATOMIC
    assert selling.state.runs == 1

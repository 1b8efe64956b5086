"""Goal: the official SDK's seller and buyer work through `farebox facilitator`. Method: real sockets, a real chain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import DevAccount, Devnet
from tests.conformance.sdk_peers import PRICE_ATOMIC, paying_client, seller_app, serving
from tests.processes import farebox_process

GAS = 2


@contextmanager
def our_facilitator(chain: Devnet, folder: Path) -> Iterator[dict[str, Any]]:
    """Run `farebox facilitator` as a process and yield what it prints when it is ready."""
    key = folder / "settler.key"
    key.write_text(chain.accounts[GAS].key.hex())
    key.chmod(0o600)
    config = folder / "facilitator.yaml"
    config.write_text(
        f"""\
listen: 127.0.0.1:0
network: {chain.network}
rpc: ["{chain.rpc_url}"]
asset: {{address: "{chain.token}", name: USDC, version: "2", decimals: 6, symbol: USDC}}
key_file: settler.key
minimum: "0.0001"
"""
    )
    with farebox_process(folder, "facilitator", "--config", str(config)) as document:
        yield document


@pytest.fixture
def facilitator(chain: Devnet, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with our_facilitator(chain, tmp_path) as document:
        yield document


async def test_the_sdks_seller_and_buyer_settle_through_our_facilitator(
    chain: Devnet, payer: DevAccount, pay_to: str, facilitator: dict[str, Any]
) -> None:
    assert facilitator["gas_account"] == chain.accounts[GAS].address
    app = seller_app(chain, pay_to, facilitator["listening"])
    with serving(app) as url:
        async with paying_client(chain, payer) as client:
            for bought in range(1, 4):
                answer = await client.get(f"{url}/paid")
                assert (answer.status_code, answer.json()) == (200, {"paid": True})
                assert answer.headers["PAYMENT-RESPONSE"]
                assert chain.balance_of(pay_to) == bought * PRICE_ATOMIC
    assert app.state.runs == 3


async def test_it_says_what_it_serves_as_the_specification_has_it(chain: Devnet, facilitator: dict[str, Any]) -> None:
    async with httpx.AsyncClient() as client:
        document = (await client.get(facilitator["listening"] + "/supported")).json()
    assert document == {
        "kinds": [
            {"x402Version": 2, "scheme": "exact", "network": chain.network},
            {
                "x402Version": 2,
                "scheme": "upto",
                "network": chain.network,
                "extra": {"facilitatorAddress": chain.accounts[GAS].address},
            },
        ],
        "extensions": [],
        "signers": {"eip155:*": [chain.accounts[GAS].address]},
    }


async def test_a_payer_without_money_gets_the_sdks_own_402(
    chain: Devnet, payer: DevAccount, pay_to: str, facilitator: dict[str, Any]
) -> None:
    app = seller_app(chain, pay_to, facilitator["listening"])
    broke = DevAccount(chain.accounts[7].address, chain.accounts[7].key)
    with serving(app) as url:
        async with paying_client(chain, broke) as client:
            assert (await client.get(f"{url}/paid")).status_code == 402
    assert app.state.runs == 0
    assert chain.balance_of(pay_to) == 0

"""A price list with a mistake in it sells nothing, and nothing is free that does not say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigInvalid
from contracts.evm.devnet import Devnet
from seller.config import read_config
from seller.pricebook import PriceBook
from tests.attacks.parts import attacked
from tests.seller.shop import BODY, CHAT, GAS, write_key

PRICES = [
    '"0,01"', '"0"', "0", '"0.0"', '"-0.01"', "-1", ".nan", '"NaN"', ".inf", '"Infinity"', '"1e-3"', "1e-3", "0.001",
    '"0.0000001"', '"0.0000009"', '"0.01 EUR"', '"0.01 0.02"', '"\u0660.\u0660\u0661"', '"0x1"', '""', "null",
    "true", "[]", '"1_000"', '"+1"', '"."', '"1."', '"' + "9" * 90 + '"',
]  # fmt: skip


def seller_yaml(chain: Devnet, folder: Path, route: str) -> Path:
    write_key(folder, chain.accounts[GAS].key)
    path = folder / "seller.yaml"
    path.write_text(
        f"""\
upstream: http://127.0.0.1:9
network: {chain.network}
rpc: ["{chain.rpc_url}"]
asset: {{address: "{chain.token}", name: USDC, version: "2", decimals: 6, symbol: USDC}}
pay_to: "{chain.accounts[1].address}"
settler: {{kind: chain, key_file: settler.key}}
routes:
  - {{match: "POST /v1/embeddings", price: "0.001"}}
  - {route}
""",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize(
    "route",
    ['{match: "POST /v1/chat/completions", price: PRICE}', '{match: "POST /v1/x", models: {m: PRICE}}'],
    ids=["a price", "a model's price"],
)
def test_an_odd_price_does_not_start(devnet: Devnet, tmp_path: Path, route: str, price: str) -> None:
    """S20: comma, garbage, sign, nought, too many decimals, numbers YAML reads as floats."""
    with pytest.raises(ConfigInvalid) as refused:
        read_config(seller_yaml(devnet, tmp_path, route.replace("PRICE", price)))
    assert "seller.yaml" in refused.value.message


@pytest.mark.parametrize("price", ['"0.01"', '" 0.01"', '"$0.01"', '"0.01 USDC"', '"00.01"', '"0.010000"'])
def test_a_price_that_can_be_read_in_one_way_only_is_read_so(devnet: Devnet, tmp_path: Path, price: str) -> None:
    """S20."""
    route = f'{{match: "POST /v1/chat/completions", price: {price}}}'
    book = PriceBook(read_config(seller_yaml(devnet, tmp_path, route)))
    assert book.routes[1].quote_for(None).price_atomic == 10_000


@pytest.mark.parametrize(
    "route",
    [
        '{match: "POST /v1/chat/completions"}',
        '{match: "POST /v1/chat/completions", free: true, price: "0.01"}',
        '{match: "POST /v1/chat/completions", free: "yes"}',
        '{match: "POST /v1/chat/completions", models: {}}',
        '{match: "POST /v1/chat/completions", prices: "0.01"}',
        '{match: "/v1/chat/completions", price: "0.01"}',
        '{match: "POST /v1/*", price: "0.01"}',
        '{match: "POST /v1//x", price: "0.01"}',
        '{match: "POST /v1/../x", price: "0.01"}',
        '{match: "POST /v1/embeddings", price: "0.01"}',
        '{match: "POST /v1/%63hat", price: "0.01"}',
        '{match: "POST /v1/ch\u0430t", price: "0.01"}',
    ],
)
def test_a_route_that_does_not_say_what_it_costs_does_not_start(devnet: Devnet, tmp_path: Path, route: str) -> None:
    """S20: free is only what says `free: true`."""
    with pytest.raises(ConfigInvalid):
        read_config(seller_yaml(devnet, tmp_path, route))


async def test_what_is_not_listed_is_not_given_away(chain: Devnet, tmp_path: Path) -> None:
    """S20, S13: deny by default, with and without a payment."""
    async with attacked(chain, tmp_path) as (shop, _):
        headers: dict[str, Any] = {"PAYMENT-SIGNATURE": shop.payment()}
        for path in ("/", "/metrics", "/api/pull", "/v1/embeddings", "/admin", "/v1/chat"):
            for method in ("GET", "POST", "DELETE"):
                assert (await shop.client.request(method, path)).status_code == 404
                assert (await shop.client.request(method, path, headers=headers)).status_code == 404
        assert shop.app.runs == 0
        assert (await shop.client.post(CHAT, content=BODY, headers=headers)).status_code == 200

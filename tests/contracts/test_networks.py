"""Networks and their assets: CAIP-2, the v1 names, and the token table."""

from __future__ import annotations

import pytest

from contracts.address import parse_address
from contracts.errors import UsageError
from contracts.networks import ASSETS, Network, default_asset, find_asset, parse_network
from contracts.typed_data import Domain

# x402 v1: the name of a network stands for a chain id.
LEGACY = {
    "base": 8453,
    "base-sepolia": 84532,
    "ethereum": 1,
    "polygon": 137,
    "polygon-amoy": 80002,
    "avalanche": 43114,
    "avalanche-fuji": 43113,
    "abstract": 2741,
    "abstract-testnet": 11124,
    "iotex": 4689,
    "sei": 1329,
    "sei-testnet": 1328,
    "peaq": 3338,
    "story": 1513,
    "educhain": 656476,
    "skale-base-sepolia": 1444673419,
    "megaeth": 4326,
    "monad": 143,
    "monad-testnet": 10143,
    "stable": 988,
    "stable-testnet": 2201,
    "celo": 42220,
    "flare": 14,
}

# `DOMAIN_SEPARATOR()` of USDC, as the chains tell it.
USDC_SEPARATORS = {
    8453: "02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f",
    84532: "71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818",
    1: "06c37168a7db5138defc7866392bb87a741f9b3d104deb5094588ce041cae335",
    137: "caa2ce1a5703ccbe253a34eb3166df60a705c561b44b192061e28f2a985be2ca",
    42161: "08d11903f8419e68b1b8721bcbe2e9fc68569122a77ef18c216f10b3b5112c78",
    43114: "bbea200329a938bc3438984a49cb0732e66d66d7bd59c127abacc1710e77f7b3",
}


@pytest.mark.parametrize(("name", "chain_id"), LEGACY.items())
def test_a_v1_name_and_the_caip2_id_mean_the_same_network(name: str, chain_id: int) -> None:
    network = parse_network(name)
    assert network == parse_network(f"eip155:{chain_id}") == Network(chain_id)
    assert (network.caip2, network.legacy_name, network.label) == (f"eip155:{chain_id}", name, name)


def test_a_network_without_a_v1_name_is_shown_by_its_caip2_id() -> None:
    network = parse_network("eip155:10")
    assert (network.legacy_name, network.label) == (None, "eip155:10")


def test_the_devnet_has_a_readable_label_and_no_v1_name() -> None:
    network = parse_network("eip155:31337")
    assert (network.legacy_name, network.label) == (None, "local devnet")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "eip155:",
        "eip155:0",
        "eip155:08453",
        "eip155:+1",
        "eip155:-1",
        "eip155:1 ",
        " eip155:1",
        "eip155:1\n",
        "eip155:0x1",
        "eip155:1_0",
        "eip155:*",
        "EIP155:1",
        "eip155:\u0661",
        "eip155:" + "9" * 19,
        "Base",
        "solana",
        "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
        "8453",
        8453,
        None,
        ["base"],
    ],
)
def test_anything_else_is_no_network_and_the_field_is_named(text: object) -> None:
    with pytest.raises(UsageError, match=r"^accepts\[0\]\.network: expected eip155:"):
        parse_network(text, "accepts[0].network")


def test_the_default_asset_of_a_network_is_found_by_its_address_too() -> None:
    network = parse_network("base")
    asset = default_asset(network)
    assert asset is not None
    assert (asset.symbol, asset.name, asset.version, asset.decimals) == ("USDC", "USD Coin", "2", 6)
    assert find_asset(network, asset.address) is asset


def test_an_asset_is_known_on_its_own_network_only() -> None:
    base_usdc = default_asset(parse_network("base"))
    assert base_usdc is not None
    assert find_asset(parse_network("base-sepolia"), base_usdc.address) is None
    assert find_asset(parse_network("base"), parse_address("0x" + "11" * 20)) is None
    assert default_asset(parse_network("eip155:31337")) is None


@pytest.mark.parametrize(("chain_id", "separator"), USDC_SEPARATORS.items())
def test_the_tables_name_and_version_give_the_tokens_own_domain_separator(chain_id: int, separator: str) -> None:
    asset = default_asset(Network(chain_id))
    assert asset is not None
    domain = Domain(asset.name, asset.version, chain_id, asset.address)
    assert domain.separator.hex() == separator


def test_no_network_lists_one_token_twice() -> None:
    for assets in ASSETS.values():
        assert len({asset.address for asset in assets}) == len(assets)

"""Networks by CAIP-2 id, their legacy x402 v1 names, and the assets Farebox knows on each.

Source: x402 specification (v1 network names), CAIP-2, token contracts' EIP-712 domains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from contracts.address import Address, parse_address
from contracts.errors import UsageError
from contracts.money import Asset

__all__ = [
    "ASSETS",
    "DEVNET_CHAIN_ID",
    "MULTICALL3",
    "PERMIT2",
    "X402_EXACT_PROXY",
    "X402_UPTO_PROXY",
    "Network",
    "default_asset",
    "find_asset",
    "parse_network",
]

DEVNET_CHAIN_ID = 31337
PERMIT2 = parse_address("0x000000000022D473030F116dDEE9F6B43aC78BA3")
MULTICALL3 = parse_address("0xcA11bde05977b3631167028862bE2a173976CA11")
# The x402 contracts through which Permit2 moves money: the spenders that a Permit2 payment names. Each pays out only as
# the payer's witness says.
X402_EXACT_PROXY = parse_address("0x402085c248EeA27D92E8b30b2C58ed07f9E20001")
X402_UPTO_PROXY = parse_address("0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002")

_CAIP2 = re.compile(r"eip155:([1-9][0-9]{0,17})", re.ASCII)

_LEGACY_NAMES = {
    "ethereum": 1,
    "flare": 14,
    "polygon": 137,
    "monad": 143,
    "stable": 988,
    "sei-testnet": 1328,
    "sei": 1329,
    "story": 1513,
    "stable-testnet": 2201,
    "abstract": 2741,
    "peaq": 3338,
    "megaeth": 4326,
    "iotex": 4689,
    "base": 8453,
    "monad-testnet": 10143,
    "abstract-testnet": 11124,
    "celo": 42220,
    "avalanche-fuji": 43113,
    "avalanche": 43114,
    "polygon-amoy": 80002,
    "base-sepolia": 84532,
    "educhain": 656476,
    "skale-base-sepolia": 1444673419,
}
_NAMES_BY_CHAIN_ID = {chain_id: name for name, chain_id in _LEGACY_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Network:
    """An EVM chain. `caip2` is what v2 messages carry, `legacy_name` what v1 messages carry."""

    chain_id: int

    @property
    def caip2(self) -> str:
        """`eip155:<chain id>`."""
        return f"eip155:{self.chain_id}"

    @property
    def legacy_name(self) -> str | None:
        """The x402 v1 name, or None where v1 has none."""
        return _NAMES_BY_CHAIN_ID.get(self.chain_id)

    @property
    def label(self) -> str:
        """What a person reads: the common name, else the CAIP-2 id."""
        if self.chain_id == DEVNET_CHAIN_ID:
            return "local devnet"
        return self.legacy_name or self.caip2


def parse_network(text: object, field: str = "network") -> Network:
    """Return the network named by a CAIP-2 id (`eip155:8453`) or a legacy name (`base`).

    Raises `UsageError` naming `field` for anything else, other chain families included.
    """
    if isinstance(text, str):
        if caip2 := _CAIP2.fullmatch(text):
            return Network(int(caip2[1]))
        if text in _LEGACY_NAMES:
            return Network(_LEGACY_NAMES[text])
    raise UsageError(f"{field}: expected eip155:<chain id> or a name such as base-sepolia, got {str(text)[:60]!r}")


def _token(address: str, name: str, version: str, symbol: str) -> Asset:
    # All of these have EIP-2612 beside EIP-3009: they are Circle's FiatToken, or made like it.
    return Asset(parse_address(address), name, version, 6, symbol, has_permit=True)


def _permit2_token(
    address: str, name: str, version: str, symbol: str, decimals: int, *, has_permit: bool = True
) -> Asset:
    return Asset(parse_address(address), name, version, decimals, symbol, has_eip3009=False, has_permit=has_permit)


# The first asset of a network is its default.
ASSETS: dict[int, tuple[Asset, ...]] = {
    1: (_token("0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin", "2", "USDC"),),
    50: (_token("0xfA2958CB79b0491CC627c1557F441eF849Ca8eb1", "USDC", "2", "USDC"),),
    51: (_token("0xb5AB69F7bBada22B28e79C8FFAECe55eF1c771D4", "USDC", "2", "USDC"),),
    137: (_token("0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin", "2", "USDC"),),
    143: (_token("0x754704Bc059F8C67012fEd69BC8A327a5aafb603", "USDC", "2", "USDC"),),
    988: (_token("0x779Ded0c9e1022225f8E0630b35a9b54bE713736", "USDT0", "1", "USDT0"),),
    1328: (_token("0x4fCF1784B31630811181f670Aea7A7bEF803eaED", "USDC", "2", "USDC"),),
    1329: (_token("0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", "USDC", "2", "USDC"),),
    2201: (_token("0x78Cf24370174180738C5B8E352B6D14c83a6c9A9", "USDT0", "1", "USDT0"),),
    4326: (_permit2_token("0xFAfDdbb3FC7688494971a79cc65DCa3EF82079E7", "MegaUSD", "1", "MegaUSD", 18),),
    8453: (_token("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin", "2", "USDC"),),
    10143: (_token("0x534b2f3A21130d7a60830c2Df862319e593943A3", "USDC", "2", "USDC"),),
    31611: (_permit2_token("0x118917a40FAF1CD7a13dB0Ef56C86De7973Ac503", "Mezo USD", "1", "mUSD", 18),),
    31612: (_permit2_token("0xdD468A1DDc392dcdbEf6db6e34E89AA338F9F186", "Mezo USD", "1", "mUSD", 18),),
    38833: (_permit2_token("0xA5b8BF902b2844dA17d4506cc827F7F1681735E7", "USDC", "1", "USDC", 6, has_permit=False),),
    42161: (_token("0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin", "2", "USDC"),),
    42220: (
        _token("0xcebA9300f2b948710d2653dD7B07f33A8B32118C", "USDC", "2", "USDC"),
        _token("0x48065fbBE25f71C9282ddf5e1cD6D6A887483D5e", "Tether USD", "1", "USDT"),
    ),
    43114: (_token("0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin", "2", "USDC"),),
    72344: (_permit2_token("0x33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb", "Stable Coin", "1", "SBC", 6),),
    84532: (_token("0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", "2", "USDC"),),
    723487: (_permit2_token("0x33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb", "Stable Coin", "1", "SBC", 6),),
    421614: (_token("0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin", "2", "USDC"),),
}


def default_asset(network: Network) -> Asset | None:
    """Return the asset a bare `$0.01` means on `network`, if Farebox knows one."""
    known = ASSETS.get(network.chain_id)
    return known[0] if known else None


def find_asset(network: Network, address: Address) -> Asset | None:
    """Return the known asset at `address`, whose decimals and domain may then be trusted over a seller's word."""
    return next((asset for asset in ASSETS.get(network.chain_id, ()) if asset.address == address), None)

"""Whether the token on chain is the one the settings describe, and the contracts are there that move it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from contracts.address import address_text
from contracts.errors import ConfigInvalid
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token
from contracts.money import Asset
from contracts.networks import PERMIT2, Network
from contracts.offers import EIP3009, Offer
from contracts.schemes.rails import proxy_of, rail_of
from contracts.typed_data import Domain

__all__ = ["check_rails", "check_token"]


async def check_token(rpc: Rpc, network: Network, asset: Asset, methods: Collection[str] = ()) -> None:
    """Compare the chain behind `rpc` and its token with the settings; `methods` are the ways in which prices are paid.

    Raises `ConfigInvalid` where no payment could be settled, or would be another amount; `ChainUnavailable`.
    """
    facts = await Token(rpc, asset.address).facts()
    where = f"asset {asset.address_text}"
    if facts.chain_id != network.chain_id:
        raise ConfigInvalid(f"rpc: the endpoint is on chain {facts.chain_id}, `network` says {network.chain_id}")
    if not facts.has_code:
        raise ConfigInvalid(f"{where}: there is no contract at this address on {network.caip2}")
    expected = Domain(asset.name, asset.version, network.chain_id, asset.address).separator
    if facts.domain_separator is not None and facts.domain_separator != expected:
        raise ConfigInvalid(
            f"{where}: its EIP-712 domain is not name {asset.name!r}, version {asset.version!r}; no payment could be "
            "settled"
        )
    if facts.decimals is not None and facts.decimals != asset.decimals:
        raise ConfigInvalid(f"{where}: has {facts.decimals} decimals, the settings say {asset.decimals}")
    # A token that answers nothing at all is not judged by this answer.
    if EIP3009 in methods and facts.decimals is not None and not facts.has_eip3009:
        raise ConfigInvalid(
            f"{where}: has no EIP-3009; no payment could be settled",
            remedy="take payments for this token through Permit2: `methods: [permit2]`",
        )


async def check_rails(rpc: Rpc, offers: Iterable[Offer]) -> None:
    """Check that the contracts through which `offers` are paid stand on the chain behind `rpc`.

    Raises `ConfigInvalid` where Permit2, or the x402 proxy of a scheme, is not there; `ChainUnavailable`.
    """
    for rail, offer in {rail_of(offer).NAME: offer for offer in offers}.items():
        proxy = proxy_of(offer)
        needed = [] if proxy is None else [(PERMIT2, "Permit2"), (proxy.address, f"the x402 proxy of {rail}")]
        for contract, name in needed:
            if await rpc.call("eth_getCode", address_text(contract), "latest") == "0x":
                raise ConfigInvalid(f"methods: {name} ({address_text(contract)}) is not on {offer.network.caip2}")

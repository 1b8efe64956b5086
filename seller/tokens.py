"""Whether the token on chain is the one the settings describe."""

from __future__ import annotations

from contracts.errors import ConfigInvalid
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token
from contracts.money import Asset
from contracts.networks import Network
from contracts.typed_data import Domain

__all__ = ["check_token"]


async def check_token(rpc: Rpc, network: Network, asset: Asset) -> None:
    """Compare the chain behind `rpc` and its token with the settings.

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

"""What a seller is told at its start that is allowed and not wise."""

from __future__ import annotations

from contracts.networks import DEVNET_CHAIN_ID
from seller.config import SellerConfig

__all__ = ["advice"]


def advice(config: SellerConfig) -> list[str]:
    """Return one line for each."""
    told = []
    if len(config.rpc) == 1 and config.chain.chain_id != DEVNET_CHAIN_ID:
        told.append(
            "rpc: one endpoint alone decides what is paid; with a second one, of another provider, a payment counts "
            "only when neither denies it"
        )
    return told

"""The chains that have ERC-8004 registries, and the checks before one is believed.

Sources: the reference contracts' deployment scripts (chain ids), block explorers (first blocks).
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.address import Address
from contracts.erc8004 import MAIN_NETWORKS, TEST_NETWORKS
from contracts.errors import UsageError
from contracts.networks import DEVNET_CHAIN_ID, Network

__all__ = ["RegistryChain", "chain_of"]

_MAIN_CHAIN_IDS = frozenset(
    {1, 10, 56, 100, 137, 143, 196, 295, 360, 1088, 1868, 2345, 2741, 4326, 5000, 8453, 42161, 42220, 43114, 59144}
    | {167000, 534352, 1187947933}
)
_TEST_CHAIN_IDS = frozenset(
    {97, 296, 1946, 1952, 5003, 6343, 10143, 10200, 11011, 11124, 43113, 48816, 59141, 59902, 80002, 84532, 167012}
    | {167013, 421614, 534351, 5042002, 11142220, 11155111, 11155420, 324705682, DEVNET_CHAIN_ID}
)
# Nothing of a registry can be older than its deployment. A chain that is not listed is read from its first block.
_FIRST_BLOCKS = {1: 24_339_871, 8453: 41_663_783, 84532: 36_304_145, 11155111: 9_989_393}


@dataclass(frozen=True, slots=True)
class RegistryChain:
    """One chain's registries, and the first block that may hold one of their logs."""

    network: Network
    identity: Address
    reputation: Address
    first_block: int = 0

    @property
    def chain_id(self) -> int:
        """The EIP-155 chain id."""
        return self.network.chain_id


def chain_of(network: Network) -> RegistryChain:
    """Return the registries of `network`.

    Raises `UsageError` for a chain without known registries: guessing "main" or "test" would read somebody else's
    contract.
    """
    chain_id = network.chain_id
    if chain_id in _MAIN_CHAIN_IDS:
        known = MAIN_NETWORKS
    elif chain_id in _TEST_CHAIN_IDS:
        known = TEST_NETWORKS
    else:
        raise UsageError(
            f"chain: no ERC-8004 registries are known on {network.label}",
            remedy="choose a chain that has them, as base or base-sepolia",
        )
    return RegistryChain(network, known.identity, known.reputation, _FIRST_BLOCKS.get(chain_id, 0))

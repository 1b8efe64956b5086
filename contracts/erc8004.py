"""ERC-8004: where the registries stand, what they log, and what a wallet signs for an agent.

One set of addresses for every main network and one for every test network (CREATE2 through one factory).
Source: EIP-8004 and the reference contracts, version 2.0.0.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.address import Address, parse_address
from contracts.keccak import keccak
from contracts.typed_data import Domain, signing_digest, word_of_address, word_of_uint

__all__ = [
    "AGENT_WALLET_KEY",
    "COUNTER_SLOT",
    "FEEDBACK_DECIMALS_MAX",
    "IMPLEMENTATION_SLOT",
    "MAIN_NETWORKS",
    "REGISTRATION_TYPE",
    "TEST_NETWORKS",
    "WALLET_PROOF_AHEAD_S_MAX",
    "Registries",
    "agent_wallet_digest",
    "selector",
]


@dataclass(frozen=True, slots=True)
class Registries:
    """The three registries of a chain. The Validation registry has an address, but no official deployment."""

    identity: Address
    reputation: Address
    validation: Address


MAIN_NETWORKS = Registries(
    identity=parse_address("0x8004A169FB4a3325136EB29fA0ceB6D2e539a432"),
    reputation=parse_address("0x8004BAa17C55a88189AE136b182e5fdA19dE9b63"),
    validation=parse_address("0x8004Cc8439f36fd5F9F049D9fF86523Df6dAAB58"),
)
TEST_NETWORKS = Registries(
    identity=parse_address("0x8004A818BFB912233c491871b3d84c89A494BD9e"),
    reputation=parse_address("0x8004B663056A597Dffe9eCcC1965A193B7388713"),
    validation=parse_address("0x8004Cb1BF31DAf7788923b405b754f57acEB4272"),
)

REGISTRATION_TYPE = "https://eips.ethereum.org/EIPS/eip-8004#registration-v1"
# The reserved metadata key, compared byte for byte: `AgentWallet` is an ordinary key that anybody's agent may set.
AGENT_WALLET_KEY = "agentWallet"
# ERC-7201: the first field of the Identity registry's storage is the next id, which is the number of agents.
COUNTER_SLOT = 0xA040F782729DE4970518741823EC1276CBCD41A0C7493F62D173341566A04E00
# ERC-1967.
IMPLEMENTATION_SLOT = 0x360894A13BA1A3210667C828492DB98DCA3E2076CC3735A920A3CA505D382BBC
# The registry refuses a wallet proof that is valid for longer, by the time of the block.
WALLET_PROOF_AHEAD_S_MAX = 300
# Feedback values: an int128 of at most this many decimals.
FEEDBACK_DECIMALS_MAX = 18

_WALLET_TYPE_HASH = keccak(b"AgentWalletSet(uint256 agentId,address newWallet,address owner,uint256 deadline)")


def selector(signature: str) -> bytes:
    """Return the 4 bytes that call the function `signature`, as `ownerOf(uint256)`."""
    return keccak(signature.encode())[:4]


def agent_wallet_digest(
    chain_id: int, identity: Address, *, agent_id: int, wallet: Address, owner: Address, deadline_s: int
) -> bytes:
    """Return the 32 bytes a wallet signs to be an agent's payee. There is no nonce: keep the deadline short."""
    domain = Domain("ERC8004IdentityRegistry", "1", chain_id, identity)
    words = (word_of_uint(agent_id), word_of_address(wallet), word_of_address(owner), word_of_uint(deadline_s))
    return signing_digest(domain.separator, keccak(_WALLET_TYPE_HASH + b"".join(words)))

"""Put ERC-8004 registries of our own on a local chain, at the addresses they have on test networks."""

from __future__ import annotations

from contracts.address import Address, address_text
from contracts.erc8004 import TEST_NETWORKS, selector
from contracts.evm.artifact import load_artifact
from contracts.evm.devnet import Devnet, DevnetFailed
from contracts.typed_data import word_of_address

__all__ = ["place_registries"]


def place_registries(devnet: Devnet) -> None:
    """Put the three registries in place and initialise them; a chain that has them already is left as it is.

    The registry's owner is the devnet's first account. Raises `DevnetFailed`.
    """
    if devnet.rpc("eth_getCode", address_text(TEST_NETWORKS.identity), "latest") != "0x":
        return
    of_identity = selector("initialize(address)") + word_of_address(TEST_NETWORKS.identity)
    _place(devnet, "TestIdentityRegistry", TEST_NETWORKS.identity, selector("initialize()"))
    _place(devnet, "TestReputationRegistry", TEST_NETWORKS.reputation, of_identity)
    _place(devnet, "TestValidationRegistry", TEST_NETWORKS.validation, of_identity)


def _place(devnet: Devnet, artifact_name: str, address: Address, initialize: bytes) -> None:
    to = address_text(address)
    devnet.rpc("anvil_setCode", to, load_artifact(artifact_name).deployed_bytecode)
    receipt = devnet.send(devnet.accounts[0].address, to, initialize)
    if receipt["status"] != "0x1":
        raise DevnetFailed(f"{artifact_name}: initialize reverted")

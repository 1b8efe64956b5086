"""Transactions on the registries of a local chain, as agents, buyers and validators would send them."""

from __future__ import annotations

from typing import Any

from eth_abi.abi import decode, encode

from contracts.address import address_text
from contracts.erc8004 import TEST_NETWORKS, agent_wallet_digest, selector
from contracts.evm.devnet import Devnet
from contracts.signature import SigningKey

__all__ = ["IDENTITY", "REPUTATION", "VALIDATION", "Registrar", "data_of"]

IDENTITY = address_text(TEST_NETWORKS.identity)
REPUTATION = address_text(TEST_NETWORKS.reputation)
VALIDATION = address_text(TEST_NETWORKS.validation)


def data_of(signature: str, *values: Any) -> bytes:
    """Return the call data of `signature`, as `ownerOf(uint256)`, with its values."""
    inside = signature[signature.index("(") + 1 : -1]
    return selector(signature) + encode(_types(inside), values)


def _types(text: str) -> list[str]:
    types, depth, current = [], 0, ""
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            types.append(current)
            current = ""
        else:
            current += character
    return [*types, current] if current else []


class Registrar:
    """Sends one transaction a block to the registries of `devnet`; accounts are named by their index."""

    def __init__(self, devnet: Devnet) -> None:
        self.devnet = devnet

    def account(self, index: int) -> str:
        return self.devnet.accounts[index].address

    def send(self, sender: int, to: str, signature: str, *values: Any) -> dict[str, Any]:
        receipt = self.devnet.send(self.account(sender), to, data_of(signature, *values))
        assert receipt["status"] == "0x1", signature
        return receipt

    def call(self, to: str, signature: str, *values: Any, returns: tuple[str, ...], block: str = "latest") -> Any:
        result = self.devnet.rpc("eth_call", {"to": to, "data": "0x" + data_of(signature, *values).hex()}, block)
        found = decode(returns, bytes.fromhex(result[2:]))
        return found[0] if len(found) == 1 else found

    def register(self, owner: int, uri: str) -> int:
        receipt = self.send(owner, IDENTITY, "register(string)", uri)
        registered = [log for log in receipt["logs"] if log["topics"][0].startswith("0xca52e62c")]
        return int(registered[0]["topics"][1], 16)

    def set_uri(self, owner: int, agent_id: int, uri: str) -> None:
        self.send(owner, IDENTITY, "setAgentURI(uint256,string)", agent_id, uri)

    def set_metadata(self, owner: int, agent_id: int, key: str, value: bytes) -> None:
        self.send(owner, IDENTITY, "setMetadata(uint256,string,bytes)", agent_id, key, value)

    def transfer(self, owner: int, to: int, agent_id: int) -> None:
        accounts = self.account(owner), self.account(to)
        self.send(owner, IDENTITY, "transferFrom(address,address,uint256)", *accounts, agent_id)

    def wallet_proof(self, owner: int, wallet: int, agent_id: int, deadline_s: int) -> bytes:
        key = SigningKey(self.devnet.accounts[wallet].key)
        owner_key = SigningKey(self.devnet.accounts[owner].key)
        digest = agent_wallet_digest(
            self.devnet.chain_id,
            TEST_NETWORKS.identity,
            agent_id=agent_id,
            wallet=key.address,
            owner=owner_key.address,
            deadline_s=deadline_s,
        )
        return key.sign(digest)

    def chain_time_s(self) -> int:
        return int(self.devnet.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def set_wallet(self, owner: int, wallet: int, agent_id: int) -> None:
        deadline_s = self.chain_time_s() + 240
        proof = self.wallet_proof(owner, wallet, agent_id, deadline_s)
        signature = "setAgentWallet(uint256,address,uint256,bytes)"
        self.send(owner, IDENTITY, signature, agent_id, self.account(wallet), deadline_s, proof)

    def rate(self, client: int, agent_id: int, value: int = 90, tag: str = "starred", uri: str = "") -> None:
        signature = "giveFeedback(uint256,int128,uint8,string,string,string,string,bytes32)"
        values = (agent_id, value, 0, tag, "", "https://agent.example/v1", uri, bytes(32))
        self.send(client, REPUTATION, signature, *values)

    def revoke(self, client: int, agent_id: int, index: int) -> None:
        self.send(client, REPUTATION, "revokeFeedback(uint256,uint64)", agent_id, index)

    def answer(self, responder: int, client: int, agent_id: int, index: int) -> None:
        signature = "appendResponse(uint256,address,uint64,string,bytes32)"
        self.send(responder, REPUTATION, signature, agent_id, self.account(client), index, "https://reply", bytes(32))

    def town(self) -> None:
        """Register agents and let everything happen to them that a registry logs: some sixty blocks."""
        for number in range(20):
            self.register(number % 4, f"https://agent{number}.example/card.json")
        for number in (3, 7, 11):
            self.set_uri(number % 4, number, f"https://moved{number}.example/card.json")
            self.set_metadata(number % 4, number, "x402.supported", b"\x01")
        for number in (0, 4, 8):
            self.transfer(0, 5, number)
        self.set_wallet(5, 6, 4)
        self.set_metadata(3, 3, "x402.supported", b"")
        for client in (7, 8, 9):
            for number in (1, 2, 3):
                self.rate(client, number, value=60 + client)
        self.rate(7, 1)
        self.revoke(8, 2, 1)
        self.answer(2, 7, 2, 1)
        self.set_uri(1, 13, "data:application/json,%7B%22name%22%3A%22last%22%7D")

"""Our stand-ins for the registries behave as the ones on chain: functions, events, reverts, proofs, ids from 0."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.erc8004 import COUNTER_SLOT, TEST_NETWORKS, selector
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.evm.rpc import RpcRefused
from contracts.keccak import keccak
from tests.registry.ledger_of_agents import IDENTITY, REPUTATION, VALIDATION, Registrar, data_of

ZERO = "0x" + 40 * "0"


@pytest.fixture
def registrar(chain: Devnet) -> Registrar:
    place_registries(chain)
    return Registrar(chain)


def topics(receipt: dict[str, Any]) -> list[str]:
    return [log["topics"][0][:10] for log in receipt["logs"]]


def refused(registrar: Registrar, sender: int, to: str, signature: str, *values: Any) -> str:
    call = {"from": registrar.account(sender), "to": to, "data": "0x" + data_of(signature, *values).hex()}
    with pytest.raises(RpcRefused) as refusal:
        registrar.devnet.rpc("eth_call", call, "latest")
    return f"{refusal.value.message} {refusal.value.data}"


# Selectors and topics as the reference contracts' ABI has them.
@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("register()", "1aa3a008"),
        ("register(string)", "f2c298be"),
        ("register(string,(string,bytes)[])", "8ea42286"),
        ("setAgentURI(uint256,string)", "0af28bd3"),
        ("tokenURI(uint256)", "c87b56dd"),
        ("getMetadata(uint256,string)", "cb4799f2"),
        ("setMetadata(uint256,string,bytes)", "466648da"),
        ("getAgentWallet(uint256)", "00339509"),
        ("setAgentWallet(uint256,address,uint256,bytes)", "2d1ef5ae"),
        ("unsetAgentWallet(uint256)", "3fddcf19"),
        ("isAuthorizedOrOwner(address,uint256)", "d95e72be"),
        ("eip712Domain()", "84b0196e"),
        ("getVersion()", "0d8e6e2c"),
        ("upgradeToAndCall(address,bytes)", "4f1ef286"),
    ],
)
def test_the_identity_registry_has_the_functions_of_the_interface(
    registrar: Registrar, signature: str, expected: str
) -> None:
    assert selector(signature).hex() == expected
    assert expected.lstrip("0") in registrar.devnet.rpc("eth_getCode", IDENTITY, "latest")


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("giveFeedback(uint256,int128,uint8,string,string,string,string,bytes32)", "3c036a7e"),
        ("revokeFeedback(uint256,uint64)", "4ab3ca99"),
        ("appendResponse(uint256,address,uint64,string,bytes32)", "c2349ab2"),
        ("getSummary(uint256,address[],string,string)", "81bbba58"),
        ("readFeedback(uint256,address,uint64)", "232b0810"),
        ("readAllFeedback(uint256,address[],string,string,bool)", "d9d84224"),
        ("getClients(uint256)", "42dd519c"),
        ("getLastIndex(uint256,address)", "f2d81759"),
        ("getResponseCount(uint256,address,uint64,address[])", "6e04cacd"),
        ("getIdentityRegistry()", "bc4d861b"),
    ],
)
def test_the_reputation_registry_has_the_functions_of_the_interface(
    registrar: Registrar, signature: str, expected: str
) -> None:
    assert selector(signature).hex() == expected
    assert expected in registrar.devnet.rpc("eth_getCode", REPUTATION, "latest")


def test_ids_count_from_zero_and_one_storage_word_is_their_number(registrar: Registrar) -> None:
    assert [registrar.register(owner, "https://a.example") for owner in (0, 1, 0)] == [0, 1, 2]
    assert int(registrar.devnet.rpc("eth_getStorageAt", IDENTITY, hex(COUNTER_SLOT), "latest"), 16) == 3


def test_a_registration_is_logged_in_the_canonical_order(registrar: Registrar) -> None:
    entries = [("x402.supported", b"\x01"), ("AgentWallet", b"another key")]
    receipt = registrar.send(0, IDENTITY, "register(string,(string,bytes)[])", "https://a.example", entries)
    transfer, updated, registered, metadata = "0xddf252ad", "0xf8e1a15a", "0xca52e62c", "0x2c149ed5"
    assert topics(receipt) == [transfer, updated, registered, metadata, metadata, metadata]
    assert topics(registrar.send(0, IDENTITY, "register()")) == [transfer, registered, metadata]


def test_a_missing_agent_reverts_for_its_owner_and_uri_but_reads_as_without_wallet(registrar: Registrar) -> None:
    for signature in ("ownerOf(uint256)", "tokenURI(uint256)"):
        assert "0x7e273289" in refused(registrar, 0, IDENTITY, signature, 7)
    assert registrar.call(IDENTITY, "getAgentWallet(uint256)", 7, returns=("address",)) == ZERO


def test_a_transfer_clears_the_wallet_before_it_is_logged(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "https://a.example")
    wallet = registrar.call(IDENTITY, "getAgentWallet(uint256)", agent_id, returns=("address",))
    assert wallet == registrar.account(0).lower()
    accounts = registrar.account(0), registrar.account(1)
    receipt = registrar.send(0, IDENTITY, "transferFrom(address,address,uint256)", *accounts, agent_id)
    assert topics(receipt) == ["0x2c149ed5", "0xddf252ad"]
    assert registrar.call(IDENTITY, "getAgentWallet(uint256)", agent_id, returns=("address",)) == ZERO


def test_the_reserved_key_is_refused_in_its_own_spelling_only(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "")
    said = refused(registrar, 0, IDENTITY, "setMetadata(uint256,string,bytes)", agent_id, "agentWallet", b"x")
    assert "reserved key" in said
    registrar.set_metadata(0, agent_id, "AgentWallet", b"x")
    assert "Not authorized" in refused(registrar, 1, IDENTITY, "setAgentURI(uint256,string)", agent_id, "https://b")


def test_a_wallet_joins_by_its_own_signature(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "")
    registrar.set_wallet(0, 3, agent_id)
    wallet = registrar.call(IDENTITY, "getAgentWallet(uint256)", agent_id, returns=("address",))
    assert wallet == registrar.account(3).lower()


@pytest.mark.parametrize(
    ("signer", "ahead_s", "said"),
    [(3, -1, "expired"), (3, 400, "deadline too far"), (4, 240, "invalid wallet sig")],
)
def test_a_wallet_proof_is_refused_when(registrar: Registrar, signer: int, ahead_s: int, said: str) -> None:
    agent_id = registrar.register(0, "")
    deadline_s = registrar.chain_time_s() + ahead_s
    proof = registrar.wallet_proof(0, signer, agent_id, deadline_s)
    signature = "setAgentWallet(uint256,address,uint256,bytes)"
    assert said in refused(registrar, 0, IDENTITY, signature, agent_id, registrar.account(3), deadline_s, proof)


def test_owners_may_not_rate_but_wallets_and_former_owners_may(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "")
    registrar.set_wallet(0, 3, agent_id)
    rate = "giveFeedback(uint256,int128,uint8,string,string,string,string,bytes32)"
    values = (agent_id, 100, 0, "starred", "", "", "", bytes(32))
    assert "Self-feedback not allowed" in refused(registrar, 0, REPUTATION, rate, *values)
    registrar.rate(3, agent_id)
    registrar.transfer(0, 1, agent_id)
    registrar.rate(0, agent_id)
    clients = registrar.call(REPUTATION, "getClients(uint256)", agent_id, returns=("address[]",))
    assert clients == (registrar.account(3).lower(), registrar.account(0).lower())


def test_a_summary_needs_clients_and_counts_one_named_twice_twice(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "")
    registrar.rate(1, agent_id, value=87)
    registrar.rate(2, agent_id, value=-50)
    summary = "getSummary(uint256,address[],string,string)"
    assert "clientAddresses required" in refused(registrar, 0, REPUTATION, summary, agent_id, [], "", "")
    one, other = registrar.account(1), registrar.account(2)
    returns = ("uint64", "int128", "uint8")
    assert registrar.call(REPUTATION, summary, agent_id, [one, other], "", "", returns=returns) == (2, 18, 0)
    assert registrar.call(REPUTATION, summary, agent_id, [one, one], "", "", returns=returns) == (2, 87, 0)
    assert registrar.call(REPUTATION, summary, agent_id, [one], "uptime", "", returns=returns) == (0, 0, 0)


def test_feedback_can_be_revoked_by_its_author_and_answered_by_anybody(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "")
    registrar.rate(1, agent_id)
    registrar.revoke(1, agent_id, 1)
    registrar.answer(5, 1, agent_id, 1)
    read = "readFeedback(uint256,address,uint64)"
    returns = ("int128", "uint8", "string", "string", "bool")
    found = registrar.call(REPUTATION, read, agent_id, registrar.account(1), 1, returns=returns)
    assert found == (90, 0, "starred", "", True)
    assert "index out of bounds" in refused(registrar, 2, REPUTATION, "revokeFeedback(uint256,uint64)", agent_id, 1)


def test_a_named_validator_answers_a_request_and_nobody_else(registrar: Registrar) -> None:
    agent_id = registrar.register(0, "")
    request = keccak(b"request")
    asking = "validationRequest(address,uint256,string,bytes32)"
    registrar.send(0, VALIDATION, asking, registrar.account(4), agent_id, "https://r.example", request)
    answering = "validationResponse(bytes32,uint8,string,bytes32,string)"
    assert "not validator" in refused(registrar, 5, VALIDATION, answering, request, 100, "", bytes(32), "")
    registrar.send(4, VALIDATION, answering, request, 80, "", bytes(32), "tee")
    summary = "getSummary(uint256,address[],string)"
    assert registrar.call(VALIDATION, summary, agent_id, [], "", returns=("uint64", "uint8")) == (1, 80)


def test_the_domain_of_wallet_proofs_names_the_proxy(registrar: Registrar) -> None:
    returns = ("bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]")
    _, name, version, chain_id, contract, _, _ = registrar.call(IDENTITY, "eip712Domain()", returns=returns)
    assert (name, version, chain_id) == ("ERC8004IdentityRegistry", "1", 31337)
    assert bytes.fromhex(contract[2:]) == TEST_NETWORKS.identity

"""Goal: a rating is paid only when the chain shows it: this payer, this agent, real money, before, and never twice.

Method: one good claim with its receipt, one fact changed at a time; then the whole way, with a payment on a chain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.address import Address, address_text
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.keccak import keccak
from contracts.networks import ASSETS, Network
from contracts.storage import Connection
from contracts.typed_data import word_of_address, word_of_uint
from registry.candidates import find_candidate
from registry.index import Index
from registry.proofs import Claim, is_paid, prove_payments, read_claim
from registry.ratings import read_reputation
from tests.registry.ledger_of_agents import IDENTITY, Registrar
from tests.registry.shelf import CHAIN_ID, NOW_S, OWNER, WALLET, add_agent, agent, shelf
from tests.registry.strangers import strangers

CLIENT, OTHER = Address(b"\x0c" * 20), Address(b"\x0d" * 20)
BASE = Network(8453)
USDC = ASSETS[8453][0].address
TRANSACTION = b"\x07" * 32
CLAIM = Claim(CLIENT, 1, TRANSACTION, 100)
ROW = {"client": CLIENT, "feedback_index": 1, "block": 100}
TRANSFER = "0x" + keccak(b"Transfer(address,address,uint256)").hex()


def word(address: Address) -> str:
    return "0x" + word_of_address(address).hex()


def receipt(
    *,
    status: str = "0x1",
    block: int = 99,
    token: Address = USDC,
    payer: Address = CLIENT,
    payee: Address = WALLET,
    value: int = 1000,
    topic: str = TRANSFER,
) -> dict[str, Any]:
    log = {"address": address_text(token), "topics": [topic, word(payer), word(payee)], "data": hex(value)}
    return {"status": status, "blockNumber": hex(block), "logs": [{"address": "0x", "topics": [], "data": "0x"}, log]}


def proof(**changes: Any) -> dict[str, Any]:
    stated = {
        "fromAddress": address_text(CLIENT),
        "toAddress": address_text(WALLET),
        "chainId": 8453,
        "txHash": "0x" + TRANSACTION.hex(),
    }
    return {"proofOfPayment": {**stated, **changes}}


def test_a_payment_of_the_reviewer_to_the_agent_before_the_rating_proves_it() -> None:
    assert is_paid(CLAIM, receipt(), (OWNER, WALLET), BASE)
    assert is_paid(CLAIM, receipt(block=100, payee=OWNER), (OWNER, WALLET), BASE)


@pytest.mark.parametrize(
    "wrong",
    [
        receipt(status="0x0"),
        receipt(block=101),
        receipt(payer=OTHER),
        receipt(payee=OTHER),
        receipt(value=0),
        receipt(token=OTHER),
        receipt(topic="0x" + keccak(b"Approval(address,address,uint256)").hex()),
        {"status": "0x1"},
        None,
        "nonsense",
    ],
)
def test_anything_else_proves_nothing(wrong: Any) -> None:
    assert not is_paid(CLAIM, wrong, (OWNER, WALLET), BASE)


@pytest.mark.parametrize("spelled", [{}, {"chainId": "8453"}, {"fromAddress": f"eip155:8453:{address_text(CLIENT)}"}])
def test_a_claim_is_read_in_every_spelling_in_use(spelled: dict[str, Any]) -> None:
    assert read_claim(proof(**spelled), ROW, 8453) == CLAIM


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"proofOfPayment": "paid, honestly"},
        proof(chainId=1),
        proof(fromAddress=address_text(OTHER)),
        proof(txHash="0x12"),
        proof(txHash=None),
    ],
)
def test_a_claim_of_somebody_else_elsewhere_or_of_nothing_is_none(document: Any) -> None:
    assert read_claim(document, ROW, 8453) is None


def _rate(index: Index, client: Address, number: int, uri: str, file_hash: bytes, *, agent_number: int = 1) -> None:
    def insert(connection: Connection) -> None:
        (log_index,) = connection.execute("SELECT count(*) FROM feedback_events").fetchone()
        connection.execute(
            "INSERT INTO feedback_events (chain_id, block, log_index, transaction_hash, block_hash, time_s, kind,"
            " agent_id, client, feedback_index, value, decimals, tag1, uri, file_hash)"
            " VALUES (?, 1000, ?, x'00', x'00', ?, 'given', ?, ?, ?, '80', 0, 'starred', ?, ?)",
            (CHAIN_ID, log_index, NOW_S, agent_number, client, number, uri, file_hash),
        )

    index.database.transact(insert)


async def test_a_payment_stands_behind_one_rating_and_only_of_the_file_that_was_rated_with(
    chain: Devnet, tmp_path: Path
) -> None:
    payer = chain.accounts[3].address
    client, wallet = (Address(bytes.fromhex(account.address[2:])) for account in chain.accounts[3:5])
    chain.mint(payer, 3000)
    transfer = keccak(b"transfer(address,uint256)")[:4] + word_of_address(wallet) + word_of_uint(1000)
    paid = [chain.send(payer, chain.token, transfer)["transactionHash"] for _ in range(2)]
    files = [json.dumps(proof(chainId=CHAIN_ID, txHash=each, fromAddress=payer)).encode() for each in paid]
    with shelf(tmp_path) as index:
        add_agent(index, 1, "", owner=OWNER, wallet=wallet)
        async with strangers() as web, web.fetcher() as fetcher:
            uris = [web.page("files", f"/{at}", data) for at, data in enumerate(files)]
            _rate(index, client, 1, uris[0], keccak(files[0]))
            _rate(index, client, 2, uris[0], keccak(files[0]))
            _rate(index, OTHER, 1, uris[0], keccak(files[0]))
            _rate(index, client, 3, uris[1], b"\x01" * 32)
            candidate = index.database.read(lambda connection: find_candidate(connection, f"{CHAIN_ID}:1"))
            assert await prove_payments(index.database, fetcher, candidate, [chain.rpc_url], NOW_S) == 1
            assert await prove_payments(index.database, fetcher, candidate, [chain.rpc_url], NOW_S) == 0
        reputation = index.database.read(lambda connection: read_reputation(connection, agent(1), [], NOW_S))
    (stars,) = reputation.tags
    assert (stars.raw, stars.paid) == (4, 1)
    assert reputation.score == pytest.approx(0.8)


async def test_an_operator_of_the_agent_proves_nothing_by_paying_it(chain: Devnet, tmp_path: Path) -> None:
    place_registries(chain)
    registrar = Registrar(chain)
    number = registrar.register(4, "")
    registrar.send(4, IDENTITY, "setApprovalForAll(address,bool)", registrar.account(3), True)
    payer = chain.accounts[3].address
    client, owner = (Address(bytes.fromhex(account.address[2:])) for account in chain.accounts[3:5])
    chain.mint(payer, 1000)
    transfer = keccak(b"transfer(address,uint256)")[:4] + word_of_address(owner) + word_of_uint(1000)
    paid = chain.send(payer, chain.token, transfer)["transactionHash"]
    file = json.dumps(proof(chainId=CHAIN_ID, txHash=paid, fromAddress=payer)).encode()
    with shelf(tmp_path) as index:
        add_agent(index, number, "", owner=owner, wallet=owner)
        async with strangers() as web, web.fetcher() as fetcher:
            _rate(index, client, 1, web.page("files", "/", file), keccak(file), agent_number=number)
            candidate = index.database.read(lambda connection: find_candidate(connection, f"{CHAIN_ID}:{number}"))
            assert await prove_payments(index.database, fetcher, candidate, [chain.rpc_url], NOW_S) == 0
            registrar.send(4, IDENTITY, "setApprovalForAll(address,bool)", registrar.account(3), False)
            assert await prove_payments(index.database, fetcher, candidate, [chain.rpc_url], NOW_S) == 1

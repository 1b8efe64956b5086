"""Proofs of payment behind ratings: what a feedback file claims, looked up on chain.

Nothing in the registry checks a claimed payment, so it counts only here: the transaction succeeded, before the rating,
on the agent's chain, moved a known token from the reviewer to the agent, and stands behind no other rating; and the
reviewer is none of the agent's operators now. Source:
ERC-8004, "Off-Chain Feedback File Structure" (`proofOfPayment`); EIP-20 (Transfer).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from contracts.address import Address
from contracts.erc8004 import selector
from contracts.evm.rpc import Rpc
from contracts.evm.token import call_object
from contracts.fields import hex_bytes
from contracts.keccak import keccak
from contracts.networks import DEVNET_CHAIN_ID, Network, find_asset
from contracts.storage import Connection, Database, Row
from contracts.typed_data import word_of_address, word_of_uint
from registry.agent_id import AgentId
from registry.candidates import Candidate
from registry.documents import read_json
from registry.fetch import Fetcher
from registry.limits import DOCUMENT_BYTES_MAX, PROOFS_RUN_MAX
from registry.ratings import related_to
from registry.retrieve import Gateways, retrieve

__all__ = ["Claim", "is_paid", "prove_payments", "read_claim"]

_IS_AUTHORIZED = selector("isAuthorizedOrOwner(address,uint256)")
_TRANSFER = keccak(b"Transfer(address,address,uint256)")
_UNPROVEN = """
    SELECT client, feedback_index, uri, file_hash, block FROM feedback_events
    WHERE chain_id = ? AND agent_id = ? AND kind = 'given' AND uri <> '' AND NOT EXISTS (
        SELECT 1 FROM payment_proofs AS proofs
        WHERE proofs.chain_id = feedback_events.chain_id AND proofs.agent_id = feedback_events.agent_id
            AND proofs.client = feedback_events.client AND proofs.feedback_index = feedback_events.feedback_index)
    ORDER BY block DESC, log_index DESC LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A payment that a feedback file claims; `block` is the one of the rating, before which it must have been."""

    client: Address
    feedback_index: int
    transaction: bytes
    block: int


async def prove_payments(
    database: Database,
    fetcher: Fetcher,
    candidate: Candidate,
    rpc_urls: Sequence[str],
    now_s: int,
    *,
    gateways: Gateways | None = None,
) -> int:
    """Look for payments behind the ratings of an agent, keep those that hold, and return how many did.

    Raises `ConfigInvalid` without `rpc_urls`, `ChainUnavailable`.
    """
    agent = candidate.agent
    rows = database.read(
        lambda connection: connection.execute(_UNPROVEN, (agent.chain_id, agent.number, PROOFS_RUN_MAX)).fetchall()
    )
    related = database.read(partial(related_to, agent=agent))
    strangers = [row for row in rows if Address(row["client"]) not in related]
    async with Rpc(rpc_urls) as rpc:
        found = await asyncio.gather(*(_claim(row, agent, fetcher, gateways or Gateways()) for row in strangers))
        claims = [claim for claim in found if claim is not None]
        receipts = await rpc.batch(
            [("eth_getTransactionReceipt", ["0x" + claim.transaction.hex()]) for claim in claims]
        )
        operators = await rpc.batch([("eth_call", [_is_operator_call(agent, claim), "latest"]) for claim in claims])
    held = [
        claim
        for claim, receipt, operator in zip(claims, receipts, operators, strict=True)
        if is_paid(claim, receipt, related, agent.network) and not _is_yes(operator)
    ]
    return database.transact(partial(_keep, agent=agent, claims=held, now_s=now_s))


def read_claim(document: Any, row: Row | dict[str, Any], chain_id: int) -> Claim | None:
    """Return the payment that a decoded feedback file claims for the rating in `row`, or None. Pure; never raises."""
    proof = document.get("proofOfPayment") if isinstance(document, dict) else None
    if not isinstance(proof, dict) or str(proof.get("chainId")) not in (str(chain_id), f"eip155:{chain_id}"):
        return None
    payer = proof.get("fromAddress")
    # CAIP-10 in some files, the bare address in others.
    sender = hex_bytes(payer.rpartition(":")[2] if isinstance(payer, str) else None)
    transaction = hex_bytes(proof.get("txHash"))
    if sender != row["client"] or transaction is None or len(transaction) != 32:
        return None
    return Claim(Address(row["client"]), row["feedback_index"], transaction, row["block"])


def is_paid(claim: Claim, receipt: Any, payees: Collection[Address], network: Network) -> bool:
    """Tell whether a transaction's receipt shows the claimed payment to one of `payees`. Pure; never raises."""
    try:
        if receipt["status"] != "0x1" or int(receipt["blockNumber"], 16) > claim.block:
            return False
        return any(_is_payment(log, claim.client, payees, network) for log in receipt["logs"])
    except (TypeError, KeyError, ValueError):
        return False


def _is_payment(log: dict[str, Any], client: Address, payees: Collection[Address], network: Network) -> bool:
    topics = [hex_bytes(topic) or b"" for topic in log["topics"]]
    if len(topics) != 3 or topics[0] != _TRANSFER:
        return False
    token = Address(hex_bytes(log["address"]) or b"")
    # Anybody can make a token and send it about.
    is_money = network.chain_id == DEVNET_CHAIN_ID or find_asset(network, token) is not None
    return is_money and topics[1][12:] == client and Address(topics[2][12:]) in payees and int(log["data"], 16) > 0


def _is_operator_call(agent: AgentId, claim: Claim) -> dict[str, str]:
    return call_object(agent.registry, _IS_AUTHORIZED + word_of_address(claim.client) + word_of_uint(agent.number))


def _is_yes(answer: Any) -> bool:
    """Tell whether a call answered `true`; one that was refused did not."""
    return isinstance(answer, str) and answer.startswith("0x") and answer[2:].strip("0") == "1"


async def _claim(row: Row, agent: AgentId, fetcher: Fetcher, gateways: Gateways) -> Claim | None:
    found = await retrieve(row["uri"], fetcher, gateways)
    if found.data is None:
        return None
    stated = row["file_hash"]
    if stated is not None and any(stated) and keccak(found.data) != stated:
        return None  # not the file that was rated with
    return read_claim(read_json(found.data, DOCUMENT_BYTES_MAX)[0], row, agent.chain_id)


def _keep(connection: Connection, agent: AgentId, claims: Sequence[Claim], now_s: int) -> int:
    kept = 0
    for claim in claims:
        kept += connection.execute(
            "INSERT INTO payment_proofs (chain_id, agent_id, client, feedback_index, transaction_hash, checked_at_s)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (agent.chain_id, agent.number, claim.client, claim.feedback_index, claim.transaction, now_s),
        ).rowcount
    return kept

"""Posting a rating: the paid call behind it is looked up in the receipts, proven on chain, and rated once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from buyer.receipts import Receipt
from contracts.address import Address, address_text, parse_address
from contracts.errors import NameUnknown, UsageError
from contracts.evm.rpc import Rpc
from contracts.evm.token import count_of
from contracts.fields import hex_bytes
from gateway.sending import Sending, Sent
from registry.agent_id import AgentId
from registry.chains import RegistryChain
from registry.feedback import PaidCallFacts, Verdict, feedback_call, feedback_file, feedback_uri
from registry.index import Index
from registry.proofs import Claim, is_paid
from registry.reading import AgentFacts, check_registries, read_agents
from registry.sync import sync_chain

__all__ = ["Posted", "post_feedback"]


@dataclass(slots=True)
class Posted:
    """What was posted, or with a dry run would be. `changed` is False for a call that was rated with this before."""

    agent: AgentId
    payment: str
    file: str
    changed: bool
    sent: Sent = field(default_factory=Sent)

    def document(self, *, dry_run: bool) -> dict[str, Any]:
        """Return it as the run's JSON document."""
        return {
            "ok": True,
            "dry_run": dry_run,
            "agent": str(self.agent),
            "payment": self.payment,
            "file": self.file,
            "changed": self.changed,
            **self.sent.document(),
        }


async def post_feedback(
    index: Index,
    chain: RegistryChain,
    number: int,
    verdict: Verdict,
    *,
    receipts: Sequence[Receipt],
    sending: Sending,
    rpc_urls: Sequence[str],
) -> Posted:
    """Rate agent `number` for the newest of `receipts` that paid it, with proof.

    Raises `NameUnknown` for no such agent or no such call, `UsageError` when the payer is not the signer or the chain
    does not show the payment, and what sending raises.
    """
    agent = AgentId(chain.chain_id, chain.identity, number)
    async with Rpc(rpc_urls) as rpc:
        if not await check_registries(rpc, chain):
            raise UsageError(f"rpc: the endpoint does not serve {chain.network.label}")
        facts = (await read_agents(rpc, chain, [number]))[number]
        paid = _paid_call(agent, facts, receipts, sending.signer.address)
        await _check_payment(rpc, chain, facts, paid)
        await sync_chain(index, chain, rpc_urls)
        file = feedback_file(agent, verdict, paid)
        posted = Posted(agent, paid.transaction, file.decode(), changed=not _is_rated(index, agent, paid.payer, file))
        if posted.changed:
            call = feedback_call(chain.reputation, agent, verdict, paid.endpoint, file)
            what = f"rating agent {number} for everybody to see, with {paid.transaction} as its proof"
            await sending.send(rpc, call, what, posted.sent)
    return posted


def _paid_call(agent: AgentId, facts: AgentFacts, receipts: Sequence[Receipt], payer: Address) -> PaidCallFacts:
    """Return the newest settled call that paid the agent's wallet or owner from the signer's address."""
    if facts.owner is None:
        raise NameUnknown(f"{agent}: there is no such agent", remedy="check the id")
    payees = {address for address in (facts.owner, facts.wallet) if address is not None}
    to_it = [each for each in receipts if each.network == agent.network.caip2 and _address(each.payee) in payees]
    settled = [each for each in to_it if each.transaction is not None]
    own = [each for each in settled if _address(each.payer) == payer]
    if own:
        newest = max(own, key=lambda receipt: receipt.at_s)
        assert newest.transaction is not None
        return PaidCallFacts(payer, _address(newest.payee), newest.transaction, newest.endpoint, newest.at_s)
    if settled:
        raise UsageError(
            f"--signer: {address_text(payer)} did not pay {agent}, {settled[0].payer} did",
            remedy="rate it with the wallet that paid",
        )
    if to_it:
        raise NameUnknown(
            f"{agent}: no transaction of a payment to it is known yet",
            remedy="run `farebox process --all` once it is settled",
        )
    raise NameUnknown(f"{agent}: no paid call to its owner or wallet is among the receipts", remedy="buy from it first")


async def _check_payment(rpc: Rpc, chain: RegistryChain, facts: AgentFacts, paid: PaidCallFacts) -> None:
    """Post nothing that others would find unproven."""
    receipt, head = await rpc.batch([("eth_getTransactionReceipt", [paid.transaction]), ("eth_blockNumber", [])])
    payees = [address for address in (facts.owner, facts.wallet) if address is not None]
    claim = Claim(paid.payer, 0, hex_bytes(paid.transaction) or b"", count_of(head, "eth_blockNumber"))
    if not is_paid(claim, receipt, payees, chain.network):
        raise UsageError(
            f"{paid.transaction}: does not show a payment from {address_text(paid.payer)} to the agent",
            remedy="wait until it is mined, or rate another agent",
        )


def _is_rated(index: Index, agent: AgentId, client: Address, file: bytes) -> bool:
    place = (agent.chain_id, agent.number, client, feedback_uri(file))
    return (
        index.database.read(
            lambda connection: connection.execute(
                "SELECT 1 FROM feedback_events WHERE chain_id = ? AND agent_id = ? AND client = ? AND uri = ?"
                " AND kind = 'given'",
                place,
            ).fetchone()
        )
        is not None
    )


def _address(text: str) -> Address:
    return parse_address(text)

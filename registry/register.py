"""Registering a seller: what the chain says of it already, and what is left to do. Nothing is signed or sent here.

A registration is never made twice by mistake: the wallet's own are looked up first, and one whose second step is
missing is finished. Ids are read from receipts; they cannot be predicted, for everybody registers in the same queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.address import Address, address_text
from contracts.erc8004 import agent_wallet_digest
from contracts.errors import ChainUnavailable, LocalRefusal, NameUnknown, UsageError
from contracts.evm.rpc import Rpc
from contracts.evm.token import read_head
from contracts.networks import DEVNET_CHAIN_ID
from contracts.schemes.authorization import Call
from registry.agent_id import AgentId
from registry.chains import RegistryChain
from registry.documents import read_document
from registry.events import decode_logs
from registry.index import Index
from registry.limits import URI_CHARS_MAX, WALLET_PROOF_S
from registry.reading import AgentFacts, check_registries, read_agents
from registry.registration import register_call, set_uri_call
from registry.sync import OnProgress, sync_chain
from registry.uri import locate

__all__ = [
    "AlreadyRegistered",
    "Need",
    "WalletProof",
    "check_idle",
    "check_uri",
    "own_agents",
    "read_own",
    "registered_number",
    "wallet_proof",
    "what_is_needed",
]


class AlreadyRegistered(LocalRefusal):
    """This wallet has registrations, and none of them is the one asked for."""

    code, exit_code = "already_registered", 2
    remedy = "change one with `farebox register set-uri`, or register another one with --another"


@dataclass(frozen=True, slots=True)
class Need:
    """What is left to do: `agent` is there already or None, `call` does the next step or is None when all is done."""

    agent: AgentId | None
    call: Call | None


@dataclass(frozen=True, slots=True)
class WalletProof:
    """What a wallet signs to become an agent's payee: 32 bytes, worthless after `deadline_s` (time of the chain)."""

    digest: bytes
    deadline_s: int


async def own_agents(
    index: Index, chain: RegistryChain, owner: Address, rpc_urls: Sequence[str], on_progress: OnProgress
) -> dict[int, AgentFacts]:
    """Return the agents of `owner` as the chain has them now; the index is brought up to date for it."""
    await sync_chain(index, chain, rpc_urls, on_progress=on_progress)
    rows = index.database.read(
        lambda connection: connection.execute(
            "SELECT agent_id FROM agents WHERE chain_id = ? AND owner = ? ORDER BY agent_id", (chain.chain_id, owner)
        ).fetchall()
    )
    async with Rpc(rpc_urls) as rpc:
        facts = await read_agents(rpc, chain, [row[0] for row in rows])
    return {number: fact for number, fact in facts.items() if fact.owner == owner}


async def read_own(rpc: Rpc, chain: RegistryChain, number: int, owner: Address) -> AgentFacts:
    """Return what the chain says of an agent. Raises `NameUnknown` when there is none, `UsageError` for another's."""
    if not await check_registries(rpc, chain):
        raise UsageError(f"rpc: the endpoint does not serve {chain.network.label}")
    facts = (await read_agents(rpc, chain, [number]))[number]
    if facts.owner is None:
        raise NameUnknown(f"agent {number}: there is none on {chain.network.label}", remedy="check the id")
    if facts.owner != owner:
        raise UsageError(
            f"agent {number}: belongs to {address_text(facts.owner)}, the signer is {address_text(owner)}",
            remedy="name the owner's wallet with --signer",
        )
    return facts


def what_is_needed(
    own: Mapping[int, AgentFacts],
    chain: RegistryChain,
    uri_of: Callable[[AgentId | None], str],
    *,
    inline_endpoint: str | None,
    another: bool,
) -> Need:
    """Return the next step towards an agent with the URI that `uri_of` gives for it (None: before it has an id).

    `inline_endpoint` is the seller's endpoint where the file goes into the URI: such a file names its own id, so it can
    only be set after the registration, and an older one of the same endpoint is replaced. Raises `AlreadyRegistered`.
    """
    agents = {AgentId(chain.chain_id, chain.identity, number): facts for number, facts in own.items()}
    for agent, facts in agents.items():
        if facts.uri == uri_of(agent):
            return Need(agent, None)
    for agent, facts in agents.items():
        if not facts.uri or (inline_endpoint is not None and _sells_at(facts.uri, inline_endpoint)):
            return Need(agent, set_uri_call(agent, uri_of(agent)))
    if agents and not another:
        numbers = ", ".join(str(agent.number) for agent in agents)
        raise AlreadyRegistered(f"this wallet owns agent {numbers} on {chain.network.label}, with another URI")
    return Need(None, register_call(chain.identity, uri_of(None) if inline_endpoint is None else ""))


def _sells_at(uri: str, endpoint: str) -> bool:
    """Tell whether a URI holds a whole file, and that file names `endpoint`."""
    data = locate(uri).data
    card = None if data is None else read_document(data).card
    return card is not None and any(service.endpoint == endpoint for service in card.services)


async def check_idle(rpc: Rpc, owner: Address) -> None:
    """Raise `LocalRefusal` while a transaction of the wallet waits to be mined: it may be this very registration."""
    latest, pending = await rpc.batch(
        [("eth_getTransactionCount", [address_text(owner), block]) for block in ("latest", "pending")]
    )
    if latest != pending:
        raise LocalRefusal(
            f"a transaction of {address_text(owner)} is still waiting to be mined",
            remedy="wait until it is mined, then run the command again",
        )


def registered_number(receipt: Mapping[str, Any], chain: RegistryChain, owner: Address) -> int:
    """Return the id that a receipt of `register` gives to `owner`. Raises `ChainUnavailable` when it names none."""
    block = int(receipt["blockNumber"], 16)
    events, _ = decode_logs(
        receipt["logs"], identity=chain.identity, reputation=chain.reputation, first_block=block, last_block=block
    )
    for event in events:
        if event.kind == "registered" and event.account == owner and event.agent_id is not None:
            return event.agent_id
    raise ChainUnavailable("the receipt names no registration", remedy="run the command again: it looks first")


async def wallet_proof(rpc: Rpc, agent: AgentId, wallet: Address, owner: Address) -> WalletProof:
    """Return what `wallet` has to sign now. The proof has no nonce, so it lives as short as it can."""
    deadline_s = (await read_head(rpc)).timestamp_s + WALLET_PROOF_S
    digest = agent_wallet_digest(
        agent.chain_id, agent.registry, agent_id=agent.number, wallet=wallet, owner=owner, deadline_s=deadline_s
    )
    return WalletProof(digest, deadline_s)


def check_uri(uri: str, chain: RegistryChain) -> None:
    """Raise `UsageError` for a URI that no buyer could read; plain http is for a chain of one's own."""
    readable = ("https://", "ipfs://", "data:", *(("http://",) if chain.chain_id == DEVNET_CHAIN_ID else ()))
    if not uri.startswith(readable) or len(uri) > URI_CHARS_MAX:
        raise UsageError("--uri: expected https://, ipfs:// or data:, as https://shop.example/agent.json")

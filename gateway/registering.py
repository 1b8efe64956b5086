"""Carrying a registration out: plan, price, ask, send, read the receipt, write the files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buyer.signers import KeySigner, Signer
from contracts.address import Address, address_text
from contracts.console import progress
from contracts.errors import UsageError
from contracts.evm.rpc import Rpc
from contracts.schemes.authorization import Call
from gateway.sending import Sending, Sent
from registry.agent_id import AgentId
from registry.chains import RegistryChain
from registry.index import Index
from registry.reading import AgentFacts
from registry.register import (
    check_idle,
    check_uri,
    own_agents,
    read_own,
    registered_number,
    wallet_proof,
    what_is_needed,
)
from registry.registration import (
    WELL_KNOWN_PATH,
    Seller,
    inline_uri,
    merged_agents,
    register_call,
    registration_file,
    set_uri_call,
    set_wallet_call,
)
from registry.sync import Progress

__all__ = ["Clerk", "Done", "write_well_known"]

# No registry has an id with more digits soon, so no URI that names its agent gets longer.
_LONG_NUMBER = 10**9


@dataclass(slots=True)
class Done:
    """What a command did, or with a dry run would do."""

    agent: AgentId | None
    changed: bool
    uri: str = ""
    sent: Sent = field(default_factory=Sent)
    file: str = ""
    notes: list[str] = field(default_factory=list)

    def document(self, *, dry_run: bool) -> dict[str, Any]:
        """Return it as the run's JSON document."""
        return {
            "ok": True,
            "dry_run": dry_run,
            "agent": None if self.agent is None else str(self.agent),
            "changed": self.changed,
            "uri": self.uri,
            **self.sent.document(),
            "file": self.file,
            "notes": self.notes,
        }


class Clerk:
    """Does the paperwork of one wallet on one chain, in the way `sending` says."""

    def __init__(self, chain: RegistryChain, sending: Sending, rpc_urls: Sequence[str]) -> None:
        self._chain = chain
        self._sending = sending
        self._signer = sending.signer
        self._rpc_urls = rpc_urls

    async def ensure(
        self, index: Index, seller: Seller, *, uri: str | None, inline: bool, another: bool, folder: Path
    ) -> Done:
        """Register the seller unless it is registered, and write its file with the id it then has."""
        own = await own_agents(index, self._chain, self._signer.address, self._rpc_urls, _show)

        def uri_of(agent: AgentId | None) -> str:
            if not inline:
                return uri or seller.well_known_url
            return inline_uri(registration_file(seller, [] if agent is None else [agent]))

        check_uri(uri_of(None), self._chain)
        if not self._sending.dry_run:
            _make_folder(folder)  # before anything is paid for
        done = Done(None, changed=False)
        for _ in range(2):  # a file inside its URI takes a second step
            endpoint = seller.endpoint if inline else None
            need = what_is_needed(own, self._chain, uri_of, inline_endpoint=endpoint, another=another)
            done.agent, done.uri = need.agent, uri_of(need.agent)
            if need.call is None:
                break
            receipt = await self._send(need.call, done, "registering" if need.agent is None else "setting its URI")
            if receipt is None:
                if inline and need.agent is None:
                    await self._price_second_step(uri_of, done)
                break
            agent = need.agent or self._agent(registered_number(receipt, self._chain, self._signer.address))
            own = {
                agent.number: AgentFacts(self._signer.address, None, uri_of(agent) if need.agent or not inline else "")
            }
            another = False
        if done.agent is not None and not self._sending.dry_run:
            done.file = write_well_known(folder, seller, [done.agent])
            await self._note_payee(done, seller)
        return done

    async def set_uri(self, number: int, uri: str) -> Done:
        """Change the URI of an own agent, unless it is that already."""
        check_uri(uri, self._chain)
        agent = self._agent(number)
        async with Rpc(self._rpc_urls) as rpc:
            facts = await read_own(rpc, self._chain, number, self._signer.address)
        done = Done(agent, changed=False, uri=uri)
        if facts.uri != uri:
            await self._send(set_uri_call(agent, uri), done, f"setting the URI of agent {number}")
        return done

    async def set_wallet(self, number: int, wallet: Signer) -> Done:
        """Make `wallet` the payee of an own agent, by a proof that it signs now."""
        agent = self._agent(number)
        async with Rpc(self._rpc_urls) as rpc:
            facts = await read_own(rpc, self._chain, number, self._signer.address)
            proof = await wallet_proof(rpc, agent, wallet.address, self._signer.address)
        done = Done(agent, changed=False, uri=facts.uri)
        if facts.wallet == wallet.address:
            return done
        if not isinstance(wallet, KeySigner):
            raise UsageError("--wallet: a remote signer cannot prove a wallet", remedy="use keyfile: or keystore:")
        call = set_wallet_call(agent, wallet.address, proof.deadline_s, wallet.sign_digest(proof.digest))
        await self._send(call, done, f"making {address_text(wallet.address)} the payee of agent {number}")
        return done

    async def _send(self, call: Call, done: Done, what: str) -> dict[str, Any] | None:
        """Send one call unless another of the wallet is still waiting; return its receipt, or None after a dry run."""
        async with Rpc(self._rpc_urls) as rpc:
            await check_idle(rpc, self._signer.address)
            done.changed = True
            return await self._sending.send(rpc, call, what, done.sent)

    async def _price_second_step(self, uri_of: Callable[[AgentId | None], str], done: Done) -> None:
        """Add what setting the URI will cost, priced as a registration with it: there is no id yet to set it for."""
        call = register_call(Address(self._chain.identity), uri_of(self._agent(_LONG_NUMBER)))
        async with Rpc(self._rpc_urls) as rpc:
            await self._sending.send(rpc, call, "setting its URI", done.sent)

    async def _note_payee(self, done: Done, seller: Seller) -> None:
        """Say so when buyers would refuse the seller, because the chain knows its payee as neither owner nor wallet."""
        assert done.agent is not None
        number, owner = done.agent.number, self._signer.address
        async with Rpc(self._rpc_urls) as rpc:
            facts = await read_own(rpc, self._chain, number, owner)
        if seller.pay_to not in (facts.owner, facts.wallet):
            done.notes.append(
                f"payments go to {address_text(seller.pay_to)}, which is neither owner nor wallet of this agent: buyers"
                f" will refuse it until `farebox register set-wallet {number}` names it"
            )

    def _agent(self, number: int) -> AgentId:
        return AgentId(self._chain.chain_id, Address(self._chain.identity), number)


def write_well_known(folder: Path, seller: Seller, agents: Sequence[AgentId]) -> str:
    """Write the file that proves `agents` under `folder`, keeping those it names already, and return its path."""
    path = folder / WELL_KNOWN_PATH
    _make_folder(folder)
    try:
        existing = path.read_bytes() if path.exists() else None
        listed = sorted({named for agent in agents for named in merged_agents(existing, agent)})
        draft = path.with_name(path.name + ".part")
        draft.write_bytes(registration_file(seller, listed))
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"--out: {path}: {error.strerror}") from None
    return str(path)


def _make_folder(folder: Path) -> None:
    path = (folder / WELL_KNOWN_PATH).parent
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {path}: {error.strerror}") from None


def _show(now: Progress) -> None:
    if now.blocks_total > now.blocks_done:
        progress(f"reading the registry: {now.blocks_done:,} of {now.blocks_total:,} blocks")

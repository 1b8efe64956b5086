"""Which agent of the registry a purchase is of, and whether it is still the one that is paid."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from buyer.home import Home
from buyer.pool import Pool
from buyer.purchase import Purchase
from contracts.address import Address, address_text, parse_address
from contracts.errors import StoreUnavailable, TermsNotAllowed
from registry.agent_id import AgentId, parse_agent_id

__all__ = ["agents_held", "forget_agent", "recheck", "remember_agent"]


class _Note(msgspec.Struct):
    agent: str
    pinned: str | None = None


def remember_agent(home: Home, name: str, agent: AgentId, pinned: Address | None) -> None:
    """Note the agent of a purchase; `pinned` is the payee where the user chose it over the registry's."""
    path = home.folder("agents") / name
    note = _Note(str(agent), None if pinned is None else address_text(pinned))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(note))


def forget_agent(home: Home, name: str) -> None:
    """Remove the note of a purchase, if there is one."""
    (home.path / "agents" / name).unlink(missing_ok=True)


def agents_held(pool: Pool) -> dict[str, str]:
    """Return the agent of each purchase that is one's, by the purchase's name. Raises `StoreUnavailable`."""
    notes = {purchase.name: _read(pool.home, purchase.name) for purchase in pool.purchases()}
    return {name: note.agent for name, note in notes.items() if note is not None}


async def recheck(home: Home, purchase: Purchase, rpc_urls: Sequence[str]) -> None:
    """Before more is signed: raise `TermsNotAllowed` when the agent of a purchase is paid elsewhere by now.

    An agent that was sold, or whose wallet was changed, is somebody else's business. A purchase of no agent passes.
    Raises `ChainUnavailable`, and `StoreUnavailable` for a note that cannot be read.
    """
    note = _read(home, purchase.name)
    if note is None:
        return
    payee = purchase.offer.pay_to
    if note.pinned is not None and parse_address(note.pinned) == payee:
        return
    from registry.onchain import read_agent

    chain_id, registry, number = parse_agent_id(note.agent)
    assert registry is not None
    on_chain = await read_agent(rpc_urls, AgentId(chain_id, registry, number))
    if payee not in on_chain.payees:
        raise TermsNotAllowed(
            f"{purchase.name}: pays {address_text(payee)}, who is no longer owner or wallet of {note.agent}",
            remedy="look with `farebox discover verify AGENT`, and buy again under another name",
        )


def _read(home: Home, name: str) -> _Note | None:
    path = home.path / "agents" / name
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Note)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StoreUnavailable(f"{path}: {error}") from None

"""The registration file of a seller, and the calls that put it on chain. Pure; `registry.register` asks the chain.

One file serves both purposes the standard has: it is what the agent's URI leads to, and, at its well-known place on the
seller's domain, the proof that the domain agrees. Source: EIP-8004, "Agent Registration File" and "Endpoint Domain
Verification".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pybase64
import pydantic

from contracts.address import Address, address_text, parse_address
from contracts.erc8004 import REGISTRATION_TYPE, selector
from contracts.errors import ConfigInvalid
from contracts.nesting import check_nesting
from contracts.networks import DEVNET_CHAIN_ID, Network, parse_network
from contracts.registration_settings import RegistrationSettings
from contracts.schemes.authorization import Call
from contracts.settings import load_settings
from registry.agent_id import AgentId, read_agent_id

__all__ = [
    "WELL_KNOWN_PATH",
    "Seller",
    "inline_uri",
    "merged_agents",
    "read_seller",
    "register_call",
    "registration_file",
    "set_uri_call",
    "set_wallet_call",
]

WELL_KNOWN_PATH = ".well-known/agent-registration.json"


@dataclass(frozen=True, slots=True)
class Seller:
    """What a registration says of a seller. `endpoint` is the base URL that buyers call, without a final slash."""

    network: Network
    rpc_urls: tuple[str, ...]
    endpoint: str
    pay_to: Address
    models: tuple[str, ...]
    name: str
    description: str = ""
    image: str = ""

    @property
    def well_known_url(self) -> str:
        """Where the file is for everybody to read."""
        return f"{self.endpoint}/{WELL_KNOWN_PATH}"


class _Route(pydantic.BaseModel):
    models: dict[str, Any] = pydantic.Field(default_factory=dict)


class _SellerFile(pydantic.BaseModel):
    """What a registration needs of `seller.yaml`; whoever starts the seller checks the rest."""

    network: str
    pay_to: str
    rpc: list[str] | str = pydantic.Field(default_factory=list)
    listen: str = "127.0.0.1:8402"
    public_url: str | None = None
    routes: list[_Route] = pydantic.Field(default_factory=list)
    registration: RegistrationSettings = RegistrationSettings()


def read_seller(
    path: Path, *, name: str | None = None, description: str | None = None, image: str | None = None
) -> Seller:
    """Return the seller of a `seller.yaml`; what is given replaces what its `registration` says.

    A seller without a name is named after its host. Raises `ConfigInvalid`.
    """
    settings = load_settings(path, _SellerFile)
    network = parse_network(settings.network)
    endpoint = (settings.public_url or f"http://{settings.listen}").rstrip("/")
    if not endpoint.startswith(("https://", "http://") if network.chain_id == DEVNET_CHAIN_ID else "https://"):
        raise ConfigInvalid(
            f"public_url: expected https:// and a host, which is all that buyers on {network.label} reach"
        )
    said = settings.registration
    models = dict.fromkeys(model for route in settings.routes for model in route.models)
    return Seller(
        network=network,
        rpc_urls=(settings.rpc,) if isinstance(settings.rpc, str) else tuple(settings.rpc),
        endpoint=endpoint,
        pay_to=parse_address(settings.pay_to, "pay_to"),
        models=tuple(models),
        name=name or said.name or endpoint.split("//", 1)[1].split("/", 1)[0],
        description=said.description if description is None else description,
        image=said.image if image is None else image,
    )


def registration_file(seller: Seller, agents: Iterable[AgentId]) -> bytes:
    """Return the file for `agents`, which are one seller on several chains; the same bytes for the same facts."""
    document: dict[str, Any] = {
        "type": REGISTRATION_TYPE,
        "name": seller.name,
        "description": seller.description,
        "image": seller.image,
        "services": [{"name": "x402", "endpoint": seller.endpoint, "version": "2", "skills": list(seller.models)}],
        "x402Support": True,
        "active": True,
        "registrations": [
            {"agentId": agent.number, "agentRegistry": f"{agent.network.caip2}:{address_text(agent.registry)}"}
            for agent in sorted(agents)
        ],
        "supportedTrust": ["reputation"],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def merged_agents(existing: bytes | None, agent: AgentId) -> list[AgentId]:
    """Return `agent` and those that a file at the same place already names, so that no chain is forgotten."""
    try:
        check_nesting(existing or b"{}")
        document = msgspec.json.decode(existing or b"{}")
        listed = document.get("registrations", []) if isinstance(document, dict) else []
        named = [read_agent_id(entry["agentRegistry"], entry["agentId"]) for entry in listed]
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
        named = []
    return sorted({agent, *(each for each in named if each is not None)})


def inline_uri(file: bytes) -> str:
    """Return the file as a URI that holds it whole. On chain every kilobyte of it costs some 800,000 gas."""
    compact = msgspec.json.encode(msgspec.json.decode(file))
    return "data:application/json;base64," + pybase64.b64encode(compact).decode()


def register_call(registry: Address, uri: str) -> Call:
    """Return the call that registers the sender with `uri`; an empty one is left for later."""
    if not uri:
        return Call(registry, selector("register()"))
    return Call(registry, selector("register(string)") + _encode(("string",), uri))


def set_uri_call(agent: AgentId, uri: str) -> Call:
    """Return the call that changes an agent's URI."""
    signature = selector("setAgentURI(uint256,string)")
    return Call(agent.registry, signature + _encode(("uint256", "string"), agent.number, uri))


def set_wallet_call(agent: AgentId, wallet: Address, deadline_s: int, proof: bytes) -> Call:
    """Return the call that makes `wallet` the payee of an agent; `proof` is the wallet's own signature."""
    signature = selector("setAgentWallet(uint256,address,uint256,bytes)")
    types = ("uint256", "address", "uint256", "bytes")
    return Call(agent.registry, signature + _encode(types, agent.number, address_text(wallet), deadline_s, proof))


def _encode(types: tuple[str, ...], *values: Any) -> bytes:
    from eth_abi.abi import encode

    return encode(types, values)

"""The card of an agent: its registration file, read tolerantly. Pure.

Whatever the file looks like, there is a card and a list of warning codes, never an exception. Every text of it is
somebody else's: it is cleaned here (`registry.text`) and escaped where it is printed. Source: ERC-8004, section "Agent
URI and Agent Registration File"; the older and the misspelt members are those seen on chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from contracts.address import address_text
from contracts.erc8004 import REGISTRATION_TYPE
from registry.agent_id import AgentId, read_agent_id
from registry.limits import (
    DESCRIPTION_CHARS_MAX,
    NAME_CHARS_MAX,
    REGISTRATIONS_MAX,
    SERVICES_MAX,
    SKILLS_MAX,
    URL_CHARS_MAX,
    WORD_CHARS_MAX,
)
from registry.text import clean

__all__ = ["Card", "Registration", "Service", "host_of", "read_card"]


_ENDPOINT_NAMES = ("endpoint", "url", "uri", "serviceEndpoint", "value")
_SKILL_LISTS = ("skills", "a2aSkills", "mcpTools", "mcpPrompts", "mcpResources", "tools", "capabilities")
_TAG_LISTS = ("tags", "domains", "keywords", "categories")
_WALLET = "agentwallet"


class Service(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of `services`: a name such as web, A2A, MCP, x402, and where it is. `version` is "" when unsaid."""

    name: str
    endpoint: str
    version: str = ""


class Registration(msgspec.Struct, frozen=True):
    """One entry of `registrations`: which token of which registry the file says it belongs to."""

    chain_id: int
    registry: str
    agent_id: str

    def names(self, agent: AgentId) -> bool:
        """Tell whether it is `agent`. Addresses are compared as values."""
        return (self.chain_id, self.registry.lower(), self.agent_id) == (
            agent.chain_id,
            address_text(agent.registry).lower(),
            str(agent.number),
        )


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a registration file says. `active` and `x402` have three states: yes, no, unsaid (None)."""

    name: str = ""
    description: str = ""
    image: str = ""
    services: tuple[Service, ...] = ()
    registrations: tuple[Registration, ...] = ()
    skills: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    x402: bool | None = None
    active: bool | None = None
    is_registration_v1: bool = False

    def names(self, agent: AgentId) -> bool:
        """Tell whether the file names `agent` as one of its own registrations."""
        return any(registration.names(agent) for registration in self.registrations)


class _Warnings:
    """Codes in the order they were found, each once."""

    def __init__(self) -> None:
        self.codes: dict[str, None] = {}

    def __call__(self, code: str) -> None:
        self.codes.setdefault(code)


def read_card(document: Mapping[str, Any]) -> tuple[Card, tuple[str, ...]]:
    """Return the card of a decoded registration file, and the codes of what was odd about it. Never raises."""
    warn = _Warnings()
    kind = document.get("type")
    if kind != REGISTRATION_TYPE:
        warn("type_missing" if kind is None else "type_other")
    services, skills, tags = _services(document, warn)
    trust = document.get("supportedTrust", document.get("supportedTrusts"))
    card = Card(
        name=_text(document, "name", NAME_CHARS_MAX, warn),
        description=_text(document, "description", DESCRIPTION_CHARS_MAX, warn),
        image=_text(document, "image", URL_CHARS_MAX, None),
        services=services,
        registrations=_registrations(document.get("registrations"), warn),
        skills=_words([*skills, *_listed(document, _SKILL_LISTS)]),
        tags=_words([*tags, *_listed(document, _TAG_LISTS)]),
        trust=_words(trust if isinstance(trust, list) else ()),
        x402=_flag(document, ("x402Support", "x402support", "x402_support"), warn),
        active=_flag(document, ("active",), warn),
        is_registration_v1=kind == REGISTRATION_TYPE,
    )
    if not card.services:
        warn("services_none")
    return card, tuple(warn.codes)


def host_of(endpoint: str) -> str | None:
    """Return the host of an http(s) endpoint in lower case, or None for anything else."""
    try:
        parts = urlsplit(endpoint)
        return parts.hostname.lower() if parts.scheme in ("http", "https") and parts.hostname else None
    except ValueError:
        return None


def _text(document: Mapping[str, Any], name: str, length_max: int, warn: _Warnings | None) -> str:
    value = document.get(name)
    text = clean(value, length_max)
    if warn is not None:
        if value is None:
            warn(f"{name}_missing")
        elif not isinstance(value, str):
            warn(f"{name}_not_text")
        elif text != value:
            warn(f"{name}_changed")
    return text


def _flag(document: Mapping[str, Any], names: Iterable[str], warn: _Warnings) -> bool | None:
    for position, name in enumerate(names):
        if name not in document:
            continue
        if position:
            warn(f"{name}_legacy")
        value = document[name]
        if isinstance(value, bool):
            return value
        warn(f"{name}_not_boolean")
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
    return None


def _services(document: Mapping[str, Any], warn: _Warnings) -> tuple[tuple[Service, ...], list[Any], list[Any]]:
    """Return the services, and the skills and tags that stand beside them."""
    listed = document.get("services")
    if listed is None and document.get("endpoints") is not None:
        warn("endpoints_legacy")
        listed = document["endpoints"]
    services: list[Service] = []
    skills: list[Any] = []
    tags: list[Any] = []
    for entry in _entries(listed, warn):
        if len(services) == SERVICES_MAX:
            warn("services_too_many")
            break
        name = clean(entry.get("name", entry.get("type")), WORD_CHARS_MAX)
        given = next((key for key in _ENDPOINT_NAMES if isinstance(entry.get(key), str)), None)
        if name.lower() == _WALLET:
            # The chain says who is paid, never the file.
            warn("wallet_in_services")
            continue
        if given is None or not (endpoint := clean(entry[given], URL_CHARS_MAX)):
            warn("service_without_endpoint")
            continue
        if given != "endpoint":
            warn("endpoint_misnamed")
        if not name:
            warn("service_without_name")
        services.append(Service(name, endpoint, clean(entry.get("version"), WORD_CHARS_MAX)))
        skills += _listed(entry, _SKILL_LISTS)
        tags += _listed(entry, _TAG_LISTS)
    return tuple(services), skills, tags


def _entries(listed: Any, warn: _Warnings) -> Iterable[Mapping[str, Any]]:
    """Return the services as objects, also where the file has one object, or an object of them by name."""
    if listed is None:
        return
    if isinstance(listed, dict):
        warn("services_not_list")
        if any(isinstance(listed.get(name), str) for name in _ENDPOINT_NAMES):
            listed = [listed]
        else:
            listed = [
                {"name": name, "endpoint": entry} if isinstance(entry, str) else {"name": name, **entry}
                for name, entry in listed.items()
                if isinstance(entry, str | dict)
            ]
    if not isinstance(listed, list):
        warn("services_not_list")
        return
    for entry in listed:
        if isinstance(entry, dict):
            yield entry
        elif isinstance(entry, str):
            warn("service_not_object")
            yield {"endpoint": entry}
        else:
            warn("service_not_object")


def _registrations(listed: Any, warn: _Warnings) -> tuple[Registration, ...]:
    if listed is None:
        warn("registrations_missing")
        return ()
    if isinstance(listed, dict):
        warn("registrations_not_list")
        listed = [listed]
    if not isinstance(listed, list):
        warn("registrations_not_list")
        return ()
    found: list[Registration] = []
    for entry in listed[:REGISTRATIONS_MAX]:
        agent = read_agent_id(entry.get("agentRegistry"), entry.get("agentId")) if isinstance(entry, dict) else None
        if agent is None:
            warn("registration_malformed")
        else:
            found.append(Registration(agent.chain_id, address_text(agent.registry), str(agent.number)))
    if len(listed) > REGISTRATIONS_MAX:
        warn("registrations_too_many")
    return tuple(found)


def _listed(entry: Mapping[str, Any], names: Iterable[str]) -> list[Any]:
    """Return the members of all lists of these names; of objects in them, their names."""
    found: list[Any] = []
    for name in names:
        values = entry.get(name)
        if isinstance(values, list):
            found += [_named(value) for value in values[:SKILLS_MAX]]
    return found


def _named(value: Any) -> Any:
    return value.get("name", value.get("id")) if isinstance(value, dict) else value


def _words(values: Iterable[Any]) -> tuple[str, ...]:
    words = (clean(value, WORD_CHARS_MAX) for value in values)
    return tuple(dict.fromkeys(word for word in words if word))[:SKILLS_MAX]

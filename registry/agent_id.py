"""The global id of an agent: chain, identity registry, number. Many spellings are read, one is written.

Sources: ERC-8004 (`agentRegistry`), CAIP-2, CAIP-10, CAIP-19, ERC-7930.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from contracts.address import Address, address_text
from contracts.errors import UsageError
from contracts.fields import hex_bytes
from contracts.limits import UINT_DIGITS_MAX
from contracts.networks import Network

__all__ = ["AgentId", "parse_agent_id", "parse_registry", "read_agent_id"]

_CHAIN = r"eip155:(?P<chain>[1-9][0-9]{0,17})"
_REGISTRY = re.compile(rf"{_CHAIN}(?::|/erc721:)(?P<registry>0x[0-9a-fA-F]{{40}})", re.ASCII)
_AGENT = re.compile(rf"{_REGISTRY.pattern}[/:](?P<number>[0-9]{{1,{UINT_DIGITS_MAX}}})", re.ASCII)
_SHORT = re.compile(rf"(?:eip155:)?(?P<chain>[1-9][0-9]{{0,17}}):(?P<number>[0-9]{{1,{UINT_DIGITS_MAX}}})", re.ASCII)
# ERC-7930: version 1, chain type eip155, then the chain id and the address, each behind its length in bytes.
_INTEROPERABLE = bytes((0, 1, 0, 0))


@dataclass(frozen=True, slots=True, order=True)
class AgentId:
    """One agent: token `number` of the identity registry at `registry` on chain `chain_id`."""

    chain_id: int
    registry: Address
    number: int

    @property
    def network(self) -> Network:
        """The chain it is registered on."""
        return Network(self.chain_id)

    def __str__(self) -> str:
        """Return `eip155:84532:0x…/42`."""
        return f"eip155:{self.chain_id}:{address_text(self.registry)}/{self.number}"


def parse_agent_id(text: str, field: str = "AGENT") -> tuple[int, Address | None, int]:
    """Return (chain id, registry or None, number) of any spelling in use.

    `eip155:84532:0x…/42`, `eip155:84532/erc721:0x…/42`, `84532:42` (registry: the canonical one of the chain) and the
    binary form of ERC-7930 in hex with `/42`. Raises `UsageError` naming `field`.
    """
    for pattern in (_AGENT, _SHORT):
        if found := pattern.fullmatch(text):
            registry = found.groupdict().get("registry")
            address = None if registry is None else Address(bytes.fromhex(registry[2:]))
            return int(found["chain"]), address, int(found["number"])
    binary, _, number = text.partition("/")
    if number.isascii() and number.isdigit() and len(number) <= UINT_DIGITS_MAX:
        place = _interoperable(binary)
        if place is not None:
            return *place, int(number)
    raise UsageError(f"{field}: expected eip155:84532:0x…/42 or 84532:42, got {text[:80]!r}")


def parse_registry(text: object) -> tuple[int, Address] | None:
    """Return (chain id, address) of an `agentRegistry`, in any letter case, or None for anything else."""
    if not isinstance(text, str):
        return None
    found = _REGISTRY.fullmatch(text.strip())
    if found is not None:
        return int(found["chain"]), Address(bytes.fromhex(found["registry"][2:]))
    return _interoperable(text)


def _parse_agent_number(value: object) -> int | None:
    """Return an agent id that a document spells as number or digits, or None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**256:
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= UINT_DIGITS_MAX:
        return int(value)
    return None


def read_agent_id(registry: object, number: object) -> AgentId | None:
    """Return the agent that a `registrations` entry names, or None when it names none."""
    place, parsed = parse_registry(registry), _parse_agent_number(number)
    return None if place is None or parsed is None else AgentId(*place, parsed)


def _interoperable(text: str) -> tuple[int, Address] | None:
    data = hex_bytes(text)
    if data is None or data[:4] != _INTEROPERABLE or len(data) < 6:
        return None
    chain_end = 5 + data[4]
    if not 0 < data[4] <= 8 or data[chain_end : chain_end + 1] != b"\x14" or len(data) != chain_end + 21:
        return None
    return int.from_bytes(data[5:chain_end], "big"), Address(data[chain_end + 1 :])

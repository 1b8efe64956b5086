"""What is asked of one endpoint: heads, logs, the number of agents, the state of some. Answers are not believed.

A block and the logs up to it are asked for in one batch, so a node that is behind, or on another fork, cannot pass an
empty list off as "nothing happened".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from contracts.address import ZERO, Address, address_text
from contracts.erc8004 import COUNTER_SLOT, IMPLEMENTATION_SLOT, selector
from contracts.errors import ChainUnavailable, RemoteError, UsageError
from contracts.evm.rpc import Rpc, RpcRefused
from contracts.evm.token import count_of
from contracts.fields import hex_bytes
from contracts.typed_data import word_of_address, word_of_uint
from registry.chains import RegistryChain
from registry.events import TOPICS, FeedbackEvent, decode_logs
from registry.index import Head, Window
from registry.limits import AGENTS_MAX, BLOCK_NUMBER_MAX, CHECKPOINT_BLOCKS, URI_CHARS_MAX

__all__ = [
    "AgentFacts",
    "Behind",
    "Forked",
    "Suspicious",
    "check_registries",
    "read_agents",
    "read_clients",
    "read_count",
    "read_hashes",
    "read_implementation",
    "read_last_indexes",
    "read_recent",
    "read_window",
]

_OWNER_OF = selector("ownerOf(uint256)")
_TOKEN_URI = selector("tokenURI(uint256)")
_AGENT_WALLET = selector("getAgentWallet(uint256)")
_CLIENTS = selector("getClients(uint256)")
_LAST_INDEX = selector("getLastIndex(uint256,address)")
_IDENTITY_OF = selector("getIdentityRegistry()")
_VERSION = selector("getVersion()")
# Some nodes cut an answer at a round number of logs, and say nothing.
_ROUND_LOGS = 500
# What geth, and nodes after it, answer when a call reverts.
_REVERTED = 3


class Behind(RemoteError):
    """The endpoint does not have a block that another one has."""

    code = "rpc_behind"
    remedy = "wait until it has caught up, or name another endpoint"


class Forked(RemoteError):
    """The endpoint follows another fork than the head we read."""

    code = "rpc_forked"
    remedy = "repeat the command when the chain has settled on one fork, or name another endpoint"


class Suspicious(RemoteError):
    """The answer looks cut off; asking for half the blocks will show whether it was."""

    code = "rpc_suspicious"
    remedy = "name another endpoint"


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What the chain says of an agent at one block. `owner` None: there is no such agent. `wallet` None: unset."""

    owner: Address | None
    wallet: Address | None
    uri: str


async def check_registries(rpc: Rpc, chain: RegistryChain) -> bool:
    """Tell whether the endpoint serves `chain`.

    Raises `UsageError` when it does and no such registries are there, `ChainUnavailable` when it does not say.
    """
    identity, reputation = address_text(chain.identity), address_text(chain.reputation)
    chain_id, code, version, named = await rpc.batch(
        [
            ("eth_chainId", []),
            ("eth_getCode", [identity, "latest"]),
            ("eth_call", [{"to": identity, "data": _hex(_VERSION)}, "latest"]),
            ("eth_call", [{"to": reputation, "data": _hex(_IDENTITY_OF)}, "latest"]),
        ]
    )
    if _number(chain_id) != chain.chain_id:
        return False
    if isinstance(code, RpcRefused):
        raise ChainUnavailable(f"eth_getCode: {code.message}")
    if code in ("0x", None):
        raise UsageError(f"chain: there is no identity registry at {identity} on {chain.network.label}")
    if _reverted(version) or _reverted(named) or _word(named)[12:] != chain.identity:
        raise UsageError(f"chain: {identity} and {reputation} on {chain.network.label} are not ERC-8004 registries")
    return True


async def read_recent(rpc: Rpc) -> tuple[Head, dict[int, bytes]]:
    """Return the latest block, and the hashes of the `CHECKPOINT_BLOCKS` up to it. Raises `Behind` where some miss."""
    block = await rpc.call("eth_getBlockByNumber", "latest", False)
    head = _head(block)
    if head is None:
        raise Behind("eth_getBlockByNumber: the latest block is missing")
    first = max(0, head.number - CHECKPOINT_BLOCKS + 1)
    hashes = await read_hashes(rpc, range(first, head.number + 1))
    if hashes.get(head.number) != head.hash or len(hashes) != head.number + 1 - first:
        raise Forked("the chain moved while its latest blocks were read")
    return head, hashes


async def read_hashes(rpc: Rpc, numbers: Sequence[int]) -> dict[int, bytes]:
    """Return the hashes of blocks the endpoint has."""
    blocks = await rpc.batch([("eth_getBlockByNumber", [hex(number), False]) for number in numbers])
    heads = [_head(block) for block in blocks]
    return {head.number: head.hash for head in heads if head is not None}


async def read_window(
    rpc: Rpc, chain: RegistryChain, first: int, last: int, *, endpoint: str, recent: Mapping[int, bytes]
) -> Window:
    """Return the events of the blocks from `first` to `last`.

    `recent` are hashes the answer must agree with. Raises `Behind`, `Forked`, `Suspicious`, `RpcRefused` (the endpoint
    wants fewer blocks, or fewer requests) or `ChainUnavailable`.
    """
    addresses = [address_text(chain.identity), address_text(chain.reputation)]
    wanted = {"address": addresses, "topics": [TOPICS], "fromBlock": hex(first), "toBlock": hex(last)}
    block, logs = await rpc.batch([("eth_getBlockByNumber", [hex(last), False]), ("eth_getLogs", [wanted])])
    if isinstance(logs, RpcRefused):
        raise logs
    head = _head(block)
    if head is None or not isinstance(logs, list):
        raise Behind(f"block {last} is missing")
    if recent.get(last, head.hash) != head.hash:
        raise Forked(f"block {last} is another one")
    if len(logs) >= _ROUND_LOGS and len(logs) % _ROUND_LOGS == 0 and last > first:
        raise Suspicious(f"exactly {len(logs)} logs")
    identity_events, feedback_events = decode_logs(
        logs, identity=chain.identity, reputation=chain.reputation, first_block=first, last_block=last
    )
    for place in [event.place for event in identity_events] + [event.place for event in feedback_events]:
        if recent.get(place.block, place.block_hash) != place.block_hash:
            raise Forked(f"a log of block {place.block} is from another fork")
    return Window(first, last, endpoint, identity_events, await _timed(rpc, feedback_events))


async def read_count(rpc: Rpc, chain: RegistryChain, block: int) -> int:
    """Return the exact number of agents at `block`: one storage word, or a search by `ownerOf` where that is empty."""
    word = await rpc.call("eth_getStorageAt", address_text(chain.identity), hex(COUNTER_SLOT), hex(block))
    count = _number(word)
    if count or not await _exists(rpc, chain, 0, block):
        return count
    high = 1
    while await _exists(rpc, chain, high, block):
        high *= 2
        if high > AGENTS_MAX:
            raise ChainUnavailable("eth_call: every agent that was asked for exists")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await _exists(rpc, chain, middle, block) else (low, middle)
    return high


async def read_implementation(rpc: Rpc, chain: RegistryChain, block: int) -> bytes:
    """Return the address the identity registry's proxy points to; zeros where there is no proxy."""
    word = await rpc.call("eth_getStorageAt", address_text(chain.identity), hex(IMPLEMENTATION_SLOT), hex(block))
    return _word(word)[12:]


async def read_agents(
    rpc: Rpc, chain: RegistryChain, agent_ids: Sequence[int], block: int | str = "latest"
) -> dict[int, AgentFacts]:
    """Return what the chain says of some agents, read at one block. Raises `ChainUnavailable`."""
    at = hex(block) if isinstance(block, int) else block
    to = address_text(chain.identity)
    calls = [
        ("eth_call", [{"to": to, "data": _hex(function + word_of_uint(agent_id))}, at])
        for agent_id in agent_ids
        for function in (_OWNER_OF, _AGENT_WALLET, _TOKEN_URI)
    ]
    answers = iter(await rpc.batch(calls))
    facts = {}
    for agent_id in agent_ids:
        owner, wallet, uri = next(answers), next(answers), next(answers)
        # The wallet of an agent that does not exist reads as unset: only ownerOf tells.
        gone = _reverted(owner)
        facts[agent_id] = AgentFacts(
            None if gone else Address(_word(owner)[12:]),
            None if gone or _word(wallet)[12:] == ZERO else Address(_word(wallet)[12:]),
            "" if _reverted(uri) else _text(uri)[:URI_CHARS_MAX].decode(errors="replace"),
        )
    return facts


async def read_clients(rpc: Rpc, chain: RegistryChain, agent_ids: Sequence[int], block: int) -> dict[int, set[Address]]:
    """Return who ever rated some agents; those are left out whose list is too long for the endpoint.

    Raises `ChainUnavailable`.
    """
    calls = [_reputation_call(chain, _CLIENTS + word_of_uint(agent_id), block) for agent_id in agent_ids]
    lists = zip(agent_ids, map(_addresses, await rpc.batch(calls)), strict=True)
    return {agent_id: set(listed) for agent_id, listed in lists if listed is not None}


async def read_last_indexes(
    rpc: Rpc, chain: RegistryChain, pairs: Sequence[tuple[int, Address]], block: int
) -> dict[tuple[int, Address], int]:
    """Return how many ratings an agent has of a client, for each pair of these. Raises `ChainUnavailable`."""
    calls = [
        _reputation_call(chain, _LAST_INDEX + word_of_uint(agent_id) + word_of_address(client), block)
        for agent_id, client in pairs
    ]
    answers = await rpc.batch(calls)
    return {pair: int.from_bytes(_word(answer)) for pair, answer in zip(pairs, answers, strict=True)}


async def _timed(rpc: Rpc, events: Sequence[FeedbackEvent]) -> list[FeedbackEvent]:
    """Give each event the time of its block, where the logs did not tell it."""
    missing = sorted({event.place.block for event in events if event.time_s is None})
    blocks = await rpc.batch([("eth_getBlockByNumber", [hex(number), False]) for number in missing])
    heads = {head.number: head for head in map(_head, blocks) if head is not None}
    timed = []
    for event in events:
        head = heads.get(event.place.block)
        if event.time_s is not None:
            timed.append(event)
        elif head is None:
            raise Behind(f"block {event.place.block} is missing")
        elif head.hash != event.place.block_hash:
            raise Forked(f"a log of block {head.number} is from another fork")
        else:
            timed.append(replace(event, time_s=head.time_s))
    return timed


async def _exists(rpc: Rpc, chain: RegistryChain, agent_id: int, block: int) -> bool:
    call = {"to": address_text(chain.identity), "data": _hex(_OWNER_OF + word_of_uint(agent_id))}
    (answer,) = await rpc.batch([("eth_call", [call, hex(block)])])
    return not _reverted(answer)


def _reverted(answer: Any) -> bool:
    """Tell whether the contract said no. Raises `ChainUnavailable` when it was the node, which may be behind."""
    if not isinstance(answer, RpcRefused):
        return False
    if answer.rpc_code != _REVERTED and "revert" not in answer.message.lower():
        raise ChainUnavailable(f"eth_call: {answer.message}")
    return True


def _head(block: Any) -> Head | None:
    if isinstance(block, RpcRefused) or not isinstance(block, dict):
        return None
    try:
        hash_, number, time_s = hex_bytes(block["hash"]), _number(block["number"]), _number(block["timestamp"])
    except (KeyError, ChainUnavailable):
        return None
    return None if hash_ is None or number > BLOCK_NUMBER_MAX else Head(number, hash_, time_s)


def _reputation_call(chain: RegistryChain, data: bytes, block: int) -> tuple[str, list[Any]]:
    return "eth_call", [{"to": address_text(chain.reputation), "data": _hex(data)}, hex(block)]


def _addresses(answer: Any) -> list[Address] | None:
    """Return the addresses of an ABI-encoded `address[]`; None for anything else."""
    data = hex_bytes(answer) if not isinstance(answer, RpcRefused) else None
    if data is None or len(data) < 64 or len(data) != 64 + 32 * int.from_bytes(data[32:64], "big"):
        return None
    return [Address(data[start + 12 : start + 32]) for start in range(64, len(data), 32)]


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _word(answer: Any) -> bytes:
    data = hex_bytes(answer)
    return bytes(32) if data is None or len(data) != 32 else data


def _number(answer: Any) -> int:
    return count_of(answer, "the endpoint")


def _text(answer: Any) -> bytes:
    data = hex_bytes(answer) or b""
    length = int.from_bytes(data[32:64], "big")
    return data[64 : 64 + length]

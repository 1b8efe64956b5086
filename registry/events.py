"""What the registries log, decoded by hand and by topic; what is unknown or malformed is passed over.

The registries can be upgraded, and their events have changed before: a log we cannot read is no reason to stop.
Source: EIP-8004 and the reference contracts' ABI, version 2.0.0; EIP-721; ERC-1967.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from contracts.address import Address
from contracts.fields import hex_bytes
from contracts.keccak import keccak
from registry.limits import METADATA_BYTES_MAX, TAG_CHARS_MAX, URI_CHARS_MAX, URL_CHARS_MAX

__all__ = ["TOPICS", "FeedbackEvent", "IdentityEvent", "Place", "decode_logs"]

# SQLite counts to here; ids are dense from 0, so a larger one is not the registry's.
_INTEGER_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a log stands: block and index in it order all events of a chain."""

    block: int
    log_index: int
    transaction_hash: bytes
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class IdentityEvent:
    """A row of `identity_events`; see there for what `account`, `former`, `name` and `value` mean for each kind."""

    place: Place
    kind: str
    agent_id: int | None
    account: bytes | None = None
    former: bytes | None = None
    name: str | None = None
    value: bytes | None = None
    value_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    """A row of `feedback_events`. `time_s` is None where the endpoint does not tell a block's time with its logs."""

    place: Place
    kind: str
    agent_id: int
    client: bytes
    feedback_index: int
    time_s: int | None
    value: int | None = None
    decimals: int | None = None
    tag1: str | None = None
    tag2: str | None = None
    endpoint: str | None = None
    uri: str | None = None
    file_hash: bytes | None = None
    responder: bytes | None = None


class _Malformed(Exception):
    """Not the event its topic promises."""


class _Data:
    """ABI-encoded values: words, and what their offsets lead to. Nothing is read past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def word(self, index: int) -> int:
        return int.from_bytes(self._slice(32 * index, 32), "big")

    def word_bytes(self, index: int) -> bytes:
        return self._slice(32 * index, 32)

    def dynamic(self, index: int) -> bytes:
        offset = self.word(index)
        length = int.from_bytes(self._slice(offset, 32), "big")
        return self._slice(offset + 32, length)

    def text(self, index: int, chars_max: int) -> str:
        return self.dynamic(index)[: 4 * chars_max].decode(errors="replace")[:chars_max]

    def _slice(self, start: int, length: int) -> bytes:
        if start + length > len(self._data):
            raise _Malformed
        return self._data[start : start + length]


@dataclass(frozen=True, slots=True)
class _Log:
    place: Place
    time_s: int | None
    topics: list[bytes]
    data: _Data

    def number(self, index: int) -> int:
        value = int.from_bytes(self.topic(index), "big")
        if value > _INTEGER_MAX:
            raise _Malformed
        return value

    def account(self, index: int) -> Address:
        return Address(self.topic(index)[12:])

    def topic(self, index: int) -> bytes:
        if index >= len(self.topics):
            raise _Malformed
        return self.topics[index]


def _registered(log: _Log) -> IdentityEvent:
    uri = log.data.dynamic(0)
    return IdentityEvent(
        log.place,
        "registered",
        log.number(1),
        account=log.account(2),
        value=uri[:URI_CHARS_MAX],
        value_bytes=len(uri),
    )


def _uri_updated(log: _Log) -> IdentityEvent:
    uri = log.data.dynamic(0)
    return IdentityEvent(
        log.place, "uri", log.number(1), account=log.account(2), value=uri[:URI_CHARS_MAX], value_bytes=len(uri)
    )


def _metadata_set(log: _Log) -> IdentityEvent:
    key, value = log.data.text(0, TAG_CHARS_MAX), log.data.dynamic(1)
    return IdentityEvent(
        log.place, "metadata", log.number(1), name=key, value=value[:METADATA_BYTES_MAX], value_bytes=len(value)
    )


def _transfer(log: _Log) -> IdentityEvent:
    return IdentityEvent(log.place, "transfer", log.number(3), account=log.account(2), former=log.account(1))


def _upgraded(log: _Log) -> IdentityEvent:
    return IdentityEvent(log.place, "upgraded", None, account=log.account(1))


def _ownership(log: _Log) -> IdentityEvent:
    return IdentityEvent(log.place, "owned", None, account=log.account(2), former=log.account(1))


def _new_feedback(log: _Log) -> FeedbackEvent:
    value = log.data.word(1)
    return FeedbackEvent(
        log.place,
        "given",
        log.number(1),
        log.account(2),
        _small(log.data.word(0)),
        log.time_s,
        value=value - 2**256 if value >= 2**255 else value,
        decimals=_small(log.data.word(2)),
        tag1=log.data.text(3, TAG_CHARS_MAX),
        tag2=log.data.text(4, TAG_CHARS_MAX),
        endpoint=log.data.text(5, URL_CHARS_MAX),
        uri=log.data.text(6, URL_CHARS_MAX),
        file_hash=log.data.word_bytes(7),
    )


def _feedback_revoked(log: _Log) -> FeedbackEvent:
    return FeedbackEvent(log.place, "revoked", log.number(1), log.account(2), log.number(3), log.time_s)


def _response_appended(log: _Log) -> FeedbackEvent:
    return FeedbackEvent(
        log.place,
        "answered",
        log.number(1),
        log.account(2),
        _small(log.data.word(0)),
        log.time_s,
        uri=log.data.text(1, URL_CHARS_MAX),
        file_hash=log.data.word_bytes(2),
        responder=log.account(3),
    )


def _topic(signature: str) -> bytes:
    return keccak(signature.encode())


_IDENTITY = {
    _topic("Registered(uint256,string,address)"): _registered,
    _topic("URIUpdated(uint256,string,address)"): _uri_updated,
    _topic("MetadataSet(uint256,string,string,bytes)"): _metadata_set,
    _topic("Transfer(address,address,uint256)"): _transfer,
    _topic("Upgraded(address)"): _upgraded,
    _topic("OwnershipTransferred(address,address)"): _ownership,
}
_REPUTATION = {
    _topic(
        "NewFeedback(uint256,address,uint64,int128,uint8,string,string,string,string,string,bytes32)"
    ): _new_feedback,
    _topic("FeedbackRevoked(uint256,address,uint64)"): _feedback_revoked,
    _topic("ResponseAppended(uint256,address,uint64,address,string,bytes32)"): _response_appended,
}

# The first topics to ask for, as `0x…`: one request for the logs of both registries.
TOPICS = sorted("0x" + topic.hex() for topic in (*_IDENTITY, *_REPUTATION))


def decode_logs(
    logs: Iterable[Any], *, identity: Address, reputation: Address, first_block: int, last_block: int
) -> tuple[list[IdentityEvent], list[FeedbackEvent]]:
    """Return the events of JSON-RPC logs. What is removed, malformed, foreign or outside the blocks is left out."""
    identity_events: list[IdentityEvent] = []
    feedback_events: list[FeedbackEvent] = []
    for raw in logs:
        try:
            log = _read(raw)
            if not first_block <= log.place.block <= last_block:
                continue
            address, topic = hex_bytes(raw["address"].lower()), log.topic(0)
            if address == identity and topic in _IDENTITY:
                identity_events.append(_IDENTITY[topic](log))
            elif address == reputation and topic in _REPUTATION:
                feedback_events.append(_REPUTATION[topic](log))
        except (_Malformed, KeyError, TypeError, ValueError, AttributeError):
            continue
    return identity_events, feedback_events


def _read(raw: Any) -> _Log:
    if raw.get("removed"):
        raise _Malformed
    time = raw.get("blockTimestamp")
    return _Log(
        Place(
            _number(raw["blockNumber"]),
            _number(raw["logIndex"]),
            _hash(raw["transactionHash"]),
            _hash(raw["blockHash"]),
        ),
        None if time is None else _number(time),
        [_hash(topic) for topic in raw["topics"]],
        _Data(_bytes(raw["data"])),
    )


def _number(text: str) -> int:
    return _small(int(text, 16))


def _small(value: int) -> int:
    if not 0 <= value <= _INTEGER_MAX:
        raise _Malformed
    return value


def _bytes(text: object) -> bytes:
    data = hex_bytes(text)
    if data is None:
        raise _Malformed
    return data


def _hash(text: object) -> bytes:
    data = _bytes(text)
    if len(data) != 32:
        raise _Malformed
    return data

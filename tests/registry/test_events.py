"""Logs of the registries are decoded by topic; what cannot be read is passed over, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from contracts.address import Address, address_text
from contracts.erc8004 import TEST_NETWORKS
from contracts.keccak import keccak
from registry.events import TOPICS, FeedbackEvent, IdentityEvent, decode_logs
from registry.limits import METADATA_BYTES_MAX, TAG_CHARS_MAX, URI_CHARS_MAX

# As the reference contracts' ABI has them.
REGISTERED = "0xca52e62c367d81bb2e328eb795f7c7ba24afb478408a26c0e201d155c449bc4a"
URI_UPDATED = "0x3a2c7fffc2cba7582c690e3b82c453ea02a308326a98a3ad7576c606336409fb"
METADATA_SET = "0x2c149ed548c6d2993cd73efe187df6eccabe4538091b33adbd25fafdb8a1468b"
TRANSFER = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
UPGRADED = "0xbc7cd75a20ee27fd9adebab32041f755214dbc6bffa90cc0225b39da2e5c2d3b"
OWNERSHIP = "0x8be0079c531659141344cd1fd0a4f28419497f9722a3daafe3b4186f6b6457e0"
NEW_FEEDBACK = "0x6a4a61743519c9d648a14e6493f47dbe3ff1aa29e7785c96c8326a205e58febc"
REVOKED = "0x25156fd3288212246d8b008d5921fde376c71ed14ac2e072a506eb06fde6d09d"
ANSWERED = "0xb1c6be0b5b8aef6539e2fac0fd131a2faa7b49edf8e505b5eb0ad487d56051d4"

OWNER, CLIENT = Address(bytes([7]) * 20), Address(bytes([8]) * 20)


def word(value: int | bytes) -> str:
    number = value if isinstance(value, int) else int.from_bytes(value, "big")
    return "0x" + number.to_bytes(32, "big").hex()


def log(topics: list[str], data: bytes = b"", **changes: Any) -> dict[str, Any]:
    return {
        "address": address_text(TEST_NETWORKS.identity),
        "topics": topics,
        "data": "0x" + data.hex(),
        "blockNumber": "0x5",
        "logIndex": "0x2",
        "transactionHash": word(11),
        "blockHash": word(12),
        **changes,
    }


def decode(*logs: Any) -> tuple[list[IdentityEvent], list[FeedbackEvent]]:
    return decode_logs(
        logs, identity=TEST_NETWORKS.identity, reputation=TEST_NETWORKS.reputation, first_block=0, last_block=9
    )


def identity_event(*arguments: Any, **changes: Any) -> IdentityEvent:
    (event,), _ = decode(log(*arguments, **changes))
    return event


def registered(uri: bytes, **changes: Any) -> dict[str, Any]:
    return log([REGISTERED, word(3), word(OWNER)], encode(["bytes"], [uri]), **changes)


def test_every_topic_that_is_asked_for_is_the_one_on_chain() -> None:
    identity = [REGISTERED, URI_UPDATED, METADATA_SET, TRANSFER, UPGRADED, OWNERSHIP]
    assert sorted([*identity, NEW_FEEDBACK, REVOKED, ANSWERED]) == TOPICS


def test_a_registration_and_a_change_of_uri_are_read() -> None:
    (event,), _ = decode(registered(b"https://a.example"))
    assert (event.kind, event.agent_id, event.account, event.value) == ("registered", 3, OWNER, b"https://a.example")
    changed = identity_event([URI_UPDATED, word(3), word(OWNER)], encode(["string"], ["ipfs://b"]))
    assert (changed.kind, changed.value, changed.value_bytes) == ("uri", b"ipfs://b", 8)


def test_metadata_keeps_its_key_as_it_is_spelled() -> None:
    data = encode(["string", "bytes"], ["AgentWallet", b"\x01"])
    event = identity_event([METADATA_SET, word(3), word(keccak(b"AgentWallet"))], data)
    assert (event.name, event.value) == ("AgentWallet", b"\x01")


def test_transfers_and_what_the_registrys_owner_does_are_read() -> None:
    moved = identity_event([TRANSFER, word(OWNER), word(CLIENT), word(3)])
    assert (moved.former, moved.account, moved.agent_id) == (OWNER, CLIENT, 3)
    upgraded = identity_event([UPGRADED, word(CLIENT)])
    assert (upgraded.kind, upgraded.account, upgraded.agent_id) == ("upgraded", CLIENT, None)
    assert identity_event([OWNERSHIP, word(OWNER), word(CLIENT)]).kind == "owned"


def feedback(value: int, tag: str = "starred", **changes: Any) -> dict[str, Any]:
    types = ["uint64", "int128", "uint8", "string", "string", "string", "string", "bytes32"]
    data = encode(types, [1, value, 2, tag, "x", "https://e", "https://f", keccak(b"file")])
    topics = [NEW_FEEDBACK, word(3), word(CLIENT), word(keccak(tag.encode()))]
    return log(topics, data, address=address_text(TEST_NETWORKS.reputation), **changes)


@pytest.mark.parametrize("value", [0, 99, -5, 10**38, -(10**38)])
def test_feedback_is_read_with_its_sign(value: int) -> None:
    _, (event,) = decode(feedback(value, blockTimestamp="0x64"))
    assert (event.value, event.decimals, event.client, event.feedback_index) == (value, 2, CLIENT, 1)
    assert (event.tag1, event.tag2, event.uri, event.time_s) == ("starred", "x", "https://f", 100)
    assert event.file_hash == keccak(b"file")


def test_revocations_and_answers_are_read() -> None:
    reputation = address_text(TEST_NETWORKS.reputation)
    _, (revoked,) = decode(log([REVOKED, word(3), word(CLIENT), word(4)], address=reputation))
    assert (revoked.kind, revoked.feedback_index, revoked.time_s) == ("revoked", 4, None)
    data = encode(["uint64", "string", "bytes32"], [4, "https://r", bytes(32)])
    _, (answered,) = decode(log([ANSWERED, word(3), word(CLIENT), word(OWNER)], data, address=reputation))
    assert (answered.kind, answered.responder, answered.uri) == ("answered", OWNER, "https://r")


def test_long_texts_of_strangers_are_cut_and_their_length_is_kept() -> None:
    (event,), _ = decode(registered(b"x" * (URI_CHARS_MAX + 5)))
    assert event.value is not None
    assert (len(event.value), event.value_bytes) == (URI_CHARS_MAX, URI_CHARS_MAX + 5)
    data = encode(["string", "bytes"], ["k" * 9999, bytes(METADATA_BYTES_MAX + 1)])
    metadata = identity_event([METADATA_SET, word(3), word(0)], data)
    assert (len(metadata.name or ""), metadata.value_bytes) == (TAG_CHARS_MAX, METADATA_BYTES_MAX + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"removed": True},
        {"address": address_text(OWNER)},
        {"blockNumber": "0xa"},
        {"blockNumber": "0x" + "f" * 40},
        {"topics": [REGISTERED]},
        {"topics": []},
        {"topics": [REGISTERED, word(2**63), word(OWNER)]},
        {"topics": [REGISTERED, "0x12", word(OWNER)]},
        {"topics": ["0x" + "9" * 64, word(3), word(OWNER)]},
        {"data": "0x"},
        {"data": "0x" + "ff" * 64},
        {"data": word(32) + "ff" * 32},
        {"data": None},
        {"logIndex": None},
    ],
    ids=str,
)
def test_a_log_that_is_not_what_its_topic_says_is_passed_over(changes: dict[str, Any]) -> None:
    good = registered(b"https://a.example", logIndex="0x7")
    (event,), feedback_events = decode(registered(b"https://a.example") | changes, good)
    assert event.place.log_index == 7
    assert feedback_events == []


@given(st.lists(st.sampled_from(TOPICS) | st.binary(max_size=33).map(lambda raw: "0x" + raw.hex()), max_size=5))
def test_no_topics_raise(topics: list[str]) -> None:
    for address in (TEST_NETWORKS.identity, TEST_NETWORKS.reputation):
        decode(log(topics, bytes(64), address=address_text(address)))


@given(st.sampled_from(TOPICS), st.binary(max_size=400))
def test_no_data_raises(topic: str, data: bytes) -> None:
    for address in (TEST_NETWORKS.identity, TEST_NETWORKS.reputation):
        decode(log([topic, word(1), word(2), word(3)], data, address=address_text(address)))


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_nothing_a_node_may_answer_raises(value: Any) -> None:
    assert decode(value) == ([], [])

"""Goal: whatever stands at an agent's URI, there is a card or a reason, and never an exception.

Method: every URI shape by example, the documents other software publishes, and arbitrary bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
import unicodedata
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.address import parse_address
from contracts.erc8004 import REGISTRATION_TYPE
from contracts.errors import UsageError
from registry.agent_id import AgentId, parse_agent_id, parse_registry
from registry.card import Card
from registry.documents import read_document
from registry.ipfs import block_matches, file_in_block, parse_cid
from registry.limits import DESCRIPTION_CHARS_MAX, DOCUMENT_BYTES_MAX, NAME_CHARS_MAX, SERVICES_MAX, URI_CHARS_MAX
from registry.text import clean
from registry.uri import locate

IDENTITY = parse_address("0x8004A818BFB912233c491871b3d84c89A494BD9e")
AGENT0 = sorted((Path(__file__).parent / "agent0").glob("*.json"))
FILE = {"type": REGISTRATION_TYPE, "name": "Coder", "description": "writes code", "services": [], "registrations": []}
DATA = json.dumps(FILE).encode()


def card_of(document: Any) -> tuple[Card, tuple[str, ...]]:
    read = read_document(json.dumps(document).encode())
    assert read.card is not None
    return read.card, read.warnings


@pytest.mark.parametrize("path", AGENT0, ids=lambda path: path.stem)
def test_documents_that_agent0_publishes_parse_without_a_warning_about_their_form(path: Path) -> None:
    read = read_document(path.read_bytes())
    assert read.card is not None
    expected = {
        "quick-start-registry-unknown": {"registration_malformed"},
        "quick-start-unregistered": set(),
        "empty-agent": {"services_none"},
        "readme-oasf": {"type_missing", "name_missing", "description_missing", "endpoints_legacy"},
        "legacy-endpoints": {"type_missing", "endpoints_legacy", "x402support_legacy"},
    }.get(path.stem, set())
    assert set(read.warnings) - {"registrations_missing"} == expected


def test_the_agent0_quick_start_is_read_as_it_was_meant() -> None:
    read = read_document((Path(__file__).parent / "agent0" / "quick-start-registered.json").read_bytes())
    assert read.card is not None
    card = read.card
    assert (card.name, card.active, card.x402, card.trust) == (
        "My AI Agent",
        True,
        False,
        ("reputation", "crypto-economic"),
    )
    assert [service.name for service in card.services] == ["MCP", "A2A", "ENS", "OASF"]
    assert "data_engineering/data_transformation_pipeline" in card.skills
    assert card.names(AgentId(11155111, IDENTITY, 123))
    assert not card.names(AgentId(11155111, IDENTITY, 124))
    assert not card.names(AgentId(84532, IDENTITY, 123))


@pytest.mark.parametrize(
    ("uri", "codes"),
    [
        ("data:application/json;base64," + base64.b64encode(DATA).decode(), ()),
        ("data:application/json;charset=utf-8;base64," + base64.b64encode(DATA).decode(), ()),
        ("data:application/json;base64," + base64.urlsafe_b64encode(DATA).decode().rstrip("="), ()),
        ("data:application/json," + quote(DATA), ()),
        ("data:application/json;base64," + DATA.decode(), ("data_not_base64",)),
        ("data:application/json;enc=gzip;base64," + base64.b64encode(zlib.compress(DATA, 9, 31)).decode(), ()),
        ("data:application/json;enc=deflate;base64," + base64.b64encode(zlib.compress(DATA, 9, -15)).decode(), ()),
        ("DATA:text/html," + quote(DATA), ("data_not_json",)),
        (DATA.decode(), ()),
    ],
)
def test_a_file_inside_its_uri_is_read_in_every_form_seen_on_chain(uri: str, codes: tuple[str, ...]) -> None:
    location = locate(uri)
    assert location.codes == codes
    assert location.data is not None
    read = read_document(location.data)
    assert read.card is not None
    assert read.card.name == "Coder"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("", "uri_empty"),
        (None, "uri_empty"),
        ("http://seller.example/card.json", "http_refused"),
        ("ftp://seller.example/card.json", "uri_unknown_scheme"),
        ("file:///etc/passwd", "uri_unknown_scheme"),
        ("javascript:alert(1)", "uri_unknown_scheme"),
        ("ipfs://not-a-cid", "cid_malformed"),
        ("ipns://name", "ipns_unsupported"),
        ("ar://short", "ar_malformed"),
        ("data:application/json", "data_malformed"),
        ("data:application/json;base64,@@@@", "data_malformed"),
        ("data:application/json;enc=brotli;base64,AAAA", "compression_unknown"),
        ("data:application/json;enc=gzip;base64,AAAA", "compression_malformed"),
        ("https://[broken/card.json", "url_malformed"),
        ("https://seller.example/" + "a" * 3000, "uri_too_long"),
        ("data:application/json," + "a" * URI_CHARS_MAX, "uri_too_long"),
        ("data:application/json," + "a" * (DOCUMENT_BYTES_MAX + 1), "document_too_large"),
    ],
)
def test_a_uri_that_leads_nowhere_says_why(uri: Any, code: str) -> None:
    location = locate(uri)
    assert code in location.codes
    assert location.data is None
    assert location.url is None


def test_a_compressed_bomb_is_given_up_at_the_cap() -> None:
    bomb = "data:application/json;enc=gzip;base64," + base64.b64encode(zlib.compress(b"[" * 50_000_000, 9, 31)).decode()
    tracemalloc.start()
    try:
        assert "document_too_large" in locate(bomb).codes
        assert tracemalloc.get_traced_memory()[1] < 4 * DOCUMENT_BYTES_MAX
    finally:
        tracemalloc.stop()


def test_ipfs_is_recognised_by_scheme_bare_and_behind_any_gateway_and_its_content_is_proven() -> None:
    block = b'{"name": "raw block"}'
    text = "b" + base64.b32encode(b"\x01\x55\x12\x20" + hashlib.sha256(block).digest()).decode().lower().rstrip("=")
    spellings = [
        f"ipfs://{text}",
        f"ipfs://ipfs/{text}",
        text,
        f"https://gateway.example/ipfs/{text}",
        f"https://{text}.ipfs.gateway.example/",
    ]
    for spelling in spellings:
        cid = locate(spelling).cid
        assert cid is not None
        assert block_matches(cid, block)
        assert not block_matches(cid, block + b" ")
    assert locate(f"ipfs://{text}/a/../../b").codes == ("cid_malformed",)


def test_a_small_ipfs_file_is_taken_out_of_its_block() -> None:
    content = b'{"name": "wrapped"}'
    unixfs = b"\x08\x02\x12" + bytes([len(content)]) + content + b"\x18" + bytes([len(content)])
    block = b"\x0a" + bytes([len(unixfs)]) + unixfs
    digits = int.from_bytes(b"\x12\x20" + hashlib.sha256(block).digest(), "big")
    name = ""
    while digits:
        digits, digit = divmod(digits, 58)
        name = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + name
    cid = parse_cid(name)
    assert cid is not None
    assert block_matches(cid, block)
    assert file_in_block(cid, block) == content
    assert file_in_block(cid, b"\x12\x02\x0a\x00" + block) is None, "a file of several blocks"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"type": None}, "type_missing"),
        ({"type": "Agent"}, "type_other"),
        ({"name": ["a", "list"]}, "name_not_text"),
        ({"services": {"name": "web", "endpoint": "https://a.example"}}, "services_not_list"),
        ({"services": {"web": "https://a.example"}}, "services_not_list"),
        ({"services": [{"name": "web", "url": "https://a.example"}]}, "endpoint_misnamed"),
        ({"services": [{"name": "web", "serviceEndpoint": "https://a.example"}]}, "endpoint_misnamed"),
        ({"services": ["https://a.example", 7]}, "service_not_object"),
        ({"services": None, "endpoints": [{"name": "web", "endpoint": "https://a.example"}]}, "endpoints_legacy"),
        ({"services": [{"name": "web"}, {"name": "b", "endpoint": "https://a.example"}]}, "service_without_endpoint"),
        ({"services": [{"name": str(n), "endpoint": "https://a.example"} for n in range(40)]}, "services_too_many"),
    ],
)
def test_an_odd_member_costs_a_warning_and_nothing_else(change: dict[str, Any], code: str) -> None:
    card, warnings = card_of({**FILE, **change})
    assert code in warnings
    assert card.description == "writes code"
    if change.get("services") or "endpoints" in change:
        assert "https://a.example" in {service.endpoint for service in card.services}
        assert len(card.services) <= SERVICES_MAX


def test_the_wallet_a_file_claims_is_never_taken_for_a_service() -> None:
    wallet = {"name": "agentWallet", "endpoint": "eip155:8453:0x" + "11" * 20}
    card, warnings = card_of({**FILE, "services": [wallet]})
    assert card.services == ()
    assert "wallet_in_services" in warnings


@pytest.mark.parametrize(("value", "state"), [(True, True), (False, False), (None, None), ("true", True), (1, None)])
def test_whether_it_takes_payment_and_is_active_has_three_states(value: Any, state: bool | None) -> None:
    given_value = {} if value is None else {"x402Support": value, "active": value}
    card, _ = card_of({**FILE, **given_value})
    assert (card.x402, card.active) == (state, state)


def test_registrations_are_read_with_numbers_as_text_and_addresses_in_any_case() -> None:
    entries = [
        {"agentId": "7", "agentRegistry": "eip155:84532:" + "0x8004A818BFB912233c491871b3d84c89A494BD9e".lower()},
        {"agentId": -1, "agentRegistry": "eip155:1:0x" + "22" * 20},
        {"agentId": True, "agentRegistry": "eip155:1:0x" + "22" * 20},
        {"agentId": 7},
        "eip155:1",
    ]
    card, warnings = card_of({**FILE, "registrations": entries})
    assert card.names(AgentId(84532, IDENTITY, 7))
    assert len(card.registrations) == 1
    assert "registration_malformed" in warnings


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "json_malformed"),
        (b"<html><script>alert(1)</script></html>", "json_malformed"),
        (b"[1, 2]", "json_not_object"),
        (b"[" * 100_000, "json_too_deep"),
        (b'{"a":' * 50_000, "json_too_deep"),
        (b" " * (DOCUMENT_BYTES_MAX + 1), "document_too_large"),
    ],
)
def test_bytes_that_are_no_registration_file_say_why(data: bytes, code: str) -> None:
    read = read_document(data)
    assert read.card is None
    assert read.warnings == (code,)


def test_a_file_in_another_encoding_loses_only_the_broken_text() -> None:
    read = read_document(json.dumps(FILE).replace("Coder", "Caf\xe9").encode("latin-1"))
    assert read.card is not None
    assert read.warnings[0] == "not_utf8"
    assert read.card.description == "writes code"


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=400), st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))))
def test_arbitrary_bytes_become_a_result(data: bytes) -> None:
    read = read_document(data)
    assert read.card is not None or read.warnings


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_NAMES = "type name description image services endpoints x402Support x402support active registrations supportedTrust"
_MEMBERS = st.sampled_from([*_NAMES.split(), "skills", "tags", "endpoint", "url", "agentId", "agentRegistry"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_MEMBERS, _JSON | st.lists(st.dictionaries(_MEMBERS, _JSON, max_size=4), max_size=3)))
def test_a_file_with_anything_anywhere_becomes_a_card_of_bounded_printable_text(document: dict[str, Any]) -> None:
    card, _ = card_of(document)
    assert len(card.name) <= NAME_CHARS_MAX
    assert len(card.description) <= DESCRIPTION_CHARS_MAX
    for text in (
        card.name,
        card.description,
        *card.skills,
        *card.tags,
        *(service.endpoint for service in card.services),
    ):
        assert text.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text(max_size=60).map(lambda text: "data:" + text))
def test_an_arbitrary_uri_becomes_a_location(uri: str) -> None:
    location = locate(uri)
    assert location.codes or location.data is not None or location.url or location.cid


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("pay\u202emoc.lleres\u202c", "paymoc.lleres"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("line\nbreak\r\ttab", "line break tab"),
        ("\uff46\uff55\uff4c\uff4c\u3000\uff57\uff49\uff44\uff54\uff48", "full width"),
        ("a" + "\u0301" * 50 + "b", "a" + "\u0301" * 3 + "b"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("\ud800lone", "lone"),
        (["no text"], ""),
    ],
)
def test_text_of_strangers_cannot_steer_a_terminal(text: Any, shown: str) -> None:
    assert clean(text, 100) == unicodedata.normalize("NFKC", shown)


def test_one_character_that_normalises_to_many_is_cut_like_any_other_text() -> None:
    assert len(clean("\ufdfa" * 10_000, 80)) <= 80


@pytest.mark.parametrize(
    "text",
    [
        "eip155:8453:0x8004A169FB4a3325136EB29fA0ceB6D2e539a432/42",
        "eip155:8453:0x8004a169fb4a3325136eb29fa0ceb6d2e539a432:42",
        "eip155:8453/erc721:0x8004A169FB4a3325136EB29fA0ceB6D2e539a432/42",
        "0x00010000022105148004a169fb4a3325136eb29fa0ceb6d2e539a432/42",
    ],
)
def test_every_spelling_of_an_agent_is_the_same_agent(text: str) -> None:
    chain_id, registry, number = parse_agent_id(text)
    assert registry is not None
    assert str(AgentId(chain_id, registry, number)) == "eip155:8453:0x8004A169FB4a3325136EB29fA0ceB6D2e539a432/42"


def test_the_short_spelling_leaves_the_registry_open_and_nonsense_is_refused_by_name() -> None:
    assert parse_agent_id("84532:42") == (84532, None, 42)
    for text in ("", "42", "base:42", "eip155:1:0x12/3", "0xzz/1", "0x0001000001/1", "84532:4x"):
        with pytest.raises(UsageError, match="--agent"):
            parse_agent_id(text, "--agent")
    assert parse_registry("eip155:1:{identityRegistry}") is None

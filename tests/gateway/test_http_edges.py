"""Goal: no request, however odd, gets a 5xx for its sender's mistake or spends without being asked to."""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buyer.client_keys import create_key
from buyer.home import Home
from buyer.pool import Counts, Pool
from gateway.config import GatewayConfig
from gateway.limits import BODY_BYTES_MAX, HEADERS_BYTES_MAX
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL, gateway
from tests.gateway.test_repetition import CHAT, ask
from tests.patience import eventually

# What HTTP allows in a header value; the rest is refused before it reaches us.
HEADER_CHARACTERS = [chr(point) for point in (*range(0x21, 0x7F), *range(0xA0, 0x100))]


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8403", "localhost@evil.example", ""])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/readyz"])
def test_a_foreign_host_is_refused(street: Street, host: str, path: str) -> None:
    answer = street.http.request("POST" if path == CHAT else "GET", path, json=ask("a"), headers={"host": host})
    assert (answer.status_code, code(answer)) == (421, "host_not_allowed")
    assert street.seller.requests == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8403", "[::1]:8403", "LOCALHOST:1"])
def test_names_of_this_machine_are_accepted(street: Street, host: str) -> None:
    assert street.http.get("/v1/models", headers={"host": host}).status_code == 200


def test_the_admin_plane_has_the_same_guard(street: Street) -> None:
    assert httpx.get(f"{street.gateway.admin_url}/status", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example"])
def test_a_web_page_of_another_origin_cannot_spend(street: Street, origin: str) -> None:
    answer = street.http.post(CHAT, json=ask("a"), headers={"origin": origin})
    assert (answer.status_code, code(answer)) == (403, "origin_not_allowed")
    assert street.http.post(CHAT, json=ask("a"), headers={"origin": "http://localhost:3000"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"model": "paid/demo-model", "messages": ', "body"),
        (b'{"messages": []}', "model"),
        (b'{"model": 5}', "model"),
        (b'{"model": null}', "model"),
        (b'{"model": ""}', "model"),
        (b'{"model": "' + b"m" * 1000 + b'"}', "model"),
        (b'{"model": "\xff"}', "model"),
        (b"[" * 100_000, "body"),
        (b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
    ],
)
def test_a_broken_body_is_400_and_names_the_field(street: Street, body: bytes, field: str) -> None:
    answer = street.http.post(CHAT, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(field)
    assert street.gateway.counts() == Counts(ready=COUNT)


def test_deep_nesting_does_not_end_the_process_where_a_library_raised_the_recursion_limit(
    street: Street,
) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        answer = street.http.post(CHAT, content=b'{"model": "m", "x": ' + b"[" * 120_000 + b"]" * 120_000 + b"}")
    finally:
        sys.setrecursionlimit(before)
    assert answer.status_code == 400
    assert street.http.post(CHAT, json=ask("a")).status_code == 200


def test_a_body_at_the_cap_is_forwarded_and_one_above_is_413(street: Street) -> None:
    fixed = len(json.dumps(ask("")).encode())
    fits = ask("x" * (BODY_BYTES_MAX - fixed))
    assert street.http.post(CHAT, content=json.dumps(fits).encode()).status_code == 200
    too_large = json.dumps(ask("x" * (BODY_BYTES_MAX - fixed + 1))).encode()
    answer = street.http.post(CHAT, content=too_large)
    assert (answer.status_code, code(answer)) == (413, "body_too_large")
    chunked = street.http.post(
        CHAT, content=(too_large[start : start + 65536] for start in range(0, len(too_large), 65536))
    )
    assert chunked.status_code == 413
    assert street.gateway.counts().spent == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-farebox-request-id", "a"), ("x-farebox-request-id", "b")], 400),
        ([("x-farebox-request-id", "")], 400),
        ([("x-farebox-request-id", "a" * 1000)], 400),
        ([("x-farebox-seller", "caf\xe9")], 400),
        ([("content-encoding", "gzip")], 415),
        ([("x-padding", "p" * HEADERS_BYTES_MAX)], 431),
    ],
)
def test_odd_headers_are_the_senders_mistake(street: Street, headers: list[tuple[str, str]], status: int) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    answer = street.http.post(CHAT, content=json.dumps(ask("a")).encode(), headers=raw)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert street.seller.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/embeddings", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/", 404),
        ("POST", "/v1/nothing", 404),
        ("POST", "/V1/CHAT/COMPLETIONS", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "//v1/chat/completions", 404),
    ],
)
def test_what_is_not_served_says_so_in_the_usual_envelope(street: Street, method: str, path: str, status: int) -> None:
    answer = street.http.request(method, path, json=ask("a"))
    assert answer.status_code == status
    assert answer.json()["error"]["code"] in ("not_found", "method_not_allowed")


def test_calls_beyond_the_limit_are_told_to_come_back(home: Path, street: Street) -> None:
    with gateway(street.home, concurrent_max=2) as small, ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(httpx.post, small.url + CHAT, json=ask(str(n), hold="gate")) for n in range(2)]
        eventually(lambda: len(street.seller.presented) == 2, "two calls in flight")
        answer = httpx.post(small.url + CHAT, json=ask("a"))
        assert (answer.status_code, code(answer)) == (503, "busy")
        assert answer.headers["retry-after"] == "1"
        street.release("gate")
        assert [call.result().status_code for call in calls] == [200, 200]
        assert httpx.post(small.url + CHAT, json=ask("a")).status_code == 200
    assert len(street.seller.presented) == 3


def test_a_client_key_that_has_taken_its_share_leaves_the_other_places_to_others(street: Street) -> None:
    with Pool.open(Home.open(street.home)) as pool:
        one, other = (
            {"authorization": f"Bearer {pool.database.transact(lambda it: create_key(it, name, [], 0))}"}  # noqa: B023
            for name in ("one", "other")
        )
    with (
        gateway(street.home, GatewayConfig(calls_per_key=2), concurrent_max=4) as small,
        ThreadPoolExecutor(2) as threads,
    ):

        def send(text: str, headers: dict[str, str]) -> httpx.Response:
            body = ask(text, hold="gate") if text.startswith("slow") else ask(text)
            return httpx.post(small.url + CHAT, json=body, headers=headers)

        calls = [threads.submit(send, f"slow {n}", one) for n in range(2)]
        eventually(lambda: len(street.seller.presented) == 2, "two calls in flight")
        refused = send("a", one)
        assert (refused.status_code, code(refused)) == (429, "key_share_exceeded")
        assert refused.headers["retry-after"] == "1"
        assert send("b", other).status_code == 200
        assert send("c", {}).status_code == 200
        street.release("gate")
        assert [call.result().status_code for call in calls] == [200, 200]
        eventually(lambda: send("a", one).status_code == 200, "a place of the key is free again")
    assert len(street.seller.presented) == 5


def test_a_client_that_leaves_before_its_request_is_complete_costs_nothing(street: Street) -> None:
    with socket.create_connection(("127.0.0.1", int(street.gateway.url.rpartition(":")[2]))) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert street.http.post(CHAT, json=ask("a")).status_code == 200
    assert len(street.seller.requests) == 1


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.dictionaries(st.sampled_from(["model", "messages", "stream", "x"]), st.text(max_size=20)).map(
            lambda fields: json.dumps(fields).encode()
        ),
    ),
    headers=st.dictionaries(
        st.sampled_from(["x-farebox-max-price", "x-farebox-seller", "x-farebox-request-id", "x-farebox-odd", "accept"]),
        st.text(st.sampled_from(HEADER_CHARACTERS), max_size=40),
    ),
)
def test_no_client_input_gets_a_5xx(street: Street, body: bytes, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = street.http.post("/v1/chat/completions", content=body, headers=raw)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


def test_a_large_answer_passes_through_whole(street: Street) -> None:
    texts = [f"text {number}" for number in range(20_000)]
    answer = street.openai.embeddings.create(model=f"paid/{MODEL}", input=texts)
    assert len(answer.data) == len(texts)

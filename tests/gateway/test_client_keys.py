"""Who may call the gateway: keys that are made, required, limited and revoked, and never passed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from buyer.home import Home
from buyer.pool import Pool
from gateway.cli import app
from gateway.config import GatewayConfig
from gateway.demo.model_server import model_server_app
from tests.gateway.parts import MODEL, Gateway, Listening, gateway, listening, sign_pool

CHAT = "/v1/chat/completions"
BODY = {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def running(home: Path, seller_server: Listening) -> Iterator[Gateway]:
    with closing(Pool.open(Home.open(home))) as pool:
        sign_pool(pool, seller_server.url, 10)
    with gateway(home, GatewayConfig(client_keys="required")) as opened:
        yield opened


def farebox(home: Path, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"], env={"FAREBOX_HOME": str(home)})
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def make_key(home: Path, name: str, *options: str) -> str:
    key: str = farebox(home, "key", "create", name, *options)["key"]
    return key


def call(running: Gateway, key: str | None, **headers: str) -> httpx.Response:
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.post(running.url + CHAT, json=BODY, headers=headers)


def test_a_call_without_a_valid_key_is_refused_in_the_openai_envelope_and_costs_nothing(running: Gateway) -> None:
    for key in (None, "sk-something", "fbx_wrong"):
        answer = call(running, key)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert httpx.get(f"{running.url}/v1/models").status_code == 401
    assert httpx.get(f"{running.url}/healthz").status_code == 200
    assert running.counts().ready == 10


def test_a_key_is_accepted_in_either_header_that_clients_use(home: Path, running: Gateway) -> None:
    key = make_key(home, "alice")
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=key) as client:
        made = client.chat.completions.create(**BODY)  # type: ignore[call-overload]
    assert made.choices
    assert running.counts().spent == 1
    answer = httpx.post(running.url + CHAT, json=BODY, headers={"x-api-key": key})
    assert answer.status_code == 200


def test_only_a_hash_of_a_key_is_on_disk(home: Path) -> None:
    key = make_key(home, "alice")
    listed = json.dumps(farebox(home, "key", "list"))
    assert "alice" in listed
    assert key not in listed
    for file in home.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes()


def test_a_revoked_key_is_refused_at_once_and_its_name_stays_taken(home: Path, running: Gateway) -> None:
    key = make_key(home, "alice")
    assert call(running, key).status_code == 200
    farebox(home, "key", "revoke", "alice")
    assert call(running, key).status_code == 401
    again = CliRunner().invoke(app, ["key", "create", "alice"], env={"FAREBOX_HOME": str(home)})
    assert again.exit_code == 2


def test_a_key_calls_only_its_models(home: Path, running: Gateway) -> None:
    key = make_key(home, "alice", "--models", "another-model")
    answer = call(running, key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
    listed = httpx.get(f"{running.url}/v1/models", headers={"authorization": f"Bearer {key}"})
    assert listed.json()["data"] == []
    assert running.counts().ready == 10


def test_a_key_spends_no_more_than_its_budget_and_is_told_when_it_resets(home: Path, running: Gateway) -> None:
    key, other = make_key(home, "alice", "--max-per-day", "0.002"), make_key(home, "bob")
    assert [call(running, key).status_code for _ in range(3)] == [200, 200, 402]
    refused = call(running, key).json()["error"]
    assert refused["code"] == "budget_exceeded"
    assert "key:alice: 0.002 a day" in refused["message"]
    assert "it resets at" in refused["message"]
    assert call(running, other).status_code == 200
    assert running.counts().spent == 3


def test_two_different_keys_in_one_request_are_refused(home: Path, running: Gateway) -> None:
    answer = call(running, make_key(home, "alice"), **{"x-api-key": make_key(home, "bob")})
    assert answer.status_code == 401


def test_a_client_key_is_never_sent_to_the_fallback_nor_to_a_seller(
    home: Path, seller: Any, seller_server: Listening
) -> None:
    with closing(Pool.open(Home.open(home))) as pool:
        sign_pool(pool, seller_server.url, 2)
    key = make_key(home, "alice")
    seen: list[dict[str, str]] = []
    model = model_server_app((MODEL,))

    async def fallback(scope: Any, receive: Any, send: Any) -> None:
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await model(scope, receive, send)

    with listening(fallback) as server, gateway(home, GatewayConfig(fallback=server.url)) as running:
        headers = {"authorization": f"Bearer {key}", "x-api-key": key, "payment-signature": "x", "x-payment": "y"}
        assert httpx.post(running.url + CHAT, json={**BODY, "model": MODEL}, headers=headers).status_code == 200
        assert httpx.post(running.url + CHAT, json=BODY, headers=headers).status_code == 200
    (to_fallback,) = seen
    ((_, to_seller),) = seller.requests
    assert key not in json.dumps([to_fallback, to_seller])
    assert not {"payment-signature", "x-payment", "authorization", "x-api-key"} & to_fallback.keys()


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"listen": "0.0.0.0:8403"}, True),
        ({"listen": "10.1.2.3:8403", "client_keys": "optional"}, False),
        ({"client_keys": "required"}, True),
    ],
)
def test_keys_are_required_beyond_loopback_unless_the_settings_say_otherwise(
    settings: dict[str, Any], needed: bool
) -> None:
    assert GatewayConfig(**settings).needs_keys is needed

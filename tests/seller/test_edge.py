"""What crosses the gate and what does not: steering headers, caches, preflights, secrets, and the admin plane."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.admin_token import ADMIN_TOKEN_VARIABLE
from contracts.errors import ConfigInvalid
from contracts.evm.devnet import Devnet
from contracts.redaction import RedactingFormatter, redacted
from seller.admin import admin_app
from tests.seller.shop import BODY, CHAT, GAS, Shop, error_of, open_shop

TOKEN = "a-long-enough-token-0123456789"


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(chain, tmp_path, settle="before") as opened:
        yield opened


@pytest.mark.parametrize("path", [CHAT, "/paid", "/v1/models"])
async def test_options_is_answered_here_and_opens_nothing_to_foreign_pages(shop: Shop, path: str) -> None:
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = await shop.client.options(path, headers=preflight)
    assert (answer.status_code, answer.content) == (204, b"")
    assert "OPTIONS" in answer.headers["allow"]
    assert not any(name.startswith("access-control-") for name in answer.headers)
    assert (await shop.client.options("/nothing")).status_code == 404
    assert shop.app.runs == 0


@pytest.mark.parametrize(
    "name", ["x-http-method-override", "x_http_method_override", "x-original-url", "x-rewrite-url"]
)
async def test_no_application_is_told_of_another_method_or_path(shop: Shop, name: str) -> None:
    await shop.client.get("/v1/models", headers={name: "DELETE"})
    await shop.client.post(CHAT, content=BODY, headers={name: "DELETE", "PAYMENT-SIGNATURE": shop.payment()})
    assert [name.encode() in seen["headers"] for seen in shop.app.seen] == [False, False]


async def test_a_paid_request_is_for_the_whole_answer_as_it_is_now(shop: Shop) -> None:
    asked = {"if-none-match": "*", "if-modified-since": "x", "range": "bytes=0-1", "accept-language": "en"}
    await shop.client.get("/paid", headers=asked | {"PAYMENT-SIGNATURE": shop.payment(path="/paid")})
    assert b"accept-language" in shop.app.seen[0]["headers"]
    assert not {b"if-none-match", b"if-modified-since", b"range"} & set(shop.app.seen[0]["headers"])


async def test_a_free_route_cannot_speak_for_the_seller(shop: Shop) -> None:
    shop.app.headers = [(b"PAYMENT-RESPONSE", b"forged"), (b"x-farebox-charged", b"true"), (b"etag", b'"1"')]
    answer = await shop.client.get("/v1/models")
    assert answer.status_code == 200
    assert not {"payment-response", "x-farebox-charged"} & set(answer.headers)
    assert answer.headers["etag"] == '"1"'


async def test_neither_a_demand_for_payment_nor_a_failure_is_cached(shop: Shop) -> None:
    unpaid = await shop.client.get("/paid")
    assert (unpaid.headers["cache-control"], unpaid.headers["vary"]) == ("no-store", "PAYMENT-SIGNATURE, X-PAYMENT")
    shop.app.status, shop.app.headers = 404, [(b"cache-control", b"public, max-age=600"), (b"vary", b"accept")]
    missing = await shop.client.get("/paid", headers={"PAYMENT-SIGNATURE": shop.payment(path="/paid")})
    assert missing.status_code == 404
    assert missing.headers["cache-control"] == "no-store"
    assert missing.headers["vary"] == "accept, PAYMENT-SIGNATURE, X-PAYMENT"


async def test_a_failure_of_ours_tells_a_client_neither_host_nor_file(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, rpc=["http://127.0.0.1:9/v2/SECRET"], settle="before") as shop:
        answer = await shop.buy()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "chain_unavailable")
        assert "same payment" in error_of(answer)["message"]
        assert not [word for word in ("127.0.0.1", "SECRET", "rpc") if word in answer.text]


SIGNATURE = "0x" + "ab" * 65


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("post to https://mainnet.example/v2/AbCd1234?x=1 failed", "https://mainnet.example", "AbCd1234"),
        ("https://user:hunter2@node.example:8545/", "node.example:8545", "hunter2"),
        ("postgresql://shop:hunter2@db.example/farebox", "db.example", "hunter2"),
        ("postgresql://shop:hunter2@db.example", "db.example", "hunter2"),
        (f"sig={SIGNATURE}", "sig=", "ab" * 20),
        ("key " + "7c" * 32, "key", "7c" * 20),
        ("settled in 0x" + "7c" * 32, "0x" + "7c" * 32, "***"),
        ("paid by 0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "***"),
        ("header eyJ4NDAyVmVyc2lvbiI6M" + "iwiYWNjZXB0ZWQiOnsi" * 12 + "==", "header", "WNjZXB0ZWQ"),
        ("Authorization: Bearer sk-abcdefgh12345678", "Authorization", "sk-abc"),
        ("{'authorization': 'Bearer sk-abcdefgh12345678'}", "authorization", "sk-abc"),
        ("PAYMENT-SIGNATURE: eyJ4", "PAYMENT-SIGNATURE", "eyJ4"),
        ("password=hunter2 next", "next", "hunter2"),
        ("POST /v1/chat/completions: payment_expired: must be at least 36 s ahead", "/v1/chat/completions", "***"),
    ],
)
def test_a_log_line_keeps_what_helps_and_loses_what_is_secret(text: str, kept: str, gone: str) -> None:
    assert kept in redacted(text)
    assert gone not in redacted(text)


def test_a_traceback_in_the_log_is_redacted_too(devnet: Devnet) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    log = logging.getLogger("tests.redaction")
    log.addHandler(handler)
    log.propagate = False
    try:
        raise RuntimeError("key " + devnet.accounts[GAS].key.hex())  # noqa: TRY301
    except RuntimeError:
        log.exception("at %s", "https://node.example/SECRET")
    finally:
        log.removeHandler(handler)
    assert "RuntimeError" in stream.getvalue()
    assert devnet.accounts[GAS].key.hex() not in stream.getvalue()
    assert "SECRET" not in stream.getvalue()


async def ask(shop: Shop, listens: str, path: str, **headers: str) -> httpx.Response:
    transport: Any = httpx.ASGITransport(app=admin_app(shop.seller, listens))
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{listens}") as client:
        return await client.get(path, headers=headers)


async def test_with_a_token_books_and_metrics_want_it_and_health_does_not(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, TOKEN)
    for path in ("/status", "/metrics"):
        for refused in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}, {"x-token": TOKEN}):
            assert (await ask(shop, "127.0.0.1", path, **refused)).status_code == 401
        assert (await ask(shop, "127.0.0.1", path, authorization=f"Bearer {TOKEN}")).status_code == 200
    assert (await ask(shop, "127.0.0.1", "/healthz")).status_code == 200
    foreign = await ask(shop, "127.0.0.1", "/status", authorization=f"Bearer {TOKEN}", host="evil.example")
    assert foreign.status_code == 400


async def test_beyond_loopback_a_token_is_a_must(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADMIN_TOKEN_VARIABLE, raising=False)
    assert (await ask(shop, "127.0.0.1", "/status")).status_code == 200
    with pytest.raises(ConfigInvalid, match=ADMIN_TOKEN_VARIABLE):
        admin_app(shop.seller, "0.0.0.0")
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigInvalid, match="16 printable"):
        admin_app(shop.seller, "0.0.0.0")
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, TOKEN)
    assert (await ask(shop, "0.0.0.0", "/status")).status_code == 401

"""Goal: an operator sees what is left, what it could cost, and what went wrong."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from contracts.errors import ConfigInvalid
from gateway.admin import admin_app
from gateway.admin_token import TokenCheck, admin_token
from gateway.config import parse_listen
from tests.gateway.conftest import COUNT, Street
from tests.gateway.parts import MODEL, PRICE_ATOMIC, gateway, listening
from tests.gateway.test_repetition import CHAT, ask
from tests.patience import eventually


def test_status_shows_every_state_price_and_worst_case(street: Street) -> None:
    street.http.post(CHAT, json=ask("a"))
    street.http.post(CHAT, json=ask("b", status="503"))
    status = httpx.get(f"{street.gateway.admin_url}/status").json()
    (purchase,) = status["purchases"]
    assert status["ready"] is True
    states = {
        state: purchase[state] for state in ("ready", "claimed", "sent", "unknown", "spent", "expired", "cancelled")
    }
    assert states == {
        "ready": COUNT - 2,
        "claimed": 0,
        "sent": 0,
        "unknown": 1,
        "spent": 1,
        "expired": 0,
        "cancelled": 0,
    }
    assert purchase["signed"] == sum(states.values()) == COUNT
    assert purchase["price_atomic"] == str(PRICE_ATOMIC)
    assert purchase["worst_case_loss_atomic"] == str((COUNT - 1) * PRICE_ATOMIC)
    assert (purchase["model"], purchase["endpoint"]) == (MODEL, street.seller_server.url)
    assert purchase["last_error"]["code"] == "outcome_unknown"


def test_metrics_count_calls_money_and_states_and_carry_no_words_of_clients(street: Street) -> None:
    street.http.post(CHAT, json=ask("a"))
    street.http.post(CHAT, json=ask("b", status="503"))
    street.http.post(CHAT, json={**ask("c"), "model": "paid/words-of-a-client"})
    lines = (
        'farebox_gateway_calls_total{outcome="served",purchase="chat"} 1.0',
        'farebox_gateway_calls_total{outcome="unknown",purchase="chat"} 1.0',
        f'farebox_gateway_spent_atomic_total{{purchase="chat"}} {float(PRICE_ATOMIC)}',
        f'farebox_pool_authorizations{{purchase="chat",state="ready"}} {float(COUNT - 2)}',
        'farebox_pool_authorizations{purchase="chat",state="unknown"} 1.0',
        'farebox_gateway_refusals_total{code="not_found"} 1.0',
        "farebox_gateway_in_flight 0.0",
    )

    def missing() -> list[str]:
        text = httpx.get(f"{street.gateway.admin_url}/metrics").text
        assert "words-of-a-client" not in text
        return [line for line in lines if line not in text]

    # A call ends a moment after its last byte.
    eventually(lambda: not missing(), "every line is there")


def test_ready_means_that_a_paid_call_would_be_served(home: Path, street: Street) -> None:
    for base in (street.gateway.url, street.gateway.admin_url):
        assert httpx.get(f"{base}/healthz").json() == {"ok": True}
        assert httpx.get(f"{base}/readyz").json() == {"ok": True, "reasons": []}
    for number in range(COUNT):
        street.http.post(CHAT, json=ask(str(number)))
    answer = street.http.get("/readyz")
    assert answer.status_code == 503
    assert "farebox refill" in answer.json()["reasons"][0]
    street.gateway.top_up(street.seller_server.url, 1)
    assert street.http.get("/readyz").status_code == 200
    street.gateway.call(lambda desk: setattr(desk, "stopping", True))
    assert street.http.get("/readyz").status_code == 503


def test_without_a_purchase_it_lives_and_is_not_ready(tmp_path: Path) -> None:
    with gateway(tmp_path / "empty") as running:
        assert httpx.get(f"{running.url}/healthz").status_code == 200
        answer = httpx.get(f"{running.url}/readyz")
        assert (answer.status_code, "farebox buy" in answer.json()["reasons"][0]) == (503, True)
        assert httpx.get(f"{running.admin_url}/status").json()["purchases"] == []
        assert httpx.get(f"{running.url}/v1/models").json() == {"object": "list", "data": []}


def test_a_purchase_removed_by_another_process_is_no_longer_offered(street: Street) -> None:
    street.gateway.call(
        lambda desk: desk.pool.database.transact(lambda rows: rows.execute("UPDATE purchases SET state = 'removed'"))
    )
    street.gateway.call(lambda desk: desk.shelf.reload())
    assert street.http.get("/v1/models").json()["data"] == []
    assert street.http.post(CHAT, json=ask("a")).status_code == 404


TOKEN = "a-token-that-nobody-guesses"


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"bearer {TOKEN}x", f"Basic {TOKEN}"])
def test_with_an_admin_token_books_and_metrics_want_it_and_health_does_not(street: Street, given: str | None) -> None:
    with listening(TokenCheck(admin_app(street.gateway.desk), TOKEN)) as server:  # type: ignore[arg-type]
        headers = {} if given is None else {"authorization": given}
        for path in ("/status", "/metrics", "/anything"):
            assert httpx.get(server.url + path, headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/healthz", headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/healthz", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_beyond_loopback_the_admin_plane_does_not_start_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAREBOX_ADMIN_TOKEN", raising=False)
    assert admin_token(parse_listen("127.0.0.1:9403")) is None
    with pytest.raises(ConfigInvalid, match="FAREBOX_ADMIN_TOKEN"):
        admin_token(parse_listen("0.0.0.0:9403"))
    monkeypatch.setenv("FAREBOX_ADMIN_TOKEN", "short")
    with pytest.raises(ConfigInvalid, match="16"):
        admin_token(parse_listen("127.0.0.1:9403"))
    monkeypatch.setenv("FAREBOX_ADMIN_TOKEN", TOKEN)
    assert admin_token(parse_listen("0.0.0.0:9403")) == TOKEN

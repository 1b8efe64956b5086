"""Hostile sellers, clients and copies against the gateway: no key to steal, one authorization a request, one seller."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from buyer import Client
from buyer.home import Home
from buyer.pool import Pool
from contracts.address import address_text
from contracts.errors import FareboxError
from contracts.evm.devnet import Devnet
from contracts.headers import encode_header
from contracts.wire import SettlementResponse
from tests.attacks.traps import Behaviour, Trap, asking, laid, respond
from tests.buyer.parts import serving, token_of
from tests.gateway.parts import KEY, MODEL, PRICE_ATOMIC, Gateway, gateway, offer_at, sign_pool
from tests.patience import PATIENCE_S, eventually

CHAT = "/v1/chat/completions"
PROMPT = {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": "hi"}]}
ID = {"x-farebox-request-id": "one request"}


def trap_of(chain: Devnet, takes: Behaviour) -> Trap:
    payer = address_text(KEY.address)
    chain.mint(payer, 10_000_000)

    async def ask(trap: Trap, send: Any) -> None:
        await respond(send, 402, asking(replace(offer_at(), asset=token_of(chain))), b"{}")

    return Trap(chain, payer, ask, takes)


@contextmanager
def trapped(chain: Devnet, folder: Path, trap: Trap, *, purchases: int, signed: int = 6) -> Iterator[Gateway]:
    """Run a gateway whose pool is pinned to a trap."""
    home = folder / "home"
    with laid(trap, purchases=purchases, price_atomic=PRICE_ATOMIC) as url:
        pool = Pool.open(Home.open(home))
        sign_pool(pool, url, signed, asset=token_of(chain))
        pool.close()
        with gateway(home) as running:
            yield running


def ask(running: Gateway, headers: dict[str, str] | None = None, **changed: Any) -> httpx.Response:
    return httpx.post(running.url + CHAT, json=PROMPT | changed, headers=headers, timeout=PATIENCE_S)


async def dearer(trap: Trap, send: Any) -> None:
    offer = replace(offer_at(PRICE_ATOMIC * 100), asset=token_of(trap.chain))
    await respond(send, 402, asking(offer), b"{}")


async def other_payee(trap: Trap, send: Any) -> None:
    offer = replace(offer_at(), asset=token_of(trap.chain), pay_to=b"\x33" * 20)  # type: ignore[arg-type]
    await respond(send, 402, asking(offer), b"{}")


async def reissue(trap: Trap, send: Any) -> None:
    await trap.asks(trap, send)


async def fail(trap: Trap, send: Any) -> None:
    await respond(send, 500, {}, b"{}")


async def cut(trap: Trap, send: Any) -> None:
    raise ConnectionError("the seller hangs up")


async def header_bomb(trap: Trap, send: Any) -> None:
    await respond(send, 402, {"PAYMENT-REQUIRED": "A" * 30_000, "x-more": "b" * 200_000}, b"{}")


async def body_bomb(trap: Trap, send: Any) -> None:
    await respond(send, 402, {"content-encoding": "gzip"}, gzip.compress(bytes(50_000_000)))


async def fake_refusal(trap: Trap, send: Any) -> None:
    receipt = SettlementResponse(success=False, transaction="", network="eip155:31337", error_reason="pay_again")
    await respond(send, 402, {"PAYMENT-RESPONSE": encode_header(receipt)}, b'{"error":"sign again"}')


REFUSALS: list[Any] = [dearer, other_payee, reissue, fail, cut, header_bomb, body_bomb, fake_refusal]


@pytest.mark.parametrize(
    ("takes", "headers"),
    [
        *(pytest.param(takes, ID, id=f"{takes.__name__}, with an id") for takes in REFUSALS),
        *(pytest.param(takes, {}, id=f"{takes.__name__}, by content") for takes in (reissue, fail, cut)),
    ],
)
def test_whatever_a_seller_answers_a_repeated_request_presents_one_authorization(
    chain: Devnet, tmp_path: Path, takes: Behaviour, headers: dict[str, str]
) -> None:
    """B2, B3, B7, B8, I2: higher price, other payee, a 402 after payment, errors, bombs; six repetitions."""
    trap = trap_of(chain, takes)
    with trapped(chain, tmp_path, trap, purchases=1) as running:
        for _ in range(6):
            assert ask(running, headers).status_code >= 400
    assert len(trap.nonces) == 1


async def nothing(trap: Trap, send: Any) -> None:
    await respond(send, 200, {}, b"")


async def lie(trap: Trap, send: Any) -> None:
    receipt = SettlementResponse(success=True, transaction="0x" + "00" * 32, network="eip155:1")
    await respond(send, 200, {"PAYMENT-RESPONSE": encode_header(receipt), "set-cookie": "a=b"}, b'{"fake":1}')


@pytest.mark.parametrize("takes", [nothing, lie])
def test_an_empty_or_lying_answer_costs_its_request_one_price(chain: Devnet, tmp_path: Path, takes: Behaviour) -> None:
    """B3, B10: the same id is never bought twice, whatever came for it."""
    trap = trap_of(chain, takes)
    with trapped(chain, tmp_path, trap, purchases=1) as running:
        for _ in range(5):
            answer = ask(running, ID)
            assert answer.status_code in (200, 409)
            assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("paid", [True, False], ids=["paid", "unpaid"])
def test_no_payment_follows_a_redirect(chain: Devnet, tmp_path: Path, paid: bool) -> None:
    """B1, I22."""
    elsewhere = trap_of(chain, nothing)
    with laid(elsewhere, purchases=0) as other_url:

        async def redirect(trap: Trap, send: Any) -> None:
            await respond(send, 307, {"location": other_url + CHAT})

        trap = trap_of(chain, redirect)
        with trapped(chain, tmp_path, trap, purchases=1) as running:
            assert ask(running, ID if paid else {}).status_code >= 400
    assert elsewhere.requests == 0


def test_a_dripping_answer_ends_and_its_repetition_pays_nothing_more(chain: Devnet, tmp_path: Path) -> None:
    """B10, I17: a byte now and then is neither silence nor an answer; the time of the whole call bounds it."""

    async def drip(trap: Trap, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(50):
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.sleep(0.05)

    trap = trap_of(chain, drip)
    with trapped(chain, tmp_path, trap, purchases=1) as running, ThreadPoolExecutor(1) as threads:
        for times in (1, 2):
            call = threads.submit(ask, running, ID)
            eventually(lambda: len(trap.received) == times, "the payment is presented")  # noqa: B023
            running.end_calls()
            with suppress(httpx.HTTPError):
                call.result(PATIENCE_S)
    assert len(trap.nonces) == 1


def test_forty_calls_spend_what_was_signed_and_no_more(chain: Devnet, tmp_path: Path) -> None:
    """B4: a pool is a budget; when it is empty the answer is a refusal, not a signature."""
    trap = trap_of(chain, nothing)
    with trapped(chain, tmp_path, trap, purchases=6) as running:
        statuses = [ask(running, n=number).status_code for number in range(40)]
    assert statuses.count(200) == 6
    assert set(statuses[6:]) <= {402, 429, 503}


@pytest.mark.parametrize(
    "extra",
    [
        {"api_base": "URL"},
        {"base_url": "URL"},
        {"api_key": "sk-1", "api_base": "URL"},
        {"extra_body": {"api_base": "URL"}},
        {"metadata": {"api_base": "URL"}},
        {"user_config": {"api_base": "URL"}},
        {"model": f"paid/{MODEL}@URL"},
        {"model": f"openai/paid/{MODEL}"},
    ],
)
def test_a_caller_cannot_choose_where_a_payment_goes(chain: Devnet, tmp_path: Path, extra: dict[str, Any]) -> None:
    """G1: `api_base` and its kin in the body are words to the seller, not addresses to us."""
    elsewhere, trap = trap_of(chain, nothing), trap_of(chain, nothing)
    with laid(elsewhere, purchases=0) as other, trapped(chain, tmp_path, trap, purchases=1) as running:
        changed = json.loads(json.dumps(extra).replace("URL", other))
        headers = {"x-api-base": other, "x-forwarded-host": other, "api-base": other}
        answer = ask(running, headers, **changed)
        assert answer.status_code < 500
    assert elsewhere.requests == 0


def test_no_client_credential_reaches_a_seller(chain: Devnet, tmp_path: Path) -> None:
    """G1, I22: keys, cookies and addresses of the client stay here."""
    seen: list[dict[str, str]] = []
    trap = trap_of(chain, nothing)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append({name.decode(): value.decode("latin-1") for name, value in scope["headers"]})
        await Trap.__call__(trap, scope, receive, send)

    with serving(app) as url:
        pool = Pool.open(Home.open(tmp_path / "home"))
        sign_pool(pool, url, 1, asset=token_of(chain))
        pool.close()
        with gateway(tmp_path / "home") as running:
            secret = {
                "authorization": "Bearer sk-client",
                "cookie": "a=b",
                "x-api-key": "k",
                "x-forwarded-for": "1.1.1.1",
            }
            secret |= {"payment-signature": "forged", "x-payment": "forged", "proxy-authorization": "Basic eA=="}
            assert ask(running, secret).status_code == 200
    text = json.dumps(seen)
    for word in ("sk-client", "a=b", "forged", "1.1.1.1", "eA=="):
        assert word not in text


@pytest.mark.parametrize("path", ["/status", "/metrics", "/readyz", "/"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_the_admin_port_takes_no_orders(chain: Devnet, tmp_path: Path, path: str, method: str) -> None:
    """G2, D1: it shows, and changes nothing; no secret is in what it shows."""
    trap = trap_of(chain, nothing)
    with trapped(chain, tmp_path, trap, purchases=0) as running:
        assert httpx.request(method, running.admin_url + path).status_code in (401, 403, 404, 405)
        shown = httpx.get(running.admin_url + path)
        with Pool.open(Home.open(tmp_path / "home")) as pool:
            spender = pool.spender()
            claim = spender.claim(pool.purchase("chat"), "look", 1)
            assert claim.signature.hex() not in shown.text
            spender.abort(claim)
            spender.close()


def test_a_copied_pool_pays_nobody_but_its_sellers(chain: Devnet, tmp_path: Path) -> None:
    """G4: whoever has the file can cash in at the pinned payee, for the pinned price, and nothing else."""
    trap = trap_of(chain, nothing)
    with trapped(chain, tmp_path, trap, purchases=0):
        pass
    thief = tmp_path / "thief"
    shutil.copytree(tmp_path / "home", thief)
    elsewhere = trap_of(chain, nothing)
    with laid(elsewhere, purchases=0) as other:
        # A copy may be refused as a whole.
        with suppress(FareboxError), Pool.open(Home.open(thief)) as pool:
            with Client(pool=pool, purchase="chat", base_url=other) as client:
                client.post(CHAT, json=PROMPT)
                pytest.fail("the copy paid somebody else")
    assert elsewhere.received == []

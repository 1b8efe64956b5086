"""A small shop for tests: an inline application that counts its runs, behind the real middleware and a real chain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.headers import decode_settlement_response
from contracts.wire import SettlementResponse
from seller import PaymentMiddleware, SellerConfig
from seller.config import AssetSettings
from seller.service import Seller
from tests.patience import PATIENCE_S
from tests.paying import sign_payment

PRICE_ATOMIC = 1000
STORE_VARIABLE = "FAREBOX_TEST_STORE"
CHAT = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'

SELLER, GAS, BUYER, OTHER = 1, 2, 3, 4
"""Which of the chain's accounts is who."""


def write_key(folder: Path, secret: bytes) -> Path:
    path = folder / "settler.key"
    path.write_text(secret.hex())
    path.chmod(0o600)
    return path


def store_url(folder: Path) -> str:
    """Return the store of a test: a file in `folder`, unless the tests run on another store."""
    return os.environ.get(STORE_VARIABLE) or f"sqlite:///{folder}/seller.db"


def write_settings(chain: Devnet, folder: Path, upstream: str, settle: str, routes: str = "", more: str = "") -> Path:
    """Write the seller.yaml of a `farebox sell` in front of `upstream`; return its path.

    It sells chat at 0.001 unless `routes`, a YAML list, says otherwise. `more` are further lines.
    """
    write_key(folder, chain.accounts[GAS].key)
    path = folder / "seller.yaml"
    path.write_text(
        f"""\
upstream: {upstream}
listen: 127.0.0.1:0
network: {chain.network}
rpc: ["{chain.rpc_url}"]
asset: {{address: "{chain.token}", name: USDC, version: "2", decimals: 6, symbol: USDC}}
pay_to: "{chain.accounts[SELLER].address}"
settle: {settle}
settler: {{kind: chain, key_file: settler.key}}
{more}
routes:
{routes or f'  - {{match: "POST {CHAT}", price: "0.001"}}'}
"""
    )
    return path


def settings(chain: Devnet, folder: Path, **changed: Any) -> SellerConfig:
    """Return the settings of a shop on `chain` with its store in `folder`."""
    given: dict[str, Any] = {
        "network": chain.network,
        "rpc": [chain.rpc_url],
        "asset": AssetSettings(address=chain.token, name="USDC", version="2", decimals=6, symbol="USDC"),
        "pay_to": chain.accounts[SELLER].address,
        "settler": {"kind": "chain", "key_file": str(write_key(folder, chain.accounts[GAS].key))},
        "store": store_url(folder),
        "routes": [
            {"match": f"POST {CHAT}", "price": "0.001", "models": {"big-model": "0.01"}},
            {"match": "POST /v1/messages", "price": "0.001"},
            {"match": "POST /v1/audio/transcriptions", "models": {"ears": "0.002"}},
            {"match": "GET /paid", "price": "0.01"},
            {"match": "GET /v1/models", "free": True},
        ],
    } | changed
    return SellerConfig.model_validate(given)


class Application:
    """An ASGI application whose next answers a test chooses; it counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self.seen: list[dict[str, Any]] = []
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
        self.body = b'{"ok":true}'
        self.behave: Callable[[Any, Any, Any], Awaitable[None]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        self.runs += 1
        message = await receive()
        self.seen.append({"headers": dict(scope["headers"]), "body": message["body"], "method": scope["method"]})
        if self.behave is not None:
            await self.behave(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


class Shop:
    """The application, the middleware in front of it, and a client."""

    def __init__(self, chain: Devnet, config: SellerConfig, *, settles: bool = True) -> None:
        self.chain = chain
        self.app = Application()
        self.seller = Seller(config, settles=settles)
        self.middleware = PaymentMiddleware(self.app, seller=self.seller)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.middleware), base_url="http://shop", timeout=60
        )

    @property
    def earned(self) -> int:
        """What the seller's account holds on chain, in atomic units."""
        return self.chain.balance_of(self.chain.accounts[SELLER].address)

    def payment(self, account: int = BUYER, path: str = CHAT, model: str | None = None, **changed: Any) -> str:
        """Return a payment header for the price of `path`, signed by one of the chain's accounts."""
        route = next(route for route in self.seller.book.routes if route.match.endswith(" " + path))
        return sign_payment(self.chain.accounts[account].key, route.quote_for(model).offer, **changed)

    async def buy(self, header: str | None = None, *, body: bytes = BODY, **given: Any) -> httpx.Response:
        """POST one chat call with a payment: the one given, or a new one."""
        payment = self.payment() if header is None else header
        return await self.client.post(CHAT, content=body, headers={"PAYMENT-SIGNATURE": payment}, **given)

    async def buy_in_vain(
        self, happened: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, header: str | None = None
    ) -> httpx.Response:
        """Buy, and end the wait for the settlement once something `happened`, which no clock tells."""
        asked = asyncio.ensure_future(self.buy(header))
        async with asyncio.timeout(PATIENCE_S):
            while not (happened() or asked.done()):  # noqa: ASYNC110 - it happens in a worker
                await asyncio.sleep(0.01)
        with monkeypatch.context() as patched:
            patched.setattr("seller.settlement.engine.SETTLE_WAIT_S", 0.0)
            return await asked

    async def trust(self, account: int = BUYER) -> None:
        """Let an account become a known payer: one settled payment."""
        answer = await self.buy(self.payment(account))
        assert answer.status_code == 200, answer.text
        await self.settled()

    async def settled(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until nothing is outstanding."""
        async with asyncio.timeout(timeout_s):
            while self.seller.ledger.sums().outstanding_atomic:  # noqa: ASYNC110 - another process may settle
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self.client.aclose()
        await self.seller.close()


@asynccontextmanager
async def open_shop(
    chain: Devnet, folder: Path, *, settles: bool = True, funds: int = 1_000_000, **changed: Any
) -> AsyncIterator[Shop]:
    """Open a shop on `chain` whose buyer holds `funds` atomic units."""
    if funds:
        chain.mint(chain.accounts[BUYER].address, funds)
    shop = Shop(chain, settings(chain, folder, **changed), settles=settles)
    await shop.seller.open()
    try:
        yield shop
    finally:
        with contextlib.suppress(Exception):
            await shop.client.aclose()
        await shop.seller.close()


def receipt_of(answer: httpx.Response) -> SettlementResponse:
    """Return the receipt in an answer's `PAYMENT-RESPONSE`."""
    return decode_settlement_response(answer.headers["PAYMENT-RESPONSE"])


def is_replayed(answer: httpx.Response) -> bool:
    """Whether an answer is one that was given before."""
    return "x-farebox-replayed" in answer.headers


def served_once(answers: list[httpx.Response]) -> bool:
    """Whether one of `answers` to one payment is its goods, and all others are that answer again or 409."""
    fresh = [answer for answer in answers if answer.status_code == 200 and not is_replayed(answer)]
    others = [answer for answer in answers if answer not in fresh]
    return len(fresh) == 1 and all(
        answer.status_code == 409 or (is_replayed(answer) and answer.content == fresh[0].content) for answer in others
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """Return the `error` member of an answer's body."""
    error: dict[str, Any] = json.loads(answer.content)["error"]
    return error


def address_of(chain: Devnet, account: int) -> bytes:
    return parse_address(chain.accounts[account].address)

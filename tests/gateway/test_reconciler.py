"""Goal: a payment of unknown fate is settled by the chain, without asking the chain all the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from buyer.home import Home
from buyer.pool import Claim, Counts, Pool
from contracts.address import address_text, parse_address
from contracts.evm.devnet import Devnet
from contracts.schemes.exact_eip3009 import transfer_call
from gateway.limits import RECONCILE_EVERY_S
from gateway.reconciler import Reconciler
from gateway.shelf import Shelf
from tests.buyer.parts import closed_port_url
from tests.gateway.parts import ASSET, KEY, listening, sign_pool

COUNT = 3


class AskedPool(Pool):
    """A pool that counts how often the chain is asked."""

    asked = 0

    async def reconcile(self, name: str, rpc_urls: object, **options: Any) -> dict[str, int]:
        self.asked += 1
        return await super().reconcile(name, rpc_urls, **options)  # type: ignore[arg-type]


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[AskedPool]:
    opened = AskedPool.open(Home.open(tmp_path / "home"))
    assert isinstance(opened, AskedPool)
    yield opened
    opened.close()


def lose_one(pool: Pool, name: str = "chat") -> Claim:
    """Let one authorization be sent and its answer be lost."""
    spender = pool.spender()
    claim = spender.claim(pool.purchase(name), f"request at {name}", int(time.time()))
    spender.sent(claim)
    spender.lost(claim, status=None, reason="no answer")
    spender.close()
    return claim


def settle(chain: Devnet, claim: Claim) -> None:
    """Collect a payment, as its seller would."""
    chain.send(chain.accounts[1].address, chain.token, transfer_call(claim.authorization, claim.signature))


async def test_a_payment_that_was_collected_becomes_spent(chain: Devnet, pool: AskedPool) -> None:
    chain.mint(address_text(KEY.address), 10**6)
    asset = replace(ASSET, address=parse_address(chain.token))
    sign_pool(pool, "http://127.0.0.1:1", COUNT, asset=asset, rpc_urls=(chain.rpc_url,))
    claim = lose_one(pool)
    reconciler = Reconciler(pool, Shelf(pool), [])

    await reconciler.run(0.0)
    assert pool.counts("chat") == Counts(ready=COUNT - 1, unknown=1)
    settle(chain, claim)
    await reconciler.run(RECONCILE_EVERY_S - 1)
    assert pool.counts("chat").unknown == 1
    await reconciler.run(RECONCILE_EVERY_S)
    assert pool.counts("chat") == Counts(ready=COUNT - 1, spent=1)


async def test_the_chain_is_asked_less_often_while_it_has_no_news(chain: Devnet, pool: AskedPool) -> None:
    asset = replace(ASSET, address=parse_address(chain.token))
    sign_pool(pool, "http://127.0.0.1:1", COUNT, asset=asset)
    reconciler = Reconciler(pool, Shelf(pool), [chain.rpc_url])
    await reconciler.run(0.0)
    assert pool.asked == 0
    lose_one(pool)
    for now_s in range(3600):
        await reconciler.run(float(now_s))
    assert 5 <= pool.asked <= 15


async def test_a_dead_endpoint_is_reported_and_tried_again(pool: AskedPool, caplog: pytest.LogCaptureFixture) -> None:
    sign_pool(pool, "http://127.0.0.1:1", COUNT, rpc_urls=(closed_port_url(),))
    lose_one(pool)
    reconciler = Reconciler(pool, Shelf(pool), [])
    for now_s in (0.0, RECONCILE_EVERY_S):
        await reconciler.run(now_s)
    assert pool.asked == 2
    assert "chain_unavailable" in caplog.text


@pytest.mark.parametrize("timestamp", ["0x" + "f" * 64, "-0x1", "soon", None])
async def test_an_endpoint_that_tells_no_time_expires_nothing(
    chain: Devnet, pool: AskedPool, timestamp: str | None
) -> None:
    said = {"eth_chainId": "0x7a69", "eth_getBlockByNumber": {"timestamp": timestamp}, "eth_call": "0x0"}

    async def lie(request: Request) -> JSONResponse:
        asked = await request.json()
        answers = [
            {"id": each["id"], "result": said[each["method"]]}
            for each in (asked if isinstance(asked, list) else [asked])
        ]
        return JSONResponse(answers)

    with listening(Starlette(routes=[Route("/", lie, methods=["POST"])])) as liar:
        asset = replace(ASSET, address=parse_address(chain.token))
        sign_pool(pool, "http://127.0.0.1:1", COUNT, asset=asset, rpc_urls=(liar.url,))
        lose_one(pool)
        await Reconciler(pool, Shelf(pool), []).run(0.0)
    assert pool.counts("chat") == Counts(ready=COUNT - 1, unknown=1)


async def test_a_defect_with_one_purchase_keeps_nobody_else_waiting(chain: Devnet, pool: AskedPool) -> None:
    asset = replace(ASSET, address=parse_address(chain.token))
    for name in ("chat", "later"):
        sign_pool(pool, "http://127.0.0.1:1", COUNT, name=name, asset=asset, rpc_urls=(chain.rpc_url,))
        lose_one(pool, name)

    asked: list[str] = []

    async def reconcile(name: str, rpc_urls: object, **options: Any) -> dict[str, int]:
        asked.append(name)
        raise OverflowError("a defect")

    pool.reconcile = reconcile  # type: ignore[method-assign]
    await Reconciler(pool, Shelf(pool), []).run(0.0)
    assert asked == ["chat", "later"]

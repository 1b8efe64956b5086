"""`farebox sell` and `farebox settle` as a user starts them: real processes, real sockets, signals."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from seller.config import read_config
from seller.pricebook import PriceBook
from tests.patience import PATIENCE_S
from tests.paying import sign_payment
from tests.seller.shop import BODY, BUYER, CHAT, GAS, PRICE_ATOMIC, SELLER, Application, open_shop, write_settings
from tests.seller.test_streams import Tap, listening
from tests.warm import Warm
from tests.warm_crew import Forked


@asynccontextmanager
async def running(
    warm: Warm, folder: Path, *words: str, **variables: str
) -> AsyncIterator[tuple[Forked, dict[str, Any]]]:
    """Run a command that stays until it is ended; give its process, and what it said when it was ready."""
    log = folder / "logs" / f"{words[0]}-{secrets.token_hex(4)}.log"
    process = Forked(warm, warm.start(words, folder, log, errors=log.with_suffix(".err"), environment=variables))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (text := log.read_text()).endswith("}\n"):
                assert process.poll() is None, text + log.with_suffix(".err").read_text()
                await asyncio.sleep(0.01)
        yield process, json.loads(text)
    finally:
        process.kill()
        process.wait()


def selling(warm: Warm, config: Path, **variables: str) -> AbstractAsyncContextManager[tuple[Forked, dict[str, Any]]]:
    """Run `farebox sell`, as `running` does."""
    words = ("sell", "--config", str(config), "--admin-listen", "127.0.0.1:0", "--json")
    return running(warm, config.parent, *words, **variables)


def payment(config: Path, chain: Devnet) -> dict[str, str]:
    offer = PriceBook(read_config(config)).routes[0].quote_for(None).offer
    return {"PAYMENT-SIGNATURE": sign_payment(chain.accounts[BUYER].key, offer)}


@pytest.fixture
def funded(chain: Devnet) -> Devnet:
    chain.mint(chain.accounts[BUYER].address, 1_000_000)
    return chain


async def test_sell_serves_shows_its_books_and_ends_with_zero_on_sigterm(
    funded: Devnet, warm: Warm, tmp_path: Path
) -> None:
    async with listening(Application()) as upstream, httpx.AsyncClient(timeout=60) as client:
        config = write_settings(funded, tmp_path, upstream, "auto")
        async with selling(warm, config) as (process, document):
            assert document["prices"] == [
                {"match": f"POST {CHAT}", "model": None, "price_atomic": 1000, "price": "0.001 USDC"}
            ]
            assert document["gas_account"] == funded.accounts[GAS].address
            url, admin = document["listening"], document["admin"]
            assert (await client.get(admin + "/healthz")).text == "ok\n"
            assert (await client.get(admin + "/readyz")).text == "ready\n"
            assert (await client.post(url + CHAT, content=BODY)).status_code == 402
            answer = await client.post(url + CHAT, content=BODY, headers=payment(config, funded))
            assert answer.json() == {"ok": True}
            await client.post(url + CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": "!"})
            status = (await client.get(admin + "/status")).json()
            assert status["earned_atomic"] == PRICE_ATOMIC
            assert status["unsettled_atomic"] == 0
            assert status["payments"] == {"settled": 1}
            assert status["refusals"] == {"malformed": 1}
            assert len(status["settlement_txs"]) == 1
            metrics = (await client.get(admin + "/metrics")).text
            assert f'farebox_seller_requests_total{{outcome="paid",route="POST {CHAT}"}} 1.0' in metrics
            assert 'farebox_seller_money_atomic{book="earned"} 1000.0' in metrics
            rebound = await client.get(admin + "/status", headers={"host": "evil.example"})
            assert rebound.status_code == 400
            process.terminate()
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
        assert funded.balance_of(funded.accounts[SELLER].address) == PRICE_ATOMIC


async def test_sigterm_lets_a_stream_in_flight_finish(funded: Devnet, warm: Warm, tmp_path: Path) -> None:
    application, tap = Application(), Tap()
    application.behave = tap
    async with listening(application) as upstream, httpx.AsyncClient(timeout=60) as client:
        config = write_settings(funded, tmp_path, upstream, "before")
        async with selling(warm, config) as (process, document):
            tap.turns.put_nowait(b"one ")
            headers = payment(config, funded)
            async with client.stream("POST", document["listening"] + CHAT, content=BODY, headers=headers) as answer:
                got = answer.aiter_raw()
                assert await anext(got) == b"one "
                process.terminate()
                tap.turns.put_nowait(b"two")
                tap.turns.put_nowait(None)
                assert b"".join([chunk async for chunk in got]) == b"two"
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0


async def test_a_mounted_middleware_and_farebox_settle_share_the_work(
    funded: Devnet, warm: Warm, tmp_path: Path
) -> None:
    config = write_settings(funded, tmp_path, "http://127.0.0.1:9", "auto")
    async with open_shop(funded, tmp_path, settle="auto", settles=False, funds=0) as mounted:
        words = ("settle", "--config", str(config), "--admin-listen", "127.0.0.1:0", "--json")
        async with running(warm, tmp_path, *words) as (process, document):
            assert document["gas_account"] == funded.accounts[GAS].address
            async with httpx.AsyncClient() as client:
                assert (await client.get(document["admin"] + "/readyz")).text == "ready\n"
            for _ in range(3):
                assert (await mounted.buy()).status_code == 200
            await mounted.settled()
            assert mounted.earned == 3 * PRICE_ATOMIC
            process.terminate()
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0


async def test_killing_sell_in_mid_call_costs_nobody_anything(funded: Devnet, warm: Warm, tmp_path: Path) -> None:
    application, tap = Application(), Tap()
    async with listening(application) as upstream, httpx.AsyncClient(timeout=60) as client:
        config = write_settings(funded, tmp_path, upstream, "auto")
        headers = payment(config, funded)
        application.behave = tap
        async with selling(warm, config) as (process, document):
            request = asyncio.ensure_future(client.post(document["listening"] + CHAT, content=BODY, headers=headers))
            async with asyncio.timeout(PATIENCE_S):
                while application.runs == 0:  # noqa: ASYNC110 - the run is counted in another process's request
                    await asyncio.sleep(0.01)
            process.kill()
            await asyncio.wait([request])
            assert isinstance(request.exception(), httpx.HTTPError)
        tap.turns.put_nowait(None)
        application.behave = None
        async with selling(warm, config) as (process, document):
            answer = await client.post(document["listening"] + CHAT, content=BODY, headers=headers)
            assert answer.status_code == 200
            again = await client.post(document["listening"] + CHAT, content=BODY, headers=headers)
            assert (again.headers["x-farebox-replayed"], again.content) == ("true", answer.content)
        assert application.runs == 2
        assert funded.balance_of(funded.accounts[SELLER].address) == PRICE_ATOMIC


@pytest.mark.parametrize(
    ("find", "replace", "says"),
    [
        ("settle: auto", "setle: auto", "did you mean"),
        ("upstream: http://127.0.0.1:9\n", "", "upstream"),
        ('name: USDC, version: "2"', 'name: USDC, version: "1"', "EIP-712"),
    ],
)
def test_settings_that_do_not_hold_end_sell_with_two_and_the_reason(
    funded: Devnet, warm: Warm, tmp_path: Path, find: str, replace: str, says: str
) -> None:
    config = write_settings(funded, tmp_path, "http://127.0.0.1:9", "auto")
    config.write_text(config.read_text().replace(find, replace))
    done = warm.run(["sell", "--config", str(config), "--admin-listen", "127.0.0.1:0", "--json"], tmp_path)
    assert done.code == 2
    assert says in done.document["error"]["message"]
    assert "Traceback" not in done.err


def test_an_address_that_another_has_is_named_with_what_to_do(funded: Devnet, warm: Warm, tmp_path: Path) -> None:
    taken = funded.rpc_url.removeprefix("http://")
    config = write_settings(funded, tmp_path, "http://127.0.0.1:9", "auto")
    done = warm.run(["sell", "--config", str(config), "--admin-listen", taken, "--json"], tmp_path)
    error = done.document["error"]
    assert (done.code, error["message"]) == (2, f"--admin-listen: {taken}: address already in use")
    assert "end what uses that address" in error["remedy"]


def test_importing_the_seller_loads_nothing_heavy() -> None:
    script = (
        "import seller, sys; heavy = {'web3', 'litellm', 'lightgbm', 'eth_account', 'uvicorn', 'aiohttp', 'typer'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr

"""Background work with a real seller and real payments: it waits, makes room for others, and is paid once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from bench.idle_town import MODEL, IdleTown, open_idle_town
from buyer.budgets import parse_units
from buyer.home import Home
from buyer.pool import Pool
from contracts.evm.devnet import Devnet
from contracts.tiers import BACKGROUND, NORMAL
from gateway.cli import app
from seller.pricebook import PriceBook
from tests.patience import PATIENCE_S
from tests.paying import sign_payment

pytestmark = pytest.mark.timeout(300)

LIST_PRICE, BACKGROUND_PRICE = 1_000, 500
CHAT = "/v1/chat/completions"


@pytest.fixture
async def town(chain: Devnet, tmp_path: Path) -> AsyncIterator[IdleTown]:
    async with open_idle_town(tmp_path, slots=2, payments={BACKGROUND: 3}, chain=chain) as built:
        yield built


def farebox(town: IdleTown, *words: str) -> dict[str, Any]:
    """Return what a command of the buyer who can wait prints."""
    done = CliRunner().invoke(app, ["background", *words, "--json"], env={"FAREBOX_HOME": str(town.homes[BACKGROUND])})
    document: dict[str, Any] = json.loads(done.stdout or done.stderr)
    return document


async def in_full(town: IdleTown, takes_ms: int) -> int:
    """Pay for one call in full, of somebody else, and return its status."""
    offer = PriceBook(town.seller).routes[0].quote_for(MODEL).tiers[NORMAL].offer
    body = {"model": MODEL, "messages": [], "max_tokens": takes_ms}
    payer = town.chain.accounts[3]
    town.chain.mint(payer.address, LIST_PRICE)
    header = sign_payment(payer.key, offer)
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        answer = await client.post(town.seller.base_url + CHAT, json=body, headers={"PAYMENT-SIGNATURE": header})
        return answer.status_code


async def true(town: IdleTown, is_so: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - it becomes true in other processes
            await asyncio.sleep(0.02)


async def test_background_work_makes_room_for_others_and_is_paid_once_as_its_commands_show(town: IdleTown) -> None:
    units = parse_units("0.0005", "price") or 0
    with town.backlog() as backlog:
        town.model.endless.add(1)
        task = town.add(backlog, 10, max_price_units=units)
        too_cheap = town.add(backlog, 10, max_price_units=units - 1)
        filling = town.start_filling()
        await true(town, lambda: town.model.calls == 1)
        # One slot is free for the first, and the second needs the one in use; should they miss each other, once more.
        in_full_calls = 0
        while not backlog.find(task).put_off:
            assert list(await asyncio.gather(in_full(town, 300), in_full(town, 300))) == [200, 200]
            in_full_calls += 2
        await true(town, lambda: backlog.find(task).state == "done")
        done, waiting = backlog.find(task), backlog.find(too_cheap)
    filling.kill()
    assert done.put_off >= 1, "it was stopped for those who paid in full"
    assert (done.result, done.paid_units) == ("done", units)
    assert (waiting.state, waiting.paid_units) == ("waiting", None)
    await true(town, lambda: town.earned_atomic() == in_full_calls * LIST_PRICE + BACKGROUND_PRICE)
    with Pool.open(Home.open(town.homes[BACKGROUND])) as pool:
        counts = pool.counts(BACKGROUND)
    assert (counts.signed, counts.ready, counts.spent) == (3, 2, 1)
    words = ("--model", MODEL, "--max-price", "0.0005", "--max-tokens", "5")
    assert farebox(town, "cancel", too_cheap)["state"] == "cancelled"
    added = farebox(town, "add", "wait a little", *words)
    once = town.start_filling("--once", "--json")
    assert await asyncio.to_thread(once.process.wait, PATIENCE_S) == 0, once.last_words()
    shown = farebox(town, "show", added["task"])
    assert (shown["answer"], shown["paid"], shown["seller"]) == ("done", "0.0005", BACKGROUND)
    assert {each["state"] for each in farebox(town, "list")["tasks"]} == {"cancelled", "done"}
    assert farebox(town, "cancel", task)["error"]["code"] == "request_in_progress"
    assert farebox(town, "show", "ghost")["error"]["code"] == "not_found"
    assert "PROMPT" in farebox(town, "add", " ", *words)["error"]["message"]

"""Another process holds the seller's database for ten seconds: 503 and Retry-After, and nobody else is held up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import pytest

from contracts.evm.devnet import Devnet
from contracts.limits import STORE_BUSY_TIMEOUT_S
from tests.patience import PATIENCE_S
from tests.seller.shop import PRICE_ATOMIC, Shop, error_of, open_shop, served_once

HELD_S = 10
HOLDS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
connection.execute("ROLLBACK")
"""


@contextmanager
def held_by_another_process(store: Path) -> Iterator[None]:
    """Hold the write lock of a SQLite store in a process of its own."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.communicate()


async def repeat_until_served(shop: Shop, header: str) -> list[httpx.Response]:
    """Present one payment until its goods come; return every answer on the way."""
    answers = [await shop.buy(header)]
    while answers[-1].status_code != 200:
        await asyncio.sleep(0.1)
        answers.append(await shop.buy(header))
    return answers


@pytest.mark.slow
async def test_a_database_that_is_locked_for_ten_seconds_costs_time_and_nothing_else(
    chain: Devnet, tmp_path: Path
) -> None:
    async with open_shop(chain, tmp_path) as shop:
        headers = [shop.payment() for _ in range(3)]
        free, rounds_s, last_s = 0, [0.0], time.monotonic()
        with held_by_another_process(tmp_path / "seller.db"):
            # Two copies of each payment, which would be two services if the claim were not one.
            buyers = [asyncio.create_task(repeat_until_served(shop, header)) for header in headers * 2]
            async with asyncio.timeout(PATIENCE_S):
                for _ in range(HELD_S * 10):
                    assert (await shop.client.get("/v1/models")).status_code == 200
                    free += 1
                    await asyncio.sleep(0.1)
                    rounds_s.append(time.monotonic() - last_s)
                    last_s = time.monotonic()
            assert not any(buyer.done() for buyer in buyers)
            # The usual round, as one may meet a busy machine.
            assert median(rounds_s) < STORE_BUSY_TIMEOUT_S / 2, "the event loop waited for the lock"
            assert shop.app.runs == free, "only free calls were served while the store was locked"
        answers = await asyncio.gather(*buyers)
        refused = [answer for each in answers for answer in each if answer.status_code != 200]
        assert {answer.status_code for answer in refused} <= {409, 503}
        ours = [answer for answer in refused if answer.status_code == 503]
        assert len(ours) >= len(headers)
        for answer in ours:
            assert "retry-after" in answer.headers
            assert error_of(answer)["code"] == "store_unavailable"
        for one, other in zip(answers[:3], answers[3:], strict=True):
            assert served_once([one[-1], other[-1]])
        await shop.settled()
        assert shop.app.runs == free + len(headers)
        assert shop.earned == len(headers) * PRICE_ATOMIC

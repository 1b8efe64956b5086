"""A facilitator with every fault: what it says decides nothing, the chain does, and nobody pays twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contracts.crash import VARIABLE
from contracts.evm.devnet import Devnet
from tests.faults.asking import body_of, repeat_until_final
from tests.faults.audit import differences, read_books
from tests.faults.facilitator import FAULTS, DoubleFacilitator
from tests.faults.town import Town, town
from tests.patience import PATIENCE_S
from tests.seller.shop import PRICE_ATOMIC, Shop, open_shop
from tests.warm import Warm

KILLED = -9


@pytest.fixture
def double(chain: Devnet) -> Iterator[DoubleFacilitator]:
    with DoubleFacilitator(chain) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seller.settlement.engine.SETTLE_WAIT_S", 1.0)
    monkeypatch.setattr("seller.settlement.facilitator.FACILITATOR_TIMEOUT_S", 0.5)
    monkeypatch.setattr("seller.settlement.facilitator.RETRY_S", 0.05)


@asynccontextmanager
async def facilitated(chain: Devnet, folder: Path, double: DoubleFacilitator, **changed: Any) -> AsyncIterator[Shop]:
    settler = {"kind": "facilitator", "url": double.url}
    async with open_shop(chain, folder, settler=settler, **changed) as shop:
        yield shop


@pytest.mark.parametrize("name", FAULTS)
async def test_a_payment_through_a_failing_facilitator_ends_in_goods_for_one_price(
    chain: Devnet, tmp_path: Path, double: DoubleFacilitator, name: str
) -> None:
    async with facilitated(chain, tmp_path, double, settle="before") as shop:
        double.fault = FAULTS[name]
        header = shop.payment()
        answer = await shop.buy(header)
        if not FAULTS[name].settles:
            # Nothing has moved: no goods, and never a request to pay again.
            assert answer.status_code == 503, answer.text
            assert "retry-after" in answer.headers
            assert shop.app.runs == 0
            assert shop.seller.ledger.sums().earned_atomic == 0
        double.fault = None
        async with asyncio.timeout(PATIENCE_S):
            while answer.status_code != 200:
                assert answer.status_code in (409, 503), answer.text
                await asyncio.sleep(0.05)
                answer = await shop.buy(header)
        assert shop.app.runs == 1
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC == shop.seller.ledger.sums().earned_atomic


async def test_goods_on_credit_are_paid_once_a_failing_facilitator_works_again(
    chain: Devnet, tmp_path: Path, double: DoubleFacilitator
) -> None:
    async with facilitated(chain, tmp_path, double, settle="async") as shop:
        for fault in FAULTS.values():
            double.fault = fault
            assert (await shop.buy()).status_code == 200
        double.fault = None
        await shop.settled()
        sums = shop.seller.ledger.sums()
        assert shop.earned == sums.earned_atomic == len(FAULTS) * PRICE_ATOMIC
        assert sums.lost_atomic == 0


@pytest.mark.parametrize("step", ["settle.given_away", "settle.judged"])
def test_a_payment_is_settled_once_when_the_seller_dies_around_the_facilitator(
    tmp_path: Path, chain: Devnet, warm: Warm, double: DoubleFacilitator, step: str
) -> None:
    with town(tmp_path, chain, warm) as here:
        _use_facilitator(here, double.url)
        here.start("model-server")
        here.start("sell")
        here.buy(4)
        here.start("serve")
        here.kill("sell")
        here.start("sell", **{VARIABLE: step})
        with ThreadPoolExecutor(1) as threads:
            request = threads.submit(repeat_until_final, here, "a call", body_of("hello"))
            assert here.wait_dead("sell") == KILLED
            here.start("sell")
            assert request.result().status == 200
        assert here.runs_by_prompt()["hello"] <= 2
        here.wait_for(lambda: not read_books(here).outstanding_atomic, here.running["sell"], "not settled")
        here.farebox("process", "--all")
        assert differences(read_books(here), signed=4, quiet=True) == []
        assert here.earned_atomic() == PRICE_ATOMIC


def _use_facilitator(here: Town, url: str) -> None:
    file = here.folder / "seller.yaml"
    text = file.read_text().replace("{kind: chain, key_file: settler.key}", f'{{kind: facilitator, url: "{url}"}}')
    file.write_text(text)
    here.seller_settles = True

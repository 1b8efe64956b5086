"""Settling through a facilitator that may be slow, silent, lying or broken: the chain decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from contracts.evm.devnet import Devnet
from contracts.evm.token import call_object
from contracts.schemes.exact_eip3009 import decode_payload, transfer_call
from contracts.wire import FacilitatorRequest
from tests.patience import PATIENCE_S
from tests.seller.shop import OTHER, PRICE_ATOMIC, Shop, error_of, open_shop, receipt_of
from tests.seller.test_streams import listening


class StandInFacilitator:
    """Stands in for a facilitator: settles on the real chain, and answers as a test wants."""

    def __init__(self, chain: Devnet) -> None:
        self._chain = chain
        self.calls = 0
        self.settles = True
        self.answer: Any = None
        self.app = Starlette(routes=[Route("/settle", self._settle, methods=["POST"])])

    def was_asked_again(self) -> bool:
        """Whether its first answer was read, and did not do."""
        return self.calls > 1

    async def _settle(self, request: Request) -> Response:
        self.calls += 1
        message = msgspec.json.decode(await request.body(), type=FacilitatorRequest)
        transaction = ""
        if self.settles:
            data = transfer_call(*decode_payload(message.payment_payload.payload))
            token: Any = bytes.fromhex(message.payment_requirements.asset[2:])
            sender = {"from": self._chain.accounts[OTHER].address}
            transaction = self._chain.rpc("eth_sendTransaction", sender | call_object(token, data))
            self._chain.mine()
        if isinstance(self.answer, Response):
            return self.answer
        network = self._chain.network
        return JSONResponse(self.answer or {"success": True, "transaction": transaction, "network": network})


@asynccontextmanager
async def facilitated(chain: Devnet, folder: Path, **changed: Any) -> AsyncIterator[tuple[Shop, StandInFacilitator]]:
    facilitator = StandInFacilitator(chain)
    async with listening(facilitator.app) as url:
        settler = {"kind": "facilitator", "url": url}
        async with open_shop(chain, folder, settler=settler, **changed) as shop:
            yield shop, facilitator


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again soon, so that a test of asking again is short."""
    monkeypatch.setattr("seller.settlement.facilitator.RETRY_S", 0.05)


@pytest.mark.parametrize("settle", ["before", "after", "async", "auto"])
async def test_a_facilitator_settles_in_every_mode(chain: Devnet, tmp_path: Path, settle: str) -> None:
    async with facilitated(chain, tmp_path, settle=settle) as (shop, facilitator):
        assert shop.seller.gas_account is None
        answer = await shop.buy()
        assert answer.status_code == 200, answer.text
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC
        assert facilitator.calls == 1
        assert shop.seller.ledger.sums().earned_atomic == PRICE_ATOMIC


async def test_a_success_that_the_chain_does_not_show_releases_nothing(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with facilitated(chain, tmp_path, settle="before") as (shop, facilitator):
        facilitator.settles = False
        facilitator.answer = {"success": True, "transaction": "0x" + "12" * 32, "network": chain.network}
        answer = await shop.buy_in_vain(facilitator.was_asked_again, monkeypatch)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "settlement_unavailable")
        assert shop.app.runs == 0
        assert shop.seller.ledger.sums().earned_atomic == 0


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("oops", 500),
        PlainTextResponse("<html>", 200),
        JSONResponse({"success": True, "transaction": ""}),
        JSONResponse({"success": False, "errorReason": "settlement_pending", "transaction": "0x12"}),
    ],
)
async def test_a_broken_answer_after_the_transfer_was_mined_is_found_on_chain(
    chain: Devnet, tmp_path: Path, answer: Response
) -> None:
    async with facilitated(chain, tmp_path, settle="before") as (shop, facilitator):
        facilitator.answer = answer
        bought = await shop.buy()
        assert bought.status_code == 200
        assert receipt_of(bought).transaction.startswith("0x")
        assert shop.earned == PRICE_ATOMIC


async def test_a_definite_refusal_is_402_and_the_payment_is_free_again(chain: Devnet, tmp_path: Path) -> None:
    async with facilitated(chain, tmp_path, settle="before") as (shop, facilitator):
        facilitator.settles = False
        facilitator.answer = {"success": False, "errorReason": "invalid_exact_evm_payload_secret_host_10.0.0.7"}
        header = shop.payment()
        answer = await shop.buy(header)
        assert (answer.status_code, error_of(answer)["code"]) == (402, "settlement_failed")
        assert "10.0.0.7" not in str(answer.headers) + answer.text
        assert shop.seller.ledger.sums().payments == {}
        facilitator.settles, facilitator.answer = True, None
        assert (await shop.buy(header)).status_code == 200


async def test_an_unanswered_settlement_stays_unknown_until_the_chain_tells(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with facilitated(chain, tmp_path, settle="before") as (shop, facilitator):
        facilitator.settles = False
        facilitator.answer = PlainTextResponse("busy", 503)
        header = shop.payment()
        first = await shop.buy_in_vain(facilitator.was_asked_again, monkeypatch, header)
        assert (first.status_code, error_of(first)["code"]) == (503, "settlement_unavailable")
        assert "retry-after" in first.headers
        assert shop.seller.ledger.sums().payments == {"submitted": 1}
        facilitator.settles, facilitator.answer = True, None
        await shop.settled()
        again = await shop.buy(header)
        assert again.status_code == 200
        assert again.headers["x-farebox-credit"] == "true"
        assert shop.earned == PRICE_ATOMIC


async def test_a_facilitator_that_is_down_is_passed_over_for_the_next(chain: Devnet, tmp_path: Path) -> None:
    facilitator = StandInFacilitator(chain)
    async with listening(facilitator.app) as url:
        settler = {"kind": "facilitator", "url": ["http://127.0.0.1:9", url]}
        async with open_shop(chain, tmp_path, settler=settler, settle="before") as shop:
            assert (await shop.buy()).status_code == 200
            assert shop.earned == PRICE_ATOMIC


async def test_a_refusal_is_not_believed_while_a_silent_facilitator_may_still_settle(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, refusing = StandInFacilitator(chain), StandInFacilitator(chain)
    silent.settles = refusing.settles = False
    silent.answer = PlainTextResponse("busy", 503)
    refusing.answer = {"success": False, "errorReason": "insufficient_funds"}
    async with listening(silent.app) as first, listening(refusing.app) as second:
        settler = {"kind": "facilitator", "url": [first, second]}
        async with open_shop(chain, tmp_path, settler=settler, settle="before") as shop:
            header = shop.payment()
            answer = await shop.buy_in_vain(refusing.was_asked_again, monkeypatch, header)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "settlement_unavailable")
            assert shop.seller.ledger.sums().payments == {"submitted": 1}
            silent.settles, silent.answer = True, None
            await shop.settled()
            assert (await shop.buy(header)).headers["x-farebox-credit"] == "true"
            assert shop.earned == PRICE_ATOMIC


@pytest.mark.parametrize("settle", ["after", "async", "auto"])
async def test_a_lying_success_earns_nothing_and_releases_nothing_on_its_word(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    async with facilitated(chain, tmp_path, settle=settle) as (shop, facilitator):
        facilitator.settles = False
        facilitator.answer = {"success": True, "transaction": "0x" + "12" * 32, "network": chain.network}
        answer = await shop.buy_in_vain(facilitator.was_asked_again, monkeypatch)
        # Only credit, which is bounded, lets goods leave before the chain shows the money.
        assert answer.status_code == (200 if settle == "async" else 503)
        async with asyncio.timeout(PATIENCE_S):
            while not facilitator.was_asked_again():  # noqa: ASYNC110 - the calls come from a worker
                await asyncio.sleep(0.01)
        sums = shop.seller.ledger.sums()
        assert (sums.earned_atomic, sums.payments) == (0, {"submitted": 1})


async def test_a_hundred_payments_do_not_overrun_the_facilitator(chain: Devnet, tmp_path: Path) -> None:
    async with facilitated(chain, tmp_path, settle="async") as (shop, facilitator):
        answers = await asyncio.gather(*(shop.buy() for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        await shop.settled()
        assert facilitator.calls == 40
        assert shop.earned == 40 * PRICE_ATOMIC

"""Goal: a call by usage costs, on chain, exactly what the model reported, from the client through gateway and seller.

Everything is real but the model: the gateway with a pool that was signed as `farebox buy` signs it, the seller with its
settler, Permit2 and its proxy on a local chain.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from buyer.home import Home
from buyer.pool import Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.purchase import terms_from_wire
from buyer.receipts import Receipt
from buyer.signers import KeySigner
from contracts.evm.devnet import Devnet
from contracts.offers import requirements
from gateway.demo import dialects
from gateway.demo.model_server import model_server_app
from seller import PaymentMiddleware
from seller.service import Seller
from tests.gateway.parts import Gateway, Listening, RawCall, gateway, in_thread
from tests.patience import eventually
from tests.seller.shop import BUYER, CHAT, SELLER, settings
from tests.seller.test_upto import FREE_OF_MINIMUM, INPUT, MODEL, OUTPUT, PRICE, PROMPT, USED, frames, request

COUNT = 6


@dataclass
class Town:
    """A seller by usage, and a gateway whose pool pays it."""

    chain: Devnet
    seller: Seller
    selling: Listening
    gateway: Gateway
    http: httpx.Client
    home: Path

    @property
    def earned_atomic(self) -> int:
        return self.chain.balance_of(self.chain.accounts[SELLER].address)

    def settled(self) -> int:
        """Wait until nothing is outstanding, and return what the seller has earned on chain."""
        eventually(lambda: self.seller.ledger.sums().outstanding_atomic == 0, "everything is settled")
        return self.earned_atomic

    def receipts(self) -> list[Receipt]:
        with Pool.open(Home.open(self.home)) as pool:
            return pool.receipts()

    def ask(self, **fields: Any) -> httpx.Response:
        return self.http.post(CHAT, json={**request(**fields), "model": f"paid/{MODEL}"})


@contextmanager
def town(chain: Devnet, folder: Path, price: dict[str, Any] = PRICE, **changed: Any) -> Iterator[Town]:
    routes = [{"match": f"POST {CHAT}", "models": {MODEL: price}}]
    seller = Seller(settings(chain, folder, routes=routes, **changed), settles=True)
    selling = Listening(PaymentMiddleware(model_server_app([MODEL]), seller=seller))

    async def sell() -> None:
        await seller.open()
        try:
            await selling.serve()
        finally:
            await seller.close()

    home = folder / "home"
    with in_thread(sell):
        try:
            _buy(chain, home, selling.url, seller)
            with gateway(home) as running, httpx.Client(base_url=running.url, timeout=60) as http:
                yield Town(chain, seller, selling, running, http, home)
        finally:
            selling.stop()


def _buy(chain: Devnet, home: Path, url: str, seller: Seller) -> None:
    wallet, offer = KeySigner(chain.accounts[BUYER].key), seller.book.routes[0].quotes[0].offer
    chain.mint(chain.accounts[BUYER].address, COUNT * offer.amount_atomic)
    chain.approve_permit2(chain.accounts[BUYER].address, COUNT * offer.amount_atomic)
    draft = Draft(
        name="metered",
        kind="pool",
        endpoint=url,
        model=MODEL,
        payer=wallet.address,
        terms=terms_from_wire(requirements(offer), decimals=6),
        price_cap_atomic=offer.amount_atomic,
        ttl_s=86_400,
        refill=None,
        rpc_urls=(chain.rpc_url,),
    )
    with Pool.open(Home.open(home)) as pool:
        carry_out(pool, asyncio.run(prepare(pool, draft, COUNT, int(time.time()))), wallet)


def told(stream: bytes) -> dict[str, Any]:
    """Return what the gateway tells at the end of a stream."""
    last = stream.rstrip(b"\n").rpartition(b"\n")[2]
    assert last.startswith(b": farebox ")
    document: dict[str, Any] = msgspec.json.decode(last.removeprefix(b": farebox "))
    return document


def test_a_stream_that_was_held_until_it_was_settled_says_its_charge_in_both_places(
    chain: Devnet, tmp_path: Path
) -> None:
    with town(chain, tmp_path, settle="auto") as street:
        answer = street.ask(stream=True)
        assert answer.content.startswith(frames())
        assert answer.headers["x-farebox-charged-atomic"] == told(answer.content)["charged_atomic"] == str(USED)
        assert street.earned_atomic == USED


def test_a_streamed_chat_costs_exactly_what_the_model_reported_on_chain(chain: Devnet, tmp_path: Path) -> None:
    with town(chain, tmp_path, settle="async") as street:
        answer = street.ask(stream=True)
        assert answer.content.startswith(frames())
        assert b"x-farebox-receipt" not in answer.content
        assert told(answer.content)["charged_atomic"] == str(USED)
        assert street.settled() == USED == 100 * INPUT + 7 * OUTPUT
        (receipt,) = street.receipts()
        assert (receipt.state, receipt.charged_atomic) == ("spent", USED)
        assert receipt.price_atomic == street.seller.book.routes[0].quotes[0].price_atomic


@pytest.mark.parametrize("settle", ["auto", "after", "async"])
def test_a_document_costs_what_it_reported_and_says_so_in_a_header(chain: Devnet, tmp_path: Path, settle: str) -> None:
    with town(chain, tmp_path, settle=settle) as street:
        answer = street.ask()
        assert answer.json() == dialects.chat(request()).document
        assert answer.headers["x-farebox-charged-atomic"] == str(USED)
        assert street.settled() == USED
        (receipt,) = street.receipts()
        assert receipt.charged_atomic == USED


def test_receipts_of_one_pool_have_names_of_their_own(chain: Devnet, tmp_path: Path) -> None:
    with town(chain, tmp_path, settle="async") as street:
        names = {street.ask().headers["x-farebox-receipt"] for _ in range(3)}
        assert names == {receipt.receipt_id for receipt in street.receipts()}
        assert len(names) == 3


def test_a_client_that_leaves_half_way_pays_for_what_was_made_on_chain(chain: Devnet, tmp_path: Path) -> None:
    with town(chain, tmp_path, settle="async") as street:
        hold = {"x-test-hold": "for-good", "x-test-hold-after-chunks": "5"}
        body = {**request(stream=True, metadata=hold), "model": f"paid/{MODEL}"}
        call = RawCall(street.gateway.url, json.dumps(body).encode())
        call.read_until(b'"content":"one "')
        call.leave()
        left = 100 * (len(PROMPT) // 8) + 7 * 4
        eventually(lambda: bool(street.seller.ledger.sums().payments.get("settled")), "the call is settled")
        assert street.settled() == left < USED
        assert [receipt.state for receipt in street.receipts()] == ["spent"]
        # It is over: asking again is a new request.
        assert street.ask(stream=True).content.startswith(frames())
        assert street.settled() == left + USED


def test_nothing_used_costs_nothing(chain: Devnet, tmp_path: Path) -> None:
    free = {**FREE_OF_MINIMUM, "per_million_input_tokens": "0.000001", "max_input_tokens": 10**6}
    del free["per_million_output_tokens"], free["max_output_tokens"]
    with town(chain, tmp_path, free, settle="async") as street:
        answer = street.ask(messages=[{"role": "user", "content": ""}])
        assert answer.headers["x-farebox-charged-atomic"] == "0"
        assert street.settled() == 0
        assert street.seller.ledger.transactions(10) == []
        assert street.receipts()[0].charged_atomic == 0


def test_requests_above_the_ceiling_say_what_fits_and_do_not_use_the_pool_up(chain: Devnet, tmp_path: Path) -> None:
    with town(chain, tmp_path, settle="async") as street:
        for number in range(3):
            answer = street.ask(max_tokens=50_000 + number)
            assert answer.status_code == 400
            assert "max_tokens of at most" in answer.text
            assert answer.headers["x-farebox-charged"] == ("unknown" if number == 0 else "false")
        assert [receipt.state for receipt in street.receipts()] == ["unknown"]
        assert street.settled() == 0
        assert street.ask(stream=True).content.startswith(frames())
        assert street.settled() == USED

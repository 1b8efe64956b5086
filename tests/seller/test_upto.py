"""Goal: what is sold by usage costs exactly what the model server reports, on chain; whatever happens on the way.

A real chain, real Permit2 and its proxy, the stand-in model server in the shapes of the OpenAI and Anthropic APIs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.address import parse_address
from contracts.errors import StoreUnavailable
from contracts.event_stream import EventSplitter
from contracts.evm.devnet import Devnet
from contracts.lifecycle import Money
from contracts.networks import Network
from contracts.stream_receipts import STREAM_RECEIPT, read_receipt_comment
from gateway.demo import dialects
from gateway.demo.model_server import model_server_app
from seller.facilitate.app import facilitator_app
from seller.ledger import Ledger
from seller.proxy import ReverseProxy
from seller.service import Seller
from seller.settlement.supported import warn_of_changed_facilitator
from tests.paying import offer_in
from tests.seller.shop import BUYER, CHAT, GAS, OTHER, Shop, error_of, is_replayed, open_shop, receipt_of
from tests.seller.test_facilitate import facilitating
from tests.seller.test_streams import listening

MODEL = "demo-model"
PROMPT = "what is the weather like"
INPUT, OUTPUT = 5, 11
# A token of input costs 100 atomic units and one of output 7, so that every sum tells how it came about.
PRICE = {
    "per_million_input_tokens": "100",
    "per_million_output_tokens": "7",
    "minimum": "0.000003",
    "max_input_tokens": 400,
    "max_output_tokens": 1000,
}
FREE_OF_MINIMUM = {name: value for name, value in PRICE.items() if name != "minimum"}
CEILING = 100 * 400 + 7 * 1000
USED = 100 * INPUT + 7 * OUTPUT
PATHS = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages")
EVENTS = [(b"content-type", b"text/event-stream")]
PIECE = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


def usage_event(given: int, made: int) -> bytes:
    """Return the event that `stream_options.include_usage` adds."""
    return b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n' % (given, made)


class Held:
    """An application that streams one piece, and the rest of its answer when `go_on` is set."""

    def __init__(self, rest: bytes) -> None:
        self.rest = rest
        self.delivered, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        self.delivered.set()
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": self.rest})


def request(path: str = CHAT, **fields: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "/v1/completions": {"prompt": PROMPT},
        "/v1/responses": {"input": PROMPT},
        "/v1/embeddings": {"input": PROMPT},
    }.get(path, {"messages": [{"role": "user", "content": PROMPT}]})
    return {"model": MODEL, **said, **fields}


@asynccontextmanager
async def metered_shop(
    chain: Devnet, folder: Path, *, price: dict[str, Any] = PRICE, **changed: Any
) -> AsyncIterator[Shop]:
    """Open a shop that sells the stand-in by usage to a buyer who has approved Permit2."""
    chain.approve_permit2(chain.accounts[BUYER].address, 10**12)
    changed.setdefault("upto", {"facilitator": chain.accounts[GAS].address})
    routes = [{"match": f"POST {path}", "models": {MODEL: price}} for path in PATHS]
    routes.append(
        {"match": "POST /v1/embeddings", "price": {"per_million_input_tokens": "100", "max_input_tokens": 400}}
    )
    async with open_shop(chain, folder, routes=routes, **changed) as shop:
        shop.middleware.app = model_server_app([MODEL])
        yield shop


async def ask(shop: Shop, path: str = CHAT, payment: str | None = None, **fields: Any) -> httpx.Response:
    header = payment or shop.payment(path=path, model=MODEL)
    return await shop.client.post(path, json=request(path, **fields), headers={"PAYMENT-SIGNATURE": header})


async def trust(shop: Shop) -> int:
    """Let the buyer become known, and return what that cost."""
    answer = await ask(shop)
    assert answer.status_code == 200, answer.text
    await shop.settled()
    return USED


def frames(path: str = CHAT, **fields: Any) -> bytes:
    """Return the stream as the model server makes it for a client that asked for no usage."""
    return b"".join(dialects.DIALECTS[path](request(path, stream=True, **fields)).frames)


async def test_the_402_offers_the_most_a_call_can_cost(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path) as shop:
        asked = await shop.client.post(CHAT, json=request())
        assert asked.status_code == 402
        offer = offer_in(asked.headers["PAYMENT-REQUIRED"])
        assert (offer.scheme, offer.method, offer.amount_atomic) == ("upto", "permit2", CEILING)
        assert offer.extra["facilitatorAddress"] == shop.seller.gas_account
        assert "up to 0.047 USDC" in error_of(asked)["message"]


@pytest.mark.parametrize(("path", "settle"), [(CHAT, "auto"), (CHAT, "after"), *((path, "async") for path in PATHS)])
async def test_a_document_costs_what_it_reports_and_the_receipt_says_so(
    chain: Devnet, tmp_path: Path, path: str, settle: str
) -> None:
    async with metered_shop(chain, tmp_path, settle=settle) as shop:
        answer = await ask(shop, path)
        assert answer.json() == dialects.DIALECTS[path](request(path)).document
        receipt = receipt_of(answer)
        assert (receipt.success, receipt.amount) == (True, str(USED))
        assert bool(receipt.transaction) == (settle != "async")
        await shop.settled()
        assert shop.earned == USED
        sums = shop.seller.ledger.sums()
        assert (sums.earned_atomic, sums.exposure_atomic, sums.lost_atomic) == (USED, 0, 0)


async def test_embeddings_cost_their_input(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="after") as shop:
        payment = shop.payment(path="/v1/embeddings")
        answer = await ask(shop, "/v1/embeddings", payment)
        assert answer.status_code == 200
        assert shop.earned == 100 * INPUT


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_to_a_known_payer_costs_what_its_end_reports(chain: Devnet, tmp_path: Path, path: str) -> None:
    async with metered_shop(chain, tmp_path) as shop:
        before = await trust(shop)
        answer = await ask(shop, path, stream=True)
        assert answer.content == frames(path)
        receipt = receipt_of(answer)
        assert (receipt.success, receipt.amount, receipt.transaction) == (True, None, "")
        assert receipt.extra == {"settlement": "metered"}
        await shop.settled()
        assert shop.earned == before + USED


async def test_the_stream_of_a_stranger_is_held_until_its_money_has_moved(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path) as shop:
        answer = await ask(shop, stream=True)
        assert answer.content == frames()
        assert (receipt_of(answer).amount, bool(receipt_of(answer).transaction)) == (str(USED), True)
        assert shop.earned == USED


async def test_a_client_that_asked_for_usage_gets_it(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        answer = await ask(shop, stream=True, stream_options={"include_usage": True})
        assert answer.content == frames(stream_options={"include_usage": True})
        assert b'"completion_tokens":11' in answer.content
        await shop.settled()
        assert shop.earned == USED


async def test_a_client_that_asks_for_it_finds_the_charge_at_the_end_of_the_stream(
    chain: Devnet, tmp_path: Path
) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        headers = {"PAYMENT-SIGNATURE": shop.payment(model=MODEL), STREAM_RECEIPT: "1"}
        answer = await shop.client.post(CHAT, json=request(stream=True), headers=headers)
        *events, last = EventSplitter().feed(answer.content)
        assert b"".join(events) == frames()
        receipt = read_receipt_comment(last)
        assert receipt is not None
        assert (receipt.success, receipt.amount, receipt.extra) == (True, str(USED), {"settlement": "queued"})


async def test_whoever_sends_the_payment_again_learns_the_charge_and_pays_no_more(
    chain: Devnet, tmp_path: Path
) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        payment = shop.payment(model=MODEL)
        first = await ask(shop, payment=payment, stream=True)
        await shop.settled()
        again = await ask(shop, payment=payment, stream=True)
        assert is_replayed(again)
        assert again.content == first.content
        assert receipt_of(again).amount == str(USED)
        assert receipt_of(again).transaction
        assert shop.earned == USED


async def test_after_a_restart_a_settled_payment_still_fetches_what_it_bought(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        payment = shop.payment(model=MODEL)
        first = await ask(shop, payment=payment, stream=True)
        await shop.settled()
        # Whoever asks the chain anew sees the nonce used.
        restarted = Seller(shop.seller.config, settles=False)
        shop.middleware.seller = restarted
        again = await ask(shop, payment=payment, stream=True)
        assert (again.status_code, again.content) == (200, first.content)
        assert is_replayed(again)
        other = await ask(shop, payment=payment)
        assert (other.status_code, error_of(other)["code"]) == (402, "payment_replayed")
        await restarted.close()


async def test_exposure_counts_the_ceiling_until_the_charge_is_known(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async", settles=False) as shop:
        held = shop.middleware.app = Held(usage_event(1, 2))
        asking = asyncio.ensure_future(ask(shop, stream=True))
        await held.delivered.wait()
        assert shop.seller.ledger.sums().exposure_atomic == CEILING
        held.go_on.set()
        assert (await asking).content == PIECE
        assert shop.seller.ledger.sums().exposure_atomic == 100 + 14


async def test_a_request_that_may_cost_more_is_refused_before_it_is_paid(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        for payment in (None, shop.payment(model=MODEL)):
            headers = {"PAYMENT-SIGNATURE": payment} if payment else {}
            refused = await shop.client.post(CHAT, json=request(max_tokens=50_000), headers=headers)
            assert refused.status_code == 400
            assert error_of(refused)["code"] == "above_ceiling"
            assert "max_tokens of at most" in error_of(refused)["message"]
        assert shop.seller.ledger.sums().payments == {}


async def test_what_goes_to_the_model_is_bounded(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        shop.middleware.app = shop.app
        headers = {"PAYMENT-SIGNATURE": shop.payment(model=MODEL), "accept-encoding": "gzip"}
        await shop.client.post(CHAT, json=request(stream=True), headers=headers)
        seen = shop.app.seen[0]
        body = json.loads(seen["body"])
        assert body["max_tokens"] == 1000
        assert body["stream_options"] == {"include_usage": True}
        assert seen["headers"][b"content-length"] == b"%d" % len(seen["body"])
        assert b"accept-encoding" not in seen["headers"]


async def test_a_model_server_that_reports_nothing_earns_the_minimum(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="after") as shop:
        shop.middleware.app = shop.app
        answer = await ask(shop)
        assert (answer.status_code, receipt_of(answer).amount) == (200, "3")
        assert shop.earned == 3


@pytest.mark.parametrize("settle", ["after", "async"])
async def test_nothing_used_is_settled_without_a_transaction(chain: Devnet, tmp_path: Path, settle: str) -> None:
    async with metered_shop(chain, tmp_path, price=FREE_OF_MINIMUM, settle=settle) as shop:
        shop.middleware.app = shop.app
        shop.app.body = b'{"usage":{"prompt_tokens":0,"completion_tokens":0}}'
        payment = shop.payment(model=MODEL)
        answer = await ask(shop, payment=payment)
        receipt = receipt_of(answer)
        assert (answer.status_code, receipt.success, receipt.amount, receipt.transaction) == (200, True, "0", "")
        assert receipt.extra is None
        sums = shop.seller.ledger.sums()
        assert (sums.payments, sums.outstanding_atomic) == ({"settled": 1}, 0)
        assert shop.seller.ledger.transactions(10) == []
        again = await ask(shop, payment=payment)
        assert is_replayed(again)
        assert shop.earned == 0


@pytest.mark.parametrize("status", [400, 503])
async def test_a_failure_of_the_model_server_is_not_charged(chain: Devnet, tmp_path: Path, status: int) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        answer = await ask(shop, stream=True, metadata={"x-test-status": str(status)})
        assert answer.status_code == status
        assert answer.headers["x-farebox-charged"] == "false"
        assert shop.seller.ledger.sums().outstanding_atomic == 0


@asynccontextmanager
async def online(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the shop, and the stand-in behind a proxy, on real sockets: only there can anybody hang up."""
    async with listening(model_server_app([MODEL])) as upstream:
        proxy = shop.middleware.app = ReverseProxy(upstream)
        async with listening(shop.middleware) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client
        await proxy.close()


async def leave_after(client: httpx.AsyncClient, payment: str, pieces: int, **fields: Any) -> bytes:
    """Read `pieces` pieces of an answer that is held there for good, and hang up."""
    hold = {"x-test-hold": "for-good", "x-test-hold-after-chunks": str(pieces + 1)}
    body = request(stream=True, metadata=hold, **fields)
    got = b""
    async with client.stream("POST", CHAT, json=body, headers={"PAYMENT-SIGNATURE": payment}) as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_raw():
            got += chunk
            if got.count(b"\n\n") == pieces + 1:
                return got
    raise AssertionError("the stream ended")


async def test_a_client_that_leaves_pays_for_what_was_made_until_then(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop, online(shop) as client:
        payment = shop.payment(model=MODEL)
        got = await leave_after(client, payment, 4)
        await shop.settled()
        # Nobody told the usage: the prompt counts as the least it can be.
        left = 100 * (len(PROMPT) // 8) + 7 * 4
        assert shop.earned == left < USED
        again = await ask(shop, payment=payment, stream=True, metadata={
            "x-test-hold": "for-good", "x-test-hold-after-chunks": "5",
        })  # fmt: skip
        assert is_replayed(again)
        assert again.content.startswith(got)
        assert b"answer_incomplete" in again.content
        assert receipt_of(again).amount == str(left)


async def test_a_model_server_that_breaks_off_is_paid_for_what_it_made(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop, online(shop) as client:
        body = request(stream=True, metadata={"x-test-die-after-chunks": "3", "x-test-delay-ms": "20"})
        headers = {"PAYMENT-SIGNATURE": shop.payment(model=MODEL)}
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", CHAT, json=body, headers=headers) as answer:
                await answer.aread()
        await shop.settled()
        assert shop.earned == 100 * (len(PROMPT) // 8) + 7 * 2


async def test_an_answer_stops_while_its_payment_can_still_be_settled(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop, online(shop) as client:
        payment = shop.payment(model=MODEL, valid_before_s=_now_s(chain) + 121)
        hold = {"x-test-hold": "for-good", "x-test-hold-after-chunks": "3"}
        headers = {"PAYMENT-SIGNATURE": payment}
        with pytest.raises(httpx.RemoteProtocolError):
            async with client.stream("POST", CHAT, json=request(stream=True, metadata=hold), headers=headers) as answer:
                await answer.aread()
        await shop.settled()
        assert shop.earned == 100 * (len(PROMPT) // 8) + 7 * 2


async def test_a_server_that_dies_in_mid_stream_is_paid_for_what_was_noted_and_no_more(
    chain: Devnet, tmp_path: Path
) -> None:
    async with metered_shop(chain, tmp_path, settle="async", settles=False) as shop:
        held = shop.middleware.app = Held(PIECE * 5)
        asking = asyncio.ensure_future(ask(shop, stream=True))
        await held.delivered.wait()
        # What a process that was killed leaves: the next one that opens the store takes it up.
        other = Ledger(shop.seller.config.store, shop.seller.ledger.chain_id, shop.seller.ledger.token)
        other._end_owner(shop.seller.ledger.owner.id)
        sums = other.sums()
        due = 100 * (len(PROMPT) // 8) + 7
        assert (sums.payments, sums.outstanding_atomic) == ({Money.QUEUED.value: 1}, due)
        held.go_on.set()
        await asyncio.wait([asking])
        assert other.sums().outstanding_atomic == due
        other.close()


async def test_a_store_that_fails_at_the_end_is_told_the_charge_before_the_next_payment(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with metered_shop(chain, tmp_path, settle="async") as shop:
        database = shop.seller.ledger.database
        write = database.write

        async def fail(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("the disk is full")

        async def stream(_scope: Any, _receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            # The delivery is on disk; from here on nothing is written.
            monkeypatch.setattr(database, "write", fail)
            await send({"type": "http.response.body", "body": usage_event(1, 2)})

        shop.middleware.app = stream
        assert (await ask(shop, stream=True)).status_code == 200
        assert shop.seller.ledger.sums().outstanding_atomic == CEILING
        monkeypatch.setattr(database, "write", write)
        shop.middleware.app = model_server_app([MODEL])
        assert (await ask(shop)).status_code == 200
        await shop.settled()
        assert shop.earned == 100 + 2 * 7 + USED


async def test_a_mounted_middleware_charges_and_another_process_settles(chain: Devnet, tmp_path: Path) -> None:
    async with metered_shop(chain, tmp_path, settle="async", settles=False) as shop:
        assert (await ask(shop, stream=True)).status_code == 200
        assert shop.seller.ledger.sums().outstanding_atomic == USED
        settling = Seller(shop.seller.config, settles=True)
        await settling.open()
        await shop.settled()
        await settling.close()
        assert shop.earned == USED


@pytest.mark.parametrize("stream", [False, True])
async def test_a_facilitator_settles_what_was_used(chain: Devnet, tmp_path: Path, stream: bool) -> None:
    async with facilitating(chain, tmp_path) as theirs, listening(facilitator_app(theirs.service)) as url:
        settler = {"kind": "facilitator", "url": url}
        async with metered_shop(chain, tmp_path, settle="async", settler=settler) as shop:
            answer = await ask(shop, stream=stream)
            assert answer.status_code == 200
            await shop.settled()
            assert shop.earned == USED


@pytest.mark.parametrize(("account", "warns"), [(GAS, False), (OTHER, True)])
async def test_a_facilitator_that_settles_with_another_account_is_warned_of(
    chain: Devnet, tmp_path: Path, caplog: pytest.LogCaptureFixture, account: int, warns: bool
) -> None:
    async with facilitating(chain, tmp_path) as theirs, listening(facilitator_app(theirs.service)) as url:
        pinned = parse_address(chain.accounts[account].address)
        await warn_of_changed_facilitator([url], Network(chain.chain_id), pinned)
        assert ("facilitator_changed" in caplog.text) is warns
        if warns:
            assert chain.accounts[GAS].address in caplog.text


def _now_s(chain: Devnet) -> int:
    return int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

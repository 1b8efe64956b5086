"""A client that hung up, or lost its answer, gets its goods when it comes back with the same payment and request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from contracts.evm.devnet import Devnet
from tests.patience import PATIENCE_S
from tests.seller.shop import BODY, CHAT, PRICE_ATOMIC, Shop, error_of, is_replayed, open_shop, receipt_of
from tests.seller.test_streams import Tap, listening

MODES = ["before", "auto", "after", "async"]
EVENTS = [(b"content-type", b"text/event-stream")]


@asynccontextmanager
async def online(
    chain: Devnet, folder: Path, settle: str, **changed: Any
) -> AsyncIterator[tuple[Shop, httpx.AsyncClient]]:
    """Open a shop behind a real socket, because only there can a client hang up."""
    async with open_shop(chain, folder, settle=settle, **changed) as shop, listening(shop.middleware) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield shop, client


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition is a row in a store
            await asyncio.sleep(0.01)


async def asked_again(client: httpx.AsyncClient, header: str, *, body: bytes = BODY) -> httpx.Response:
    """Send the same payment again for as long as it is told to come back later."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await client.post(CHAT, content=body, headers={"PAYMENT-SIGNATURE": header})
            if answer.status_code != 409 or error_of(answer)["code"] != "request_in_progress":
                return answer
            assert "retry-after" in answer.headers
            await asyncio.sleep(0.05)


async def hang_up_during_the_work(shop: Shop, client: httpx.AsyncClient, header: str) -> asyncio.Event:
    """Send a paid request and close its connection while the application works; the event lets the work end."""
    running, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        running.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-model", b"kept")]})
        await send({"type": "http.response.body", "body": b"the goods"})

    shop.app.behave = slow
    request = asyncio.ensure_future(client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header}))
    await running.wait()
    request.cancel()
    await asyncio.wait([request])
    return go_on


@pytest.mark.parametrize("settle", MODES)
async def test_a_client_that_leaves_before_the_first_byte_finds_its_answer_later(
    chain: Devnet, tmp_path: Path, settle: str
) -> None:
    async with online(chain, tmp_path, settle) as (shop, client):
        header = shop.payment()
        go_on = await hang_up_during_the_work(shop, client, header)
        early = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header})
        assert (early.status_code, error_of(early)["code"]) == (409, "request_in_progress")
        go_on.set()
        answer = await asked_again(client, header)
        assert (answer.status_code, answer.content, answer.headers["x-model"]) == (200, b"the goods", "kept")
        assert is_replayed(answer)
        assert answer.headers["cache-control"] == "no-store"
        await shop.settled()
        later = await asked_again(client, header)
        assert receipt_of(later).transaction.startswith("0x")
        assert shop.app.runs == 1
        assert shop.earned == PRICE_ATOMIC


@pytest.mark.parametrize("settle", ["before", "auto", "async"])
async def test_a_client_that_leaves_in_mid_stream_gets_the_whole_stream_from_its_beginning(
    chain: Devnet, tmp_path: Path, settle: str
) -> None:
    async with online(chain, tmp_path, settle) as (shop, client):
        tap = shop.app.behave = Tap()
        header = shop.payment()
        tap.turns.put_nowait(b"data: 0\n\n")
        async with client.stream("POST", CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header}) as answer:
            assert await anext(answer.aiter_raw()) == b"data: 0\n\n"
        for turn in range(1, 5):
            tap.turns.put_nowait(b"data: %d\n\n" % turn)
        tap.turns.put_nowait(None)
        again = await asked_again(client, header)
        assert again.content == b"".join(b"data: %d\n\n" % turn for turn in range(5))
        assert again.headers["content-type"] == "text/event-stream"
        assert is_replayed(again)
        assert not tap.left.is_set()
        await shop.settled()
        assert shop.app.runs == 1
        assert shop.earned == PRICE_ATOMIC


async def test_a_stream_that_broke_off_ends_with_an_event_that_says_so(chain: Devnet, tmp_path: Path) -> None:
    async with online(chain, tmp_path, "auto") as (shop, client):

        async def breaks(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            await send({"type": "http.response.body", "body": b"data: 1\n\ndata: ha", "more_body": True})
            raise RuntimeError("cable")

        shop.app.behave = breaks
        header = shop.payment()
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header})
        again = await asked_again(client, header)
        assert again.status_code == 200
        goods, _, rest = again.content.partition(b"\n\nevent: error\ndata: ")
        assert goods == b"data: 1\n\ndata: ha"
        assert msgspec.json.decode(rest)["error"]["code"] == "answer_incomplete"
        assert shop.app.runs == 1


async def test_a_document_that_broke_off_is_made_again_without_a_new_charge(chain: Devnet, tmp_path: Path) -> None:
    async with online(chain, tmp_path, "auto") as (shop, client):

        async def breaks(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b'{"half":', "more_body": True})
            raise RuntimeError("cable")

        shop.app.behave = breaks
        header = shop.payment()
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header})
        shop.app.behave = None
        again = await asked_again(client, header)
        assert (again.status_code, again.headers["x-farebox-credit"]) == (200, "true")
        assert is_replayed(await asked_again(client, header))
        assert shop.app.runs == 2
        assert shop.earned == PRICE_ATOMIC


async def test_what_was_paid_stays_paid_when_the_authorization_has_expired(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="before") as shop:
        header = shop.payment()
        assert (await shop.buy(header)).status_code == 200
        failed = shop.payment()
        shop.app.status = 500
        assert (await shop.buy(failed)).headers["x-farebox-credit"] == "true"
        shop.app.status = 200
        unused = shop.payment()
        chain.rpc("evm_increaseTime", 3600)
        chain.mine()
        assert is_replayed(await shop.buy(header))
        assert (await shop.buy(failed)).headers["x-farebox-credit"] == "true"
        fresh = await shop.buy(unused)
        assert (fresh.status_code, error_of(fresh)["code"]) == (402, "payment_expired")
        other = await shop.buy(header, body=BODY.replace(b"hi", b"ho"))
        assert other.status_code == 402
        assert shop.app.runs == 3
        assert shop.earned == 2 * PRICE_ATOMIC


async def test_another_signature_does_not_fetch_an_answer(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="before") as shop:
        nonce = bytes([5]) * 32
        assert (await shop.buy(shop.payment(nonce=nonce))).status_code == 200
        # The same nonce, signed for a window that is over.
        expired = await shop.buy(shop.payment(nonce=nonce, valid_before_s=1_700_000_000))
        assert (expired.status_code, error_of(expired)["code"]) == (402, "payment_expired")


async def test_an_answer_lives_as_long_as_it_is_said_to_and_is_given_a_bounded_number_of_times(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.claims.ANSWER_REPLAYS_MAX", 2)
    async with open_shop(chain, tmp_path, settle="before") as shop:
        header = shop.payment()
        first = await shop.buy(header)
        assert [is_replayed(await shop.buy(header)) for _ in range(2)] == [True, True]
        third = await shop.buy(header)
        assert (third.status_code, error_of(third)["code"]) == (409, "payment_replayed")
        assert "given again 2 times" in error_of(third)["message"]
        monkeypatch.setattr("seller.spool.ANSWER_TTL_S", -1)
        short = shop.payment()
        assert (await shop.buy(short)).content == first.content
        gone = await shop.buy(short)
        assert (gone.status_code, error_of(gone)["code"]) == (409, "payment_replayed")
        assert "kept for" in error_of(gone)["message"]
        assert await shop.seller.ledger.sweep() == 1


async def test_an_answer_that_is_too_large_passes_and_is_not_kept(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.spool.ANSWER_BYTES_MAX", 2000)
    monkeypatch.setattr("seller.recorder.ANSWER_BYTES_MAX", 2000)
    async with online(chain, tmp_path, "async") as (shop, client):
        shop.app.body = b"x" * 3000
        whole = shop.payment()
        assert (await asked_again(client, whole)).content == b"x" * 3000

        async def streams(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            for _ in range(30):
                await send({"type": "http.response.body", "body": b"y" * 100, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        shop.app.behave = streams
        streamed = shop.payment()
        assert (await asked_again(client, streamed)).content == b"y" * 3000
        for header in (whole, streamed):
            again = await asked_again(client, header)
            assert (again.status_code, error_of(again)["code"]) == (409, "payment_replayed")
            assert "larger than" in error_of(again)["message"]
        assert shop.app.runs == 2


async def test_when_all_room_is_taken_the_oldest_answer_goes_first(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.spool.ANSWERS_BYTES_MAX", 3000)
    async with open_shop(chain, tmp_path, settle="async") as shop:
        shop.app.body = b"x" * 1000
        headers = [shop.payment() for _ in range(3)]
        for header in headers:
            assert (await shop.buy(header)).status_code == 200
        assert [is_replayed(await shop.buy(header)) for header in reversed(headers)] == [True, False, False]


async def test_an_application_that_never_ends_is_told_at_last_that_its_client_has_left(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.watch.LINGER_S", 0.05)
    async with online(chain, tmp_path, "async") as (shop, client):
        tap = shop.app.behave = Tap()
        header = shop.payment()
        tap.turns.put_nowait(b"data: 0\n\n")
        async with client.stream("POST", CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header}) as answer:
            await anext(answer.aiter_raw())
        await asyncio.wait_for(tap.left.wait(), PATIENCE_S)
        tap.turns.put_nowait(None)
        assert is_replayed(await asked_again(client, header))


async def test_a_restart_closes_an_open_stream_with_what_was_written_of_it(chain: Devnet, tmp_path: Path) -> None:
    async with online(chain, tmp_path, "async") as (shop, client):
        tap = shop.app.behave = Tap()
        header = shop.payment()
        tap.turns.put_nowait(b"data: 0\n\n")
        async with client.stream("POST", CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header}) as answer:
            await anext(answer.aiter_raw())
            busy = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header})
            assert (busy.status_code, error_of(busy)["code"]) == (409, "request_in_progress")
            # As another process does it for one that was killed.
            shop.seller.ledger._end_owner(shop.seller.ledger.owner.id)
            again = await client.post(CHAT, content=BODY, headers={"PAYMENT-SIGNATURE": header})
            assert again.content.startswith(b"data: 0\n\n\n\nevent: error\n")
            tap.turns.put_nowait(None)

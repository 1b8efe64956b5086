"""A node that drops, refuses, lags and lies: nothing is paid twice or served unpaid, and the queue never wedges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_SIGNATURE, decode_payment
from contracts.schemes import exact_eip3009
from tests.faults.rpc_proxy import RpcProxy
from tests.seller.shop import GAS, OTHER, PRICE_ATOMIC, Shop, error_of, open_shop

SEND = "eth_sendRawTransaction"
BROADCASTS: dict[str, dict[str, Any]] = {
    "dropped before the node": {"how": "drop before"},
    "dropped after the node": {"how": "drop after"},
    "answered 500": {"how": "status"},
    "already known": {"how": "refuse after", "message": "already known"},
    "already known, which is a lie": {"how": "refuse before", "message": "already known"},
    "nonce too low": {"how": "refuse before", "message": "nonce too low"},
    "underpriced": {"how": "refuse before", "message": "replacement transaction underpriced"},
    "refused": {"how": "refuse before", "message": "txpool is full"},
}
READS = (
    "eth_blockNumber", "eth_chainId", "eth_getBlockByNumber", "eth_call", "eth_getCode", "eth_estimateGas",
    "eth_maxPriorityFeePerGas", "eth_getTransactionCount", "eth_getBalance", "eth_getTransactionReceipt", "eth_getLogs",
)  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seller.settlement.chain.RESEND_AFTER_S", 0.3)
    monkeypatch.setattr("seller.settlement.engine.FAILURE_PAUSE_S", 0.05)


@asynccontextmanager
async def shop_behind(chain: Devnet, folder: Path, **changed: Any) -> AsyncIterator[tuple[Shop, RpcProxy]]:
    with RpcProxy(chain.rpc_url) as proxy:
        async with open_shop(chain, folder, rpc=[proxy.url], **changed) as shop:
            yield shop, proxy


def nonces_used(chain: Devnet) -> int:
    count: str = chain.rpc("eth_getTransactionCount", chain.accounts[GAS].address, "latest")
    return int(count, 16)


def check_books(shop: Shop, payments: int) -> None:
    sums = shop.seller.ledger.sums()
    assert (sums.earned_atomic, shop.earned) == (payments * PRICE_ATOMIC, payments * PRICE_ATOMIC)
    assert (sums.outstanding_atomic, sums.lost_atomic) == (0, 0)


@pytest.mark.parametrize("fault", BROADCASTS)
async def test_after_one_failed_broadcast_the_next_ten_payments_settle(
    chain: Devnet, tmp_path: Path, fault: str
) -> None:
    async with shop_behind(chain, tmp_path, settle="before") as (shop, proxy):
        injected = proxy.inject(SEND, **BROADCASTS[fault])
        answers = [await shop.buy()]
        assert injected.times == 0
        answers += await asyncio.gather(*(shop.buy() for _ in range(10)))
        assert [answer.status_code for answer in answers] == [200] * 11
        await shop.settled()
        check_books(shop, 11)
        assert shop.app.runs == 11


@pytest.mark.parametrize("method", READS)
async def test_one_unanswered_question_never_asks_for_another_payment(
    chain: Devnet, tmp_path: Path, method: str
) -> None:
    async with shop_behind(chain, tmp_path, settle="auto") as (shop, proxy):
        for payments, how in enumerate(("drop after", "status"), start=1):
            proxy.inject(method, how)  # type: ignore[arg-type]
            header = shop.payment()
            answer = await shop.buy(header)
            if answer.status_code != 200:
                assert answer.status_code == 503, answer.text
                assert "retry-after" in answer.headers
                answer = await shop.buy(header)
            assert answer.status_code == 200, answer.text
            await shop.settled()
            check_books(shop, payments)


async def test_a_node_that_is_away_is_our_failure_and_free_routes_go_on(chain: Devnet, tmp_path: Path) -> None:
    async with shop_behind(chain, tmp_path, settle="auto") as (shop, proxy):
        for method in READS:
            proxy.inject(method, "status", times=1000)
        answer = await shop.buy()
        assert (answer.status_code, shop.app.runs) == (503, 0)
        assert "retry-after" in answer.headers
        assert (await shop.client.get("/v1/models")).status_code == 200
        proxy.faults.clear()
        assert (await shop.buy()).status_code == 200


async def test_a_balance_that_is_a_lie_brings_no_goods_out(chain: Devnet, tmp_path: Path) -> None:
    async with shop_behind(chain, tmp_path, settle="auto") as (shop, proxy):
        rich = "0x" + (10**12).to_bytes(32, "big").hex()
        # Both the balance and the simulation say yes; only the chain itself says no.
        proxy.inject("eth_call", "lie", times=1000, lie=lambda _, true: true if true and int(true, 16) else rich)
        answer = await shop.buy(shop.payment(OTHER))
        assert answer.status_code in (402, 503), answer.text
        assert b"ok" not in answer.content
        assert shop.earned == 0
        assert shop.seller.ledger.sums().earned_atomic == 0


async def test_a_receipt_that_comes_late_is_waited_for(chain: Devnet, tmp_path: Path) -> None:
    async with shop_behind(chain, tmp_path, settle="before") as (shop, proxy):
        proxy.inject("eth_getTransactionReceipt", "lie", times=5, lie=lambda _, result: None)
        assert (await shop.buy()).status_code == 200
        check_books(shop, 1)


async def test_a_node_that_lags_behind_gives_a_used_account_nonce_and_payments_settle_all_the_same(
    chain: Devnet, tmp_path: Path
) -> None:
    async with shop_behind(chain, tmp_path, settle="before") as (shop, proxy):
        assert (await shop.buy()).status_code == 200
        proxy.inject("eth_getTransactionCount", "lie", lie=lambda _, count: hex(int(count, 16) - 1))
        assert [(await shop.buy()).status_code for _ in range(3)] == [200] * 3
        check_books(shop, 4)


async def test_a_node_that_tells_too_high_an_account_nonce_does_not_wedge_the_queue(
    chain: Devnet, tmp_path: Path
) -> None:
    async with shop_behind(chain, tmp_path, settle="before") as (shop, proxy):
        proxy.inject("eth_getTransactionCount", "lie", lie=lambda _, count: hex(int(count, 16) + 2))
        answers = await asyncio.gather(*(shop.buy() for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        await shop.settled()
        check_books(shop, 3)


NONSENSE: tuple[tuple[str, Any], ...] = (
    ("eth_getTransactionCount", "-0x5"),
    ("eth_getTransactionCount", "0x" + "f" * 80),
    ("eth_maxPriorityFeePerGas", "-0x5"),
    ("eth_getTransactionReceipt", {}),
    ("eth_getTransactionReceipt", {"transactionHash": "0x", "blockNumber": "0x1", "logs": [7]}),
)


async def test_nonsense_of_a_node_is_told_in_a_line_and_asked_for_again(
    chain: Devnet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop_behind(chain, tmp_path, settle="before") as (shop, proxy):
        for payments, (method, answer) in enumerate(NONSENSE, start=1):
            lie = proxy.inject(method, "lie", lie=lambda *_: answer)  # noqa: B023
            assert (await shop.buy()).status_code == 200
            assert lie.times == 0
            check_books(shop, payments)
        assert [record.getMessage() for record in caplog.records if record.exc_info] == []
        assert "settlement stands still: eth_getTransactionReceipt: the answer is not a receipt" in caplog.text


async def test_a_node_of_another_chain_sells_nothing(chain: Devnet, tmp_path: Path) -> None:
    async with shop_behind(chain, tmp_path, settle="auto") as (shop, proxy):
        proxy.inject("eth_chainId", "lie", times=100, lie=lambda *_: "0x1")
        answer = await shop.buy()
        assert (answer.status_code, shop.app.runs) == (503, 0)
        assert error_of(answer)["code"] == "config_invalid"


def forged_receipt(header: str, token: str) -> dict[str, Any]:
    """Return a receipt that shows a payment which never was: all its events are right, only no chain has it."""
    payment = decode_payment(PAYMENT_SIGNATURE, header)
    authorization, _ = exact_eip3009.decode_payload(payment.payload)
    payer, payee = ("0x" + bytes(12).hex() + party.hex() for party in (authorization.payer, authorization.payee))
    value = "0x" + authorization.value_atomic.to_bytes(32, "big").hex()
    nonce = "0x" + authorization.nonce.hex()
    return {
        "transactionHash": "0x" + "ab" * 32,
        "blockHash": "0x" + "cd" * 32,
        "blockNumber": "0x1",
        "status": "0x1",
        "logs": [
            {"address": token, "topics": [exact_eip3009.AUTHORIZATION_USED_TOPIC, payer, nonce], "data": "0x"},
            {"address": token, "topics": [exact_eip3009.TRANSFER_TOPIC, payer, payee], "data": value},
        ],
    }


@pytest.mark.parametrize("setting", ["before", "auto"])
async def test_a_payment_that_only_one_of_two_endpoints_has_seen_brings_no_goods_out(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    with RpcProxy(chain.rpc_url) as proxy:
        async with open_shop(chain, tmp_path, rpc=[proxy.url, chain.rpc_url], settle=setting) as shop:
            header = shop.payment()
            forged = forged_receipt(header, chain.token)
            proxy.inject(SEND, "refuse before", times=1000, message="already known")
            lie = proxy.inject("eth_getTransactionReceipt", "lie", times=1000, lie=lambda *_: forged)
            # Asked again: it was told the lie, and did not do.
            answer = await shop.buy_in_vain(lambda: lie.times < 999, monkeypatch, header)
            assert answer.status_code == 503, answer.text
            assert lie.times < 999
            assert (shop.earned, shop.seller.ledger.sums().earned_atomic) == (0, 0)
            proxy.faults.clear()
            await shop.settled()
            answer = await shop.buy(header)
            assert answer.status_code == 200, answer.text
            check_books(shop, 1)


async def test_an_endpoint_that_is_away_is_no_witness_against_a_payment(chain: Devnet, tmp_path: Path) -> None:
    with RpcProxy(chain.rpc_url) as proxy:
        async with open_shop(chain, tmp_path, rpc=[chain.rpc_url, proxy.url], settle="before") as shop:
            proxy.inject("eth_getTransactionReceipt", "drop before", times=1000)
            assert (await shop.buy()).status_code == 200
            check_books(shop, 1)


async def test_an_endpoint_that_is_behind_is_waited_for(chain: Devnet, tmp_path: Path) -> None:
    with RpcProxy(chain.rpc_url) as proxy:
        async with open_shop(chain, tmp_path, rpc=[chain.rpc_url, proxy.url], settle="before") as shop:
            proxy.inject("eth_getTransactionReceipt", "lie", times=3, lie=lambda *_: None)
            assert (await shop.buy()).status_code == 200
            check_books(shop, 1)

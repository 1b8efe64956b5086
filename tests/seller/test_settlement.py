"""What is owed reaches the chain exactly once: batches, bad items, strangers who submit first, crashes, lost leases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.address import address_text
from contracts.errors import ConfigInvalid, SettlementUnavailable
from contracts.evm.devnet import Devnet
from contracts.evm.token import call_object
from contracts.headers import decode_payment
from contracts.lifecycle import Money
from contracts.networks import MULTICALL3
from contracts.schemes.exact_eip3009 import (
    AUTHORIZATION_USED_TOPIC,
    cancel_call,
    cancel_digest,
    logs_by_authorization,
    paid_by,
    transfer_call,
)
from contracts.signature import SigningKey
from seller.claims import Claim
from seller.settlement.chain import ChainSettler
from seller.settlement.engine import Worker
from seller.settlement.key import read_gas_key
from seller.settlement.outbox import Item, Outbox
from tests.patience import PATIENCE_S, eventually
from tests.paying import authorize, encode, payment_document
from tests.seller.shop import BUYER, GAS, OTHER, PRICE_ATOMIC, Shop, error_of, open_shop, settings, write_key


@pytest.fixture
async def shop(chain: Devnet, tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop on credit whose worker a test starts by hand."""
    async with open_shop(chain, tmp_path, settle="async", settles=False) as opened:
        yield opened


class Bench:
    """A worker that a test turns by hand."""

    def __init__(self, shop: Shop, holder: str = "bench") -> None:
        ledger = shop.seller.ledger
        assert shop.seller._rpc is not None
        key = read_gas_key(Path(str(shop.seller.config.settler.key_file)))
        self.outbox = Outbox(ledger.database, ledger.chain_id, ledger.token, holder)
        self.settler = ChainSettler(self.outbox, shop.seller._rpc, ledger.chain_id, ledger.token, key)
        self.worker = Worker(ledger, self.outbox, self.settler, shop.seller.counter)
        self._shop = shop

    async def submit(self) -> None:
        """Settle all that is due in one transaction, without the flush window."""
        assert await self.worker._hold()
        await self.settler.submit(self.outbox.due(50))

    async def resolve(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await self.look():  # noqa: ASYNC110 - the chain has no event to wait for
                await asyncio.sleep(0.01)

    async def look(self) -> bool:
        """Do what a round does about what was sent; tell whether any of it is still open."""
        await self.settler.resolve()
        return await self.settler.push()


def money(shop: Shop) -> dict[str, int]:
    return shop.seller.ledger.sums().payments


async def raw_payments(shop: Shop, count: int, account: int = BUYER) -> list[Any]:
    """Buy `count` times on credit and return the authorizations with their signatures."""
    offer = shop.seller.book.routes[0].quote_for(None).offer
    made = []
    for _ in range(count):
        authorization, signature = authorize(shop.chain.accounts[account].key, offer)
        answer = await shop.buy(encode(payment_document(authorization, signature, offer)))
        assert answer.status_code == 200, answer.text
        made.append((authorization, signature))
    return made


def submit_as_stranger(chain: Devnet, data: bytes) -> str:
    token = bytes.fromhex(chain.token[2:])
    transaction: str = chain.rpc(
        "eth_sendTransaction",
        {"from": chain.accounts[OTHER].address} | call_object(token, data),  # type: ignore[arg-type]
    )
    chain.mine()
    return transaction


async def test_ten_payments_settle_in_one_transaction(shop: Shop) -> None:
    await raw_payments(shop, 10)
    bench = Bench(shop)
    await bench.submit()
    await bench.resolve()
    (transaction,) = shop.seller.ledger.transactions(20)
    receipt = shop.chain.rpc("eth_getTransactionReceipt", transaction)
    assert receipt["to"].lower() == "0x" + MULTICALL3.hex()
    assert sum(log["topics"][0] == AUTHORIZATION_USED_TOPIC for log in receipt["logs"]) == 10
    assert money(shop) == {"settled": 10}
    assert shop.earned == 10 * PRICE_ATOMIC


async def test_one_payment_alone_goes_to_the_token_itself(shop: Shop) -> None:
    await raw_payments(shop, 1)
    bench = Bench(shop)
    await bench.submit()
    await bench.resolve()
    (transaction,) = shop.seller.ledger.transactions(20)
    assert shop.chain.rpc("eth_getTransactionReceipt", transaction)["to"].lower() == shop.chain.token.lower()


async def test_where_there_is_no_multicall_payments_settle_one_by_one(shop: Shop) -> None:
    code = shop.chain.rpc("eth_getCode", address_text(MULTICALL3), "latest")
    shop.chain.rpc("anvil_setCode", address_text(MULTICALL3), "0x")
    try:
        await raw_payments(shop, 3)
        bench = Bench(shop)
        for _ in range(3):
            await bench.submit()
        await bench.resolve()
    finally:
        shop.chain.rpc("anvil_setCode", address_text(MULTICALL3), code)
    assert money(shop) == {"settled": 3}
    assert len(shop.seller.ledger.transactions(20)) == 3


async def test_a_bad_item_is_left_out_of_the_batch_before_it_costs_gas(shop: Shop) -> None:
    shop.chain.mint(shop.chain.accounts[OTHER].address, PRICE_ATOMIC)
    await raw_payments(shop, 9)
    await raw_payments(shop, 1, OTHER)
    shop.chain.set_blocked(shop.chain.accounts[OTHER].address, True)
    bench = Bench(shop)
    await bench.submit()
    await bench.resolve()
    assert money(shop) == {"settled": 9, "queued": 1}
    assert shop.earned == 9 * PRICE_ATOMIC
    shop.chain.set_blocked(shop.chain.accounts[OTHER].address, False)
    bench.outbox._database.transact(lambda connection: connection.execute("UPDATE payments SET due_ms = 0"))
    await bench.submit()
    await bench.resolve()
    assert money(shop) == {"settled": 10}


async def test_a_batch_on_chain_survives_an_item_that_fails_there(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.chain.mint(shop.chain.accounts[OTHER].address, PRICE_ATOMIC)
    await raw_payments(shop, 9)
    await raw_payments(shop, 1, OTHER)
    bench = Bench(shop)
    send = bench.settler._send

    async def blocked_meanwhile(transaction: Any) -> None:
        shop.chain.set_blocked(shop.chain.accounts[OTHER].address, True)
        await send(transaction)

    monkeypatch.setattr(bench.settler, "_send", blocked_meanwhile)
    await bench.submit()
    await bench.resolve()
    assert money(shop) == {"settled": 9, "queued": 1}
    attempts = bench.outbox._database.read(
        lambda connection: connection.execute("SELECT attempts FROM payments WHERE money = 'queued'").fetchone()[0]
    )
    assert attempts == 1
    assert shop.earned == 9 * PRICE_ATOMIC


async def test_a_payment_that_a_stranger_submitted_first_is_paid(shop: Shop) -> None:
    (first, second) = await raw_payments(shop, 2)
    transaction = submit_as_stranger(shop.chain, transfer_call(*first))
    bench = Bench(shop)
    await bench.submit()
    await bench.resolve()
    assert money(shop) == {"settled": 2}
    assert transaction in shop.seller.ledger.transactions(20)
    assert shop.earned == 2 * PRICE_ATOMIC
    assert second is not None


async def test_a_revoked_payment_is_a_loss_with_its_reason_and_gets_no_goods_again(shop: Shop) -> None:
    ((authorization, paid_with),) = await raw_payments(shop, 1)
    key = SigningKey(shop.chain.accounts[BUYER].key)
    offer = shop.seller.book.routes[0].quote_for(None).offer
    signature = key.sign(cancel_digest(authorization.payer, authorization.nonce, offer.domain))
    submit_as_stranger(shop.chain, cancel_call(authorization.payer, authorization.nonce, signature))
    await Bench(shop).submit()
    sums = shop.seller.ledger.sums()
    assert sums.payments == {"lost": 1}
    assert (sums.lost_atomic, sums.outstanding_atomic) == (PRICE_ATOMIC, 0)
    again = await shop.buy(encode(payment_document(authorization, paid_with, offer)))
    assert (again.status_code, error_of(again)["code"]) == (402, "payment_replayed")
    assert "cannot be settled" in error_of(again)["message"]


async def test_a_payment_that_outlived_its_time_is_a_loss(shop: Shop) -> None:
    await raw_payments(shop, 1)
    shop.chain.rpc("evm_increaseTime", 3600)
    shop.chain.mine()
    await Bench(shop).submit()
    assert money(shop) == {"lost": 1}


class Crash(BaseException):
    """Stands for the end of the process at this line."""


async def test_a_crash_between_storing_and_sending_sends_the_same_bytes_after_the_restart(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await raw_payments(shop, 3)
    first = Bench(shop, "first")

    async def crash(transaction: Any) -> None:
        raise Crash

    monkeypatch.setattr(first.settler, "_send", crash)
    with pytest.raises(Crash):
        await first.submit()
    (stored,) = first.outbox.sent(first.settler._key.address)
    assert money(shop) == {"submitted": 3}
    assert shop.earned == 0
    await first.outbox.release(first.settler.account)

    second = Bench(shop, "second")
    assert await second.worker._hold()
    await second.resolve()
    assert money(shop) == {"settled": 3}
    assert shop.seller.ledger.transactions(20) == [stored.forms[0].hash]
    assert shop.earned == 3 * PRICE_ATOMIC


async def test_a_crash_after_sending_finds_the_receipt_and_sends_nothing_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await raw_payments(shop, 2)
    first = Bench(shop, "first")
    send = first.settler._send

    async def crash(transaction: Any) -> None:
        await send(transaction)
        raise Crash

    monkeypatch.setattr(first.settler, "_send", crash)
    with pytest.raises(Crash):
        await first.submit()
    await first.outbox.release(first.settler.account)
    gas_account = shop.chain.accounts[GAS].address
    # What was sent may not be mined yet.
    sent = int(shop.chain.rpc("eth_getTransactionCount", gas_account, "pending"), 16)

    second = Bench(shop, "second")
    assert await second.worker._hold()
    await second.resolve()
    assert money(shop) == {"settled": 2}
    assert int(shop.chain.rpc("eth_getTransactionCount", gas_account, "pending"), 16) == sent
    assert shop.earned == 2 * PRICE_ATOMIC


async def test_two_workers_never_hold_one_account(shop: Shop) -> None:
    first, second = Bench(shop, "first"), Bench(shop, "second")
    # `is_gone` cannot know these made-up holders, so only the lease keeps them apart.
    assert await first.outbox.hold("account", lambda _: False)
    assert not await second.outbox.hold("account", lambda _: False)
    assert await first.outbox.hold("account", lambda _: False)
    assert await second.outbox.hold("account", lambda holder: holder == "first")
    assert not await first.outbox.hold("account", lambda _: False)


async def test_a_payment_that_was_taken_back_meanwhile_is_not_sent(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="before", settles=False) as shop:
        payment = decode_payment("PAYMENT-SIGNATURE", shop.payment())
        quote = shop.seller.book.routes[0].quote_for(None)
        claim = await shop.seller.claim(payment, quote, bytes(32))
        assert isinstance(claim, Claim)
        await shop.seller.ledger.owe(claim)
        bench = Bench(shop)
        assert await bench.worker._hold()
        seen = bench.outbox.due(50)
        assert [item.id for item in seen] == [claim.id]
        # Its client has waited too long, between the worker's look and its write.
        await shop.seller.ledger.give_up(claim, "settlement_unavailable")
        await bench.settler.submit(seen)
        assert bench.outbox.sent(bench.settler._key.address) == []
        assert shop.earned == 0


async def test_a_lost_send_does_not_stop_the_next_ten_payments(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await raw_payments(shop, 1)
    bench = Bench(shop)
    send = bench.settler._send
    lost: list[Any] = []

    async def lose(transaction: Any) -> None:
        lost.append(transaction)

    monkeypatch.setattr(bench.settler, "_send", lose)
    await bench.submit()
    monkeypatch.setattr(bench.settler, "_send", send)
    await raw_payments(shop, 10)
    await bench.submit()
    await bench.resolve()
    assert len(lost) == 1
    assert money(shop) == {"settled": 11}
    assert shop.earned == 11 * PRICE_ATOMIC


async def test_a_stuck_transaction_is_replaced_at_a_higher_fee_and_settles_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.chain.FEE_BUMP_AFTER_S", 0.0)
    await raw_payments(shop, 2)
    bench = Bench(shop)
    shop.chain.rpc("evm_setAutomine", False)
    try:
        await bench.submit()
        await bench.look()
        (transaction,) = bench.outbox.sent(bench.settler._key.address)
        assert len(transaction.forms) == 2
        assert transaction.forms[1].max_fee_wei > transaction.forms[0].max_fee_wei * 11 // 10
        shop.chain.mine()
    finally:
        shop.chain.rpc("evm_setAutomine", True)
    await bench.resolve()
    assert money(shop) == {"settled": 2}
    assert shop.earned == 2 * PRICE_ATOMIC


async def test_a_nonce_taken_by_another_program_sends_the_payments_back_to_the_queue(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.chain.RESEND_AFTER_S", 0.0)
    await raw_payments(shop, 2)
    bench = Bench(shop)

    async def lose(transaction: Any) -> None:
        gas_account = shop.chain.accounts[GAS].address
        shop.chain.rpc("eth_sendTransaction", {"from": gas_account, "to": gas_account, "value": "0x1"})
        shop.chain.mine()

    monkeypatch.setattr(bench.settler, "_send", lose)
    await bench.submit()
    monkeypatch.undo()
    monkeypatch.setattr("seller.settlement.chain.RESEND_AFTER_S", 0.0)
    await bench.look()
    assert money(shop) == {"queued": 2}
    bench.outbox._database.transact(lambda connection: connection.execute("UPDATE payments SET due_ms = 0"))
    await bench.submit()
    await bench.resolve()
    assert money(shop) == {"settled": 2}
    assert shop.earned == 2 * PRICE_ATOMIC


async def test_without_ether_the_worker_says_where_to_send_it_and_nothing_is_lost(
    chain: Devnet, tmp_path: Path
) -> None:
    gas_account = chain.accounts[GAS].address
    chain.fund_gas(gas_account, 0)
    async with open_shop(chain, tmp_path, settle="async") as shop:
        assert (await shop.buy()).status_code == 200
        async with asyncio.timeout(PATIENCE_S):
            while (why := await shop.seller.why_not_ready()) is None:  # noqa: ASYNC110 - the worker reports in its own time
                await asyncio.sleep(0.05)
        assert gas_account in why
        assert "settlement_unavailable" in why
        chain.fund_gas(gas_account, 10**20)
        await shop.settled()
        assert shop.earned == PRICE_ATOMIC
        assert await shop.seller.why_not_ready() is None


async def test_who_waits_hears_that_it_is_paid_also_when_there_is_no_ether_for_the_next_ones(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller.settlement.chain.RESEND_AFTER_S", 0.0)
    # Whoever waits is told, or learns it too late: looking by oneself does not count here.
    for name in ("SETTLE_WAIT_S", "SETTLE_POLL_S", "SETTLE_POLL_MAX_S"):
        monkeypatch.setattr(f"seller.settlement.engine.{name}", 2 * PATIENCE_S)
    async with open_shop(chain, tmp_path, settle="before", settles=False) as shop:
        bench = Bench(shop)
        read_account = bench.settler._read_account

        async def count_two_too_many(gas: int) -> Any:
            account = await read_account(gas)
            return replace(account, transaction_count=account.transaction_count + 2)

        paid = asyncio.create_task(shop.buy())
        await queued(bench)
        await bench.submit()
        await asyncio.to_thread(eventually, lambda: shop.earned == PRICE_ATOMIC, "the first payment is mined")
        monkeypatch.setattr(bench.settler, "_read_account", count_two_too_many)
        behind_a_gap = asyncio.create_task(shop.buy())
        await queued(bench)
        await bench.submit()
        monkeypatch.setattr(bench.settler, "_read_account", read_account)
        shop.chain.fund_gas(shop.chain.accounts[GAS].address, 0)
        with pytest.raises(SettlementUnavailable, match="holds 0 wei"):
            await bench.worker.round()
        done, _ = await asyncio.wait({paid, behind_a_gap}, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S / 4)
        assert done == {paid}
        assert paid.result().status_code == 200
        shop.chain.fund_gas(shop.chain.accounts[GAS].address, 10**20)
        async with asyncio.timeout(PATIENCE_S):
            while not behind_a_gap.done():
                await bench.worker.round()
                await asyncio.sleep(0.01)
        assert behind_a_gap.result().status_code == 200
        assert shop.earned == 2 * PRICE_ATOMIC


async def queued(bench: Bench) -> None:
    """Return once a payment waits to be settled."""
    async with asyncio.timeout(PATIENCE_S):
        while not bench.outbox.due(50):  # noqa: ASYNC110 - a request queues it in its own time
            await asyncio.sleep(0.01)


async def test_the_books_equal_the_chain_after_a_busy_hour(chain: Devnet, tmp_path: Path) -> None:
    async with open_shop(chain, tmp_path, settle="auto") as shop:
        await shop.trust()
        answers = await asyncio.gather(*(shop.buy() for _ in range(120)))
        assert {answer.status_code for answer in answers} == {200}
        await shop.settled()
        sums = shop.seller.ledger.sums()
        assert sums.earned_atomic == shop.earned == 121 * PRICE_ATOMIC
        assert sums.payments == {"settled": 121}
        assert (sums.exposure_atomic, sums.lost_atomic) == (0, 0)
        assert len(shop.seller.ledger.transactions(200)) < 20


def test_another_payment_of_the_same_payer_does_not_pass_for_one_that_moved_nothing(devnet: Devnet) -> None:
    from contracts.schemes.authorization import Authorization
    from contracts.schemes.exact_eip3009 import TRANSFER_TOPIC
    from contracts.typed_data import word_of_address, word_of_uint

    token = bytes.fromhex(devnet.token[2:])
    payer, payee = bytes([1]) * 20, bytes([2]) * 20
    burnt = Authorization(payer, payee, 5, 0, 9, bytes([3]) * 32)  # type: ignore[arg-type]
    paid = Authorization(payer, payee, 5, 0, 9, bytes([4]) * 32)  # type: ignore[arg-type]

    def log(topics: list[str], data: bytes) -> dict[str, Any]:
        return {"address": devnet.token, "topics": topics, "data": "0x" + data.hex()}

    parties = ["0x" + word_of_address(party).hex() for party in (payer, payee)]
    transfer = log([TRANSFER_TOPIC, *parties], word_of_uint(5))
    used = [log([AUTHORIZATION_USED_TOPIC, parties[0], "0x" + a.nonce.hex()], b"") for a in (burnt, paid)]
    logs = [used[0], used[1], transfer]
    by_authorization = logs_by_authorization(logs, token)  # type: ignore[arg-type]
    assert not paid_by(by_authorization, burnt, token)  # type: ignore[arg-type]
    assert paid_by(by_authorization, paid, token)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_gas_key_that_others_may_read_is_refused(tmp_path: Path, devnet: Devnet, mode: int) -> None:
    path = write_key(tmp_path, devnet.accounts[GAS].key)
    assert address_text(read_gas_key(path).address) == devnet.accounts[GAS].address
    path.chmod(mode)
    with pytest.raises(ConfigInvalid, match="may be read by others"):
        read_gas_key(path)


@pytest.mark.parametrize("text", ["", "0x12", "00" * 32, "ff" * 32, "zz" * 32, "11" * 33])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settler.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigInvalid, match="key_file"):
        read_gas_key(path)


def test_a_gas_key_does_not_show_in_its_repr(tmp_path: Path, devnet: Devnet) -> None:
    assert devnet.accounts[GAS].key.hex() not in repr(read_gas_key(write_key(tmp_path, devnet.accounts[GAS].key)))


async def test_settings_that_name_another_token_domain_do_not_sell(chain: Devnet, tmp_path: Path) -> None:
    from seller.config import AssetSettings
    from seller.service import Seller

    for changed, says in (
        ({"name": "USD Coin"}, "EIP-712 domain"),
        ({"decimals": 18}, "6 decimals"),
        ({"address": chain.accounts[0].address}, "no contract"),
        ({"address": chain.plain_token, "name": "Plain Dollar", "version": "1", "decimals": 18}, "no EIP-3009"),
    ):
        asset: dict[str, Any] = {
            "address": chain.token,
            "name": "USDC",
            "version": "2",
            "decimals": 6,
            "symbol": "USDC",
        }
        seller = Seller(settings(chain, tmp_path, asset=AssetSettings(**(asset | changed))), settles=False)
        await seller.open()
        with pytest.raises(ConfigInvalid, match=says):
            await seller.check_token()
        await seller.close()


def test_every_state_of_money_is_known_to_the_store() -> None:
    schema = (Path(__file__).parents[2] / "seller" / "migrations" / "0001_ledger.sql").read_text()
    assert f"money IN ({', '.join(repr(state.value) for state in Money)})" in schema
    assert Item.__slots__

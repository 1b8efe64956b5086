"""A restart finds every payment where the last durable write left it, and gives nothing away twice."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import PaymentReplayed, RequestInProgress, SettlementUnavailable
from contracts.lifecycle import Money, MoneyEvent, Work
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer
from contracts.storage.presence import FilePresence
from seller import books
from seller.claims import Claim, Replay
from seller.ledger import Ledger
from seller.policy import Caps, Mode
from seller.spool import Beginning
from seller.verify import VerifiedPayment
from tests.paying import authorize
from tests.seller.shop import store_url

TOKEN: Any = bytes([7]) * 20
OFFER = Offer("exact", Network(31337), Asset(TOKEN, "USDC", "2", 6, "USDC"), 1000, bytes([8]) * 20, 300)  # type: ignore[arg-type]
CAPS = Caps(10**6, 10**8)
ANSWER = Beginning(200, [(b"content-type", b"text/plain")], b"goods", whole=True)
ONE, OTHER = bytes([1]) * 32, bytes([2]) * 32


def payment(nonce: int = 1) -> VerifiedPayment:
    authorization, signature = authorize(bytes([1]) * 32, OFFER, nonce=nonce.to_bytes(32, "big"))
    return VerifiedPayment(authorization, signature, OFFER, 2)


def open_ledger(folder: Path) -> Ledger:
    return Ledger(store_url(folder), 31337, TOKEN)


def ask(
    ledger: Ledger, paid: VerifiedPayment, digest: bytes = ONE, *, setting: Any = "async", caps: Caps = CAPS
) -> Coroutine[Any, Any, Claim | Replay]:
    """Reserve for a request with this digest, whose payer can pay."""
    return ledger.reserve(
        paid,
        digest,
        "GET /paid",
        setting=setting,
        caps=caps,
        balance_atomic=lambda _: 10**9,
        since_block=0,
        now_s=int(time.time()),
    )


async def reserve(ledger: Ledger, paid: VerifiedPayment, digest: bytes = ONE, setting: Any = "before") -> Claim:
    claim = await ask(ledger, paid, digest, setting=setting)
    assert isinstance(claim, Claim)
    return claim


def crash(ledger: Ledger) -> None:
    """End a ledger as `kill -9` does: the lock goes, the rows stay."""
    ledger.database.close()
    if isinstance(ledger.owner, FilePresence):
        os.close(ledger.owner._lock)
    else:
        ledger.owner.close()


async def bring(ledger: Ledger, claim: Claim, events: list[MoneyEvent], *, begun: bool, delivered: bool) -> None:
    if begun and claim.mode is not Mode.ASYNC:
        await ledger.begin(claim)
    for event in events:
        if event is MoneyEvent.OWE:
            await ledger.owe(claim, ANSWER if delivered else None)
        else:
            ledger.database.transact(
                lambda connection, event=event: books.move(connection, claim.id, event, 0)  # type: ignore[misc]
            )


OWE, SUBMIT, PAID = MoneyEvent.OWE, MoneyEvent.SUBMIT, MoneyEvent.CHAIN_PAID


@pytest.mark.parametrize(
    ("setting", "events", "begun", "delivered", "money", "again"),
    [
        ("before", [], False, False, None, "served"),
        ("before", [], True, False, Money.VOID, "served"),
        ("before", [OWE], False, False, None, "served"),
        ("before", [OWE, SUBMIT], False, False, Money.SUBMITTED, SettlementUnavailable),
        ("before", [OWE, SUBMIT, PAID], False, False, Money.SETTLED, "credit"),
        ("before", [OWE, SUBMIT, PAID], True, False, Money.SETTLED, "credit"),
        ("after", [], True, False, Money.VOID, "served"),
        ("after", [OWE], True, False, Money.VOID, "served"),
        ("after", [OWE, SUBMIT], True, False, Money.SUBMITTED, SettlementUnavailable),
        ("after", [OWE, SUBMIT, PAID], True, False, Money.SETTLED, "credit"),
        ("async", [], True, False, Money.VOID, "served"),
        ("async", [OWE], True, True, Money.QUEUED, "replayed"),
        ("async", [OWE, SUBMIT], True, True, Money.SUBMITTED, "replayed"),
        ("async", [OWE, SUBMIT, PAID], True, True, Money.SETTLED, "replayed"),
    ],
)
async def test_after_a_crash_in_any_state_the_same_payment_gets_what_is_its_due(
    tmp_path: Path, setting: Any, events: list[MoneyEvent], begun: bool, delivered: bool, money: Any, again: Any
) -> None:
    first, paid = open_ledger(tmp_path), payment()
    claim = await reserve(first, paid, setting=setting)
    await bring(first, claim, events, begun=begun, delivered=delivered)
    crash(first)

    second = open_ledger(tmp_path)
    state = second.state(claim.id)
    assert (state and state.money) == money
    if again == "replayed":
        replay = await second.recall(paid, ONE)
        assert isinstance(replay, Replay)
        assert replay.answer.body == b"goods"
    elif isinstance(again, str):
        claim = await reserve(second, paid, setting=setting)
        assert claim.credit == (again == "credit")
        with pytest.raises(RequestInProgress):
            await reserve(second, paid, setting=setting)
    else:
        with pytest.raises(again):
            await reserve(second, paid, setting=setting)
    with pytest.raises(PaymentReplayed):
        await reserve(second, payment(), OTHER, setting=setting)
    second.close()


async def test_sums_equal_the_payments_through_every_turn(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    claims = [await reserve(ledger, payment(n), setting="async" if n % 2 else "before") for n in range(1, 7)]
    assert (ledger.sums().outstanding_atomic, ledger.sums().exposure_atomic) == (6000, 3000)
    await bring(ledger, claims[0], [OWE, SUBMIT, PAID], begun=True, delivered=True)
    await bring(ledger, claims[2], [OWE, SUBMIT, MoneyEvent.HOPELESS], begun=True, delivered=True)
    await ledger.give_up(claims[1], "test")
    await ledger.give_up(claims[4], "test")
    sums = ledger.sums()
    assert (sums.earned_atomic, sums.lost_atomic, sums.outstanding_atomic, sums.exposure_atomic) == (
        1000,
        1000,
        2000,
        0,
    )
    assert sums.payments == {"settled": 1, "lost": 1, "void": 1, "reserved": 2}
    await bring(ledger, claims[2], [PAID], begun=False, delivered=False)
    assert (ledger.sums().earned_atomic, ledger.sums().lost_atomic) == (2000, 0)
    ledger.close()
    reopened = open_ledger(tmp_path)
    assert reopened.sums().outstanding_atomic == 0
    reopened.close()


async def test_money_that_never_came_for_goods_that_never_left_is_no_loss(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    claim = await reserve(ledger, payment())
    await bring(ledger, claim, [OWE, SUBMIT, MoneyEvent.HOPELESS], begun=False, delivered=False)
    sums = ledger.sums()
    assert (sums.payments, sums.lost_atomic, sums.outstanding_atomic) == ({"lost": 1}, 0, 0)
    ledger.close()


async def test_amounts_past_sixty_four_bits_are_counted_exactly(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    huge = Offer("exact", OFFER.network, OFFER.asset, 2**200 + 1, OFFER.pay_to, 300)
    for nonce in (1, 2):
        authorization, signature = authorize(bytes([1]) * 32, huge, nonce=nonce.to_bytes(32, "big"))
        await reserve(ledger, VerifiedPayment(authorization, signature, huge, 2))
    assert ledger.sums().outstanding_atomic == 2**201 + 2
    ledger.close()


async def test_delivered_work_can_never_be_waived(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    claim = await reserve(ledger, payment(), setting="async")
    await ledger.owe(claim, ANSWER)
    assert await ledger.give_up(claim, "too late") is Money.QUEUED
    with pytest.raises(AssertionError):
        ledger.database.transact(lambda connection: books.move(connection, claim.id, MoneyEvent.WAIVE, 0))
    ledger.close()


async def test_two_ledgers_on_one_store_let_one_of_them_have_a_payment(tmp_path: Path) -> None:
    ledgers = [open_ledger(tmp_path), open_ledger(tmp_path)]
    outcomes = await asyncio.gather(*(reserve(ledgers[n % 2], payment()) for n in range(32)), return_exceptions=True)
    assert sum(isinstance(outcome, Claim) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, RequestInProgress) for outcome in outcomes) == 31
    for ledger in ledgers:
        ledger.close()


async def test_a_process_that_lives_keeps_its_payments(tmp_path: Path) -> None:
    living = open_ledger(tmp_path)
    claim = await reserve(living, payment())
    other = open_ledger(tmp_path)
    assert other.recover() == 0
    state = other.state(claim.id)
    assert state is not None
    assert state.money is Money.RESERVED
    other.close()
    living.close()


def test_every_state_of_work_is_known_to_the_store() -> None:
    schema = (Path(__file__).parents[2] / "seller" / "migrations" / "0001_ledger.sql").read_text()
    assert f"work IN ({', '.join(repr(state.value) for state in Work)})" in schema
    assert f"mode IN ({', '.join(repr(mode.value) for mode in Mode)})" in schema

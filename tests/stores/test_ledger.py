"""The seller's ledger: what `tests/seller` asks of it on SQLite asked on PostgreSQL, and replicas on one store."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from contracts.errors import ExposureExceeded, FareboxError, StoreUnavailable
from contracts.lifecycle import Money, MoneyEvent
from seller import books
from seller.claims import Claim, Replay
from seller.ledger import Ledger
from seller.policy import Caps, Mode
from seller.settlement.outbox import Outbox
from seller.spool import Beginning
from seller.verify import VerifiedPayment
from tests.patience import eventually
from tests.seller import test_ledger
from tests.seller.test_ledger import ANSWER, TOKEN, ask, payment
from tests.stores.parts import Forgetful, Place, suite_of

globals().update(suite_of(test_ledger, without=set()))

pytestmark = pytest.mark.usefixtures("seller_on_postgres")

PROCESSES, COPIES = 4, 16
PRICE_ATOMIC = 1000
CAPS = Caps(10**6, 10**8)


@pytest.fixture
def ledgers(place: Place) -> Iterator[Callable[[], Ledger]]:
    """Opens the ledger of one store as one more replica does; each ends with the test."""
    opened: list[Ledger] = []

    def open_ledger() -> Ledger:
        opened.append(Ledger(place.url("seller"), 31337, TOKEN))
        return opened[-1]

    yield open_ledger
    for ledger in opened:
        ledger.close()


async def claim_of(ledger: Ledger, paid: VerifiedPayment, *, setting: Any = "async") -> Claim:
    claim = await ask(ledger, paid, setting=setting)
    assert isinstance(claim, Claim)
    return claim


# Many processes


def _outcomes(url: str, payments: list[VerifiedPayment], caps: Caps) -> list[str]:
    """Reserve all at once, in a process of its own, and return what came of each."""

    async def run() -> list[str]:
        ledger = Ledger(url, 31337, TOKEN)

        async def one(paid: VerifiedPayment) -> str:
            try:
                await ask(ledger, paid, caps=caps)
            except FareboxError as error:
                return error.code
            return "claimed"

        outcomes = await asyncio.gather(*(one(paid) for paid in payments))
        ledger.database.close()  # as a process ends that is killed: its claims stay its own
        return list(outcomes)

    return asyncio.run(run())


def race(url: str, payments: list[list[VerifiedPayment]], caps: Caps) -> Counter[str]:
    """Let as many processes as there are lists reserve at once."""
    with multiprocessing.get_context("spawn").Pool(len(payments)) as processes:
        outcomes = processes.starmap(_outcomes, [(url, some, caps) for some in payments], chunksize=1)
    return Counter(outcome for some in outcomes for outcome in some)


def test_of_64_copies_of_one_payment_in_4_processes_one_is_claimed(place: Place) -> None:
    copies = [[payment()] * COPIES] * PROCESSES
    outcomes = race(place.url("seller"), copies, CAPS)
    assert outcomes == {"claimed": 1, "request_in_progress": PROCESSES * COPIES - 1}


def test_the_cap_on_credit_holds_over_all_processes(
    place: Place, ledgers: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "recover", lambda _: 0)  # the claims of the processes that ended count still
    payments = [[payment(1 + process * COPIES + copy) for copy in range(COPIES)] for process in range(PROCESSES)]
    outcomes = race(place.url("seller"), payments, Caps(10 * PRICE_ATOMIC, 10**8))
    assert outcomes == {"claimed": 10, ExposureExceeded.code: PROCESSES * COPIES - 10}
    sums = ledgers().sums()
    assert (sums.exposure_atomic, sums.outstanding_atomic) == (10 * PRICE_ATOMIC, 10 * PRICE_ATOMIC)


def test_a_payment_of_a_replica_that_died_may_come_to_another(place: Place, ledgers: Callable[[], Ledger]) -> None:
    assert race(place.url("seller"), [[payment()]], CAPS) == {"claimed": 1}
    survivor = ledgers()
    eventually(lambda: survivor.recover() == 0 and not survivor.sums().exposure_atomic)
    assert asyncio.run(claim_of(survivor, payment())).id


# Settling


async def test_the_lease_on_an_account_is_one_replicas_until_it_ends(ledgers: Callable[[], Ledger]) -> None:
    first, second = ledgers(), ledgers()
    outboxes = [Outbox(ledger.database, 31337, TOKEN, ledger.owner.id) for ledger in (first, second)]
    assert await outboxes[0].hold("account", first.is_gone)
    assert not await outboxes[1].hold("account", second.is_gone)
    first.owner.close()
    eventually(lambda: second.is_gone(first.owner.id))
    assert await outboxes[1].hold("account", second.is_gone)
    assert not await outboxes[0].hold("account", lambda _: False)


# Taken for dead


@pytest.mark.parametrize("step", ["begin", "queue", "deliver", "deliver on credit"])
async def test_a_replica_that_was_taken_for_dead_serves_nothing_of_what_it_had_claimed(
    ledgers: Callable[[], Ledger], step: str
) -> None:
    unseen, other = ledgers(), ledgers()
    claim = await claim_of(unseen, payment(), setting="async" if step == "deliver on credit" else "after")
    other._end_owner(unseen.owner.id)
    taken_over = await claim_of(other, payment())
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "begin": lambda: unseen.begin(claim),
        "queue": lambda: unseen.owe(claim),
        "deliver": lambda: unseen.delivered(claim, ANSWER),
        "deliver on credit": lambda: unseen.owe(claim, ANSWER),
    }
    with pytest.raises(StoreUnavailable, match="taken for dead"):
        await steps[step]()
    await unseen.give_up(claim, "store_unavailable")
    await other.owe(taken_over, ANSWER)
    assert other.sums().payments == {"queued": 1}
    # It is among the living again with its next claim.
    await claim_of(unseen, payment(2))
    assert other.recover() == 0
    unseen.owner.close()
    eventually(lambda: other.recover() == 1)
    assert other.sums().payments == {"queued": 1, "void": 1}


# Commits of which nobody knows whether they were written


async def test_a_claim_of_which_nobody_knows_whether_it_was_written_can_be_made_again(
    ledgers: Callable[[], Ledger], doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledgers()
    forgetful = Forgetful(ledger.database, monkeypatch)
    forgetful.mode = doubt
    with pytest.raises(StoreUnavailable):
        await claim_of(ledger, payment())
    claim = await claim_of(ledger, payment())
    assert ledger.sums().exposure_atomic == PRICE_ATOMIC
    await ledger.owe(claim, ANSWER)
    assert ledger.sums().payments == {"queued": 1}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "stream"])
async def test_a_delivery_of_which_nobody_knows_whether_it_was_noted_costs_nothing_and_can_be_had_again(
    ledgers: Callable[[], Ledger], doubt: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledgers()
    answer = Beginning(200, ANSWER.headers, b"goods", whole)
    claim = await claim_of(ledger, payment())
    forgetful = Forgetful(ledger.database, monkeypatch)
    forgetful.mode = doubt
    with pytest.raises(StoreUnavailable):
        await ledger.owe(claim, answer)
    assert await ledger.give_up(claim, "store_unavailable") is Money.VOID
    sums = ledger.sums()
    assert (sums.exposure_atomic, sums.outstanding_atomic) == (0, 0)
    again = await claim_of(ledger, payment())
    await ledger.owe(again, ANSWER)
    assert ledger.sums().payments == {"queued": 1}


async def test_goods_that_were_fetched_after_a_doubtful_delivery_stay_owed(
    ledgers: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, other = ledgers(), ledgers()
    claim = await claim_of(ledger, payment())
    forgetful = Forgetful(ledger.database, monkeypatch)
    forgetful.mode = "written"
    with pytest.raises(StoreUnavailable):
        await ledger.owe(claim, ANSWER)
    # The client comes back to another replica, before the first one can write again.
    replay = await ask(other, payment())
    assert isinstance(replay, Replay)
    await other.count_replay(replay.answer.payment_id)
    assert await ledger.give_up(claim, "store_unavailable") is Money.QUEUED
    assert other.sums().payments == {"queued": 1}


async def test_what_was_settled_meanwhile_is_a_credit_for_the_same_request(
    ledgers: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledgers()
    claim = await claim_of(ledger, payment())
    forgetful = Forgetful(ledger.database, monkeypatch)
    forgetful.mode = "written"
    with pytest.raises(StoreUnavailable):
        await ledger.owe(claim, ANSWER)
    for event in (MoneyEvent.SUBMIT, MoneyEvent.CHAIN_PAID):
        ledger.database.transact(lambda connection, event=event: books.move(connection, claim.id, event, 0))  # type: ignore[misc]
    assert await ledger.give_up(claim, "store_unavailable") is Money.SETTLED
    credit = await claim_of(ledger, payment())
    assert credit.credit
    assert credit.mode is Mode.ASYNC


async def test_an_end_that_the_store_did_not_take_is_written_before_the_next_claim(
    ledgers: Callable[[], Ledger], doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledgers()
    claim = await claim_of(ledger, payment(), setting="after")
    await ledger.begin(claim)
    forgetful = Forgetful(ledger.database, monkeypatch)
    forgetful.mode = doubt
    with pytest.raises(StoreUnavailable):
        await ledger.give_up(claim, "upstream_failed")
    await claim_of(ledger, payment(2))
    assert ledger.sums().payments == {"void": 1, "reserved": 1}
    await claim_of(ledger, payment())

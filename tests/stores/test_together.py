"""Writes that are done together end as they would alone: the same claims, refusals, answers and sums."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import pytest

from contracts.errors import FareboxError, StoreUnavailable
from contracts.schemes.authorization import Authorization
from contracts.storage import Conflict, Connection, Database, Shared, open_database
from seller import spool
from seller.claims import Claim
from seller.ledger import Ledger
from seller.policy import Caps
from seller.spool import Beginning
from seller.verify import VerifiedPayment
from tests.seller.test_ledger import OFFER, ONE, OTHER, TOKEN, ask
from tests.stores.parts import Migrations, Place, held, start

PRICE_ATOMIC = 1000
CAPS = Caps(10**6, 10**8)
WHOLE = Beginning(200, [(b"content-type", b"text/plain")], b"goods", whole=True)
PART = Beginning(200, [(b"content-type", b"text/event-stream")], b"go", whole=False)
Setting = Literal["auto", "before", "after", "async"]


def paid(payer: int, nonce: int, *, name: str | None = None) -> VerifiedPayment:
    """Return a payment as one that was verified; the ledger looks at no signature."""
    authorization = Authorization(
        payer=bytes([payer]) * 20,  # type: ignore[arg-type]
        payee=OFFER.pay_to,
        value_atomic=OFFER.amount_atomic,
        valid_after_s=0,
        valid_before_s=int(time.time()) + 3600,
        nonce=nonce.to_bytes(32, "big"),
    )
    return VerifiedPayment(authorization, b"\x01" * 65, OFFER, 2, payment_id=name)


async def together(ledger: Ledger, *writes: Coroutine[Any, Any, Any]) -> list[Any]:
    """Return what comes of writes that wait for one and the same commit."""
    holder = await held(ledger.database)
    tasks = await start(*writes)
    await holder.release()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def told(outcome: Any) -> str:
    """Return what a caller is told, whatever its numbers are."""
    if isinstance(outcome, Claim):
        return f"claim, {outcome.mode.value}"
    return outcome.code if isinstance(outcome, FareboxError) else type(outcome).__name__


@pytest.fixture
def ledgers(place: Place) -> Iterator[Callable[[int], Ledger]]:
    """Opens the books of one chain."""
    opened: list[Ledger] = []

    def open_ledger(chain_id: int) -> Ledger:
        opened.append(Ledger(place.url("seller"), chain_id, TOKEN))
        return opened[-1]

    yield open_ledger
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(ledgers: Callable[[int], Ledger]) -> Ledger:
    return ledgers(31337)


@pytest.fixture
def together_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is done alone that could be done with others."""

    async def refuse(*_: object) -> None:
        raise AssertionError("this was done alone")

    monkeypatch.setattr("seller.reservations.Reservations.one", refuse)
    monkeypatch.setattr("seller.endings.deliver", refuse)


# The store


@pytest.fixture
def database(place: Place, migrations: Migrations) -> Iterator[Database]:
    package = migrations({"0001_entries.sql": "CREATE TABLE entries (value INTEGER UNIQUE);\n"})
    database = open_database(place.url("books"), package)
    yield database
    database.close()


def insert(connection: Connection, value: int) -> str:
    connection.execute("INSERT INTO entries VALUES (?)", (value,))
    return f"{value} alone"


def insert_all(connection: Connection, values: Sequence[int]) -> list[str | Exception]:
    for value in values:
        insert(connection, value)
    return [ValueError("thirteen") if value == 13 else f"{value} of {len(values)}" for value in values]


async def write_values(database: Database, *values: int) -> list[Any]:
    holder = await held(database)
    tasks = await start(
        *(database.write(partial(insert, value=value), shared=Shared(insert_all, value)) for value in values)
    )
    await holder.release()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def values_in(database: Database) -> list[int]:
    return database.read(
        lambda connection: [row[0] for row in connection.execute("SELECT value FROM entries ORDER BY value")]
    )


async def test_writes_that_share_a_function_are_one_call_of_it_and_each_is_told_its_own(database: Database) -> None:
    assert await write_values(database, 1, 2, 3) == ["1 of 3", "2 of 3", "3 of 3"]
    assert values_in(database) == [1, 2, 3]


async def test_an_exception_among_the_outcomes_is_its_callers_alone(database: Database) -> None:
    first, refused, last = await write_values(database, 1, 13, 2)
    assert (first, last) == ("1 of 3", "2 of 3")
    assert isinstance(refused, ValueError)


async def test_what_fails_together_is_undone_and_every_write_is_done_alone(database: Database) -> None:
    first, second, third = await write_values(database, 1, 2, 1)
    assert (first, second) == ("1 alone", "2 alone")
    assert isinstance(third, Conflict)
    assert values_in(database) == [1, 2]


# The ledger


@pytest.mark.usefixtures("together_only")
async def test_payments_of_one_commit_are_claimed_and_delivered_together(ledger: Ledger) -> None:
    claims = await together(ledger, *(ask(ledger, paid(number % 3, number)) for number in range(100)))
    assert len({claim.id for claim in claims}) == 100
    assert [claim.payment.authorization.nonce[-1] for claim in claims] == list(range(100))
    assert ledger.sums().exposure_atomic == 100 * PRICE_ATOMIC
    kept = await together(ledger, *(ledger.owe(claim, WHOLE) for claim in claims))
    assert kept == [True] * 100
    sums = ledger.sums()
    assert sums.payments == {"queued": 100}
    assert sums.outstanding_atomic == 100 * PRICE_ATOMIC


@pytest.mark.parametrize(
    ("setting", "caps"),
    [
        pytest.param("async", Caps(2 * PRICE_ATOMIC, 10**8), id="async, near the cap of a payer"),
        pytest.param("async", Caps(10**6, 6 * PRICE_ATOMIC), id="async, near the cap of all"),
        pytest.param("before", CAPS, id="before"),
        # At the edge of the total cap it may settle first where it would not have to.
        pytest.param("auto", CAPS, id="auto"),
    ],
)
async def test_whatever_comes_in_one_commit_ends_as_it_would_one_after_the_other(
    ledgers: Callable[[int], Ledger], setting: Setting, caps: Caps
) -> None:
    asked = [
        (paid(1, 1), ONE),  # was here before, and is worked for
        (paid(1, 2), OTHER),  # was here before, for another request
        (paid(1, 3), ONE),  # was here before, and was answered
        *((paid(payer, nonce), ONE) for nonce in range(10, 14) for payer in (1, 2, 3)),
        (paid(2, 10), ONE),  # twice at once
        (paid(2, 10), OTHER),  # twice at once, for another request
    ]
    outcomes = []
    for chain_id, at_once in ((31337, True), (31338, False)):
        ledger = ledgers(chain_id)
        for nonce in (1, 2, 3):
            claim = await ask(ledger, paid(1, nonce), setting="async")
            assert isinstance(claim, Claim)
            if nonce == 3:
                await ledger.owe(claim, WHOLE)
        requests = [ask(ledger, payment, digest, setting=setting, caps=caps) for payment, digest in asked]
        if at_once:
            ended = await together(ledger, *requests)
        else:
            ended = [(await asyncio.gather(request, return_exceptions=True))[0] for request in requests]
        outcomes.append(([told(outcome) for outcome in ended], ledger.sums()))
    assert outcomes[0] == outcomes[1]
    assert {"request_in_progress", "payment_replayed", "Replay"} <= set(outcomes[0][0])


async def test_of_two_payments_with_one_name_in_one_commit_one_is_refused(ledger: Ledger) -> None:
    name = "order-0123456789abcdef"
    outcomes = await together(
        ledger, ask(ledger, paid(1, 1, name=name)), ask(ledger, paid(1, 2, name=name)), ask(ledger, paid(1, 3))
    )
    assert [told(outcome) for outcome in outcomes] == ["claim, async", "payment_id_reused", "claim, async"]


async def test_a_claim_that_is_no_longer_held_keeps_none_of_the_others_from_their_delivery(ledger: Ledger) -> None:
    claims = await together(ledger, *(ask(ledger, paid(1, number)) for number in range(5)))
    await ledger.give_up(claims[2], "test")
    kept = await together(ledger, *(ledger.owe(claim, WHOLE) for claim in claims))
    assert isinstance(kept.pop(2), StoreUnavailable)
    assert kept == [True] * 4
    assert ledger.sums().payments == {"queued": 4, "void": 1}


async def test_an_answer_to_a_payment_that_came_back_replaces_what_broke_off(ledger: Ledger) -> None:
    first = await ask(ledger, paid(1, 1), setting="before")
    assert isinstance(first, Claim)
    claims = [first, *await together(ledger, *(ask(ledger, paid(1, number)) for number in (2, 3)))]
    await ledger.begin(first)
    await ledger.delivered(first, PART)
    assert ledger.database.read(lambda connection: spool.find(connection, first.id, 0)) is not None
    assert await together(ledger, *(ledger.owe(claim, WHOLE) for claim in claims[1:])) == [True, True]


def held_bytes(ledger: Ledger) -> tuple[int, int]:
    """Return the bytes of kept answers: as counted, and as they are."""

    def count(connection: Connection) -> tuple[int, int]:
        (counted,) = connection.execute("SELECT bytes FROM answers_held").fetchone()
        (real,) = connection.execute("SELECT coalesce(sum(size_bytes), 0) FROM answers").fetchone()
        return int(counted), int(real)

    return ledger.database.read(count)


async def test_where_the_room_for_answers_is_full_the_oldest_go_and_the_count_stays_right(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = await together(ledger, *(ask(ledger, paid(1, number)) for number in range(40)))
    assert await together(ledger, *(ledger.owe(claim, WHOLE) for claim in claims[:20])) == [True] * 20
    counted, real = held_bytes(ledger)
    assert counted == real
    monkeypatch.setattr("seller.spool.ANSWERS_BYTES_MAX", counted + 100)
    assert await together(ledger, *(ledger.owe(claim, WHOLE) for claim in claims[20:])) == [True] * 20
    assert held_bytes(ledger) == (counted, counted)
    kept = ledger.database.read(lambda connection: [spool.find(connection, claim.id, 0) for claim in claims])
    assert [answer is not None for answer in kept] == [False] * 20 + [True] * 20


async def test_where_not_all_answers_of_a_commit_find_room_each_is_kept_or_noted_as_dropped(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = await together(ledger, *(ask(ledger, paid(1, number)) for number in range(6)))
    # Streams that are being written are not thrown away for others.
    monkeypatch.setattr("seller.spool.ANSWERS_BYTES_MAX", 2000)
    kept = await together(ledger, *(ledger.owe(claim, PART) for claim in claims))
    assert 0 < kept.count(True) < 6
    counted, real = held_bytes(ledger)
    assert counted == real
    assert ledger.sums().payments == {"queued": 6}

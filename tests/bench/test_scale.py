"""What must not grow with the books does not, counted in steps of the store's own machine, which no clock disturbs.

The bench itself runs to its end and leaves nothing out; its times are for `make bench`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bench.loader import fill_ledger, fill_pool, first_purchase
from bench.scale import FLAT, QUICK, growth, lines, measure
from bench.scale_ledger import a_ledger, reserve
from bench.workload import an_offer, keys, sign_payments
from buyer.home import Home
from buyer.journal import expire_overdue
from buyer.pool import Pool
from seller import statement
from seller.settlement.outbox import Outbox

T = TypeVar("T")

SMALL, LARGE = 500, 5_000
# A tree of ten times the rows may be a level deeper.
DEEPER = 1.2
NOW_S = 1_800_000_000


class Counted:
    """A SQLite file that counts the steps of its virtual machine, in the place of a room's database."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        self.steps = 0
        self.connection.set_progress_handler(self._count, 1)

    def _count(self) -> int:
        self.steps += 1
        return 0

    def read(self, work: Callable[[Any], T], *, bare: bool = False) -> T:
        return work(self.connection)

    def steps_of(self, work: Callable[[], object]) -> int:
        before = self.steps
        work()
        return self.steps - before


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pool]]:
    """Two pools, one ten times as large, whose reads are counted."""
    made, stores = [], []
    for size in (SMALL, LARGE):
        home = Home.open(tmp_path_factory.mktemp("pool"))
        pool = Pool.open(home)
        fill_pool(pool, first_purchase(pool), 1, size)
        stores.append(pool.database)
        pool.database = Counted(home.path / "buyer.db")  # type: ignore[assignment]
        made.append(pool)
    yield made
    for pool, store in zip(made, stores, strict=True):
        pool.database = store
        pool.close()


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> list[Counted]:
    """The books of two sellers, one with ten times the payments."""
    made = []
    for size in (SMALL, LARGE):
        path = tmp_path_factory.mktemp("ledger") / "seller.db"
        ledger = a_ledger(f"sqlite:///{path}")
        (payment,) = sign_payments(an_offer(), keys(1), 1)
        asyncio.run(reserve(ledger, payment.header.encode(), NOW_S - 10**8))
        fill_ledger(ledger, 1, size)
        ledger.close()
        made.append(Counted(path))
    return made


def grown(counts: list[int]) -> float:
    small, large = counts
    assert small > 0
    return large / small


def test_what_is_open_in_a_pool_is_found_in_as_many_steps_however_large_the_pool(pools: list[Pool]) -> None:
    counts = []
    for pool in pools:
        (purchase,) = pool.purchases()
        counted: Any = pool.database
        counts.append(counted.steps_of(lambda: pool.open_outcomes(purchase)))  # noqa: B023 - runs at once
    assert grown(counts) < DEEPER


def test_what_is_overdue_in_a_pool_is_found_in_as_many_steps_however_large_the_pool(pools: list[Pool]) -> None:
    counts = []
    for pool in pools:
        counted: Any = pool.database
        work = lambda: expire_overdue(counted.connection, an_offer().network.chain_id, 1)  # noqa: B023, E731
        counts.append(counted.steps_of(work))
    assert grown(counts) < DEEPER


def test_the_next_batch_to_settle_is_found_in_as_many_steps_however_many_were_settled(ledgers: list[Counted]) -> None:
    offer, counts = an_offer(), []
    for books in ledgers:
        outbox = Outbox(books, offer.network.chain_id, offer.asset.address, "bench")  # type: ignore[arg-type]
        counts.append(books.steps_of(lambda: outbox.due(50)))  # noqa: B023 - runs at once
    assert grown(counts) < DEEPER


def test_a_sellers_status_takes_as_many_steps_however_many_were_settled(ledgers: list[Counted]) -> None:
    offer, counts = an_offer(), []
    for books in ledgers:
        key = (books.connection, offer.network.chain_id, offer.asset.address)
        counts.append(books.steps_of(lambda: (statement.sums(*key), statement.transactions(*key, 100))))  # noqa: B023
    assert grown(counts) < DEEPER


@pytest.mark.timeout(400)
def test_the_bench_measures_every_size_and_every_store() -> None:
    sections = measure(QUICK)
    for section, sizes in (("pool", QUICK.pool), ("purchases", QUICK.purchases), ("ledger", QUICK.ledger)):
        rows = sections[section]
        assert [row["size"] for row in rows] == list(sizes)
        assert all(value > 0 for row in rows for value in row.values())
    assert {(row["store"], row["gateways"], row["sellers"]) for row in sections["processes"]} == {
        ("SQLite", 1, 1),
        ("PostgreSQL", 1, 1),
    }
    for row in sections["processes"]:
        assert row["claim_per_s"] > 0
        assert row["reserve_per_s"] > 0
    assert all(growth(sections[section], column) > 0 for section, column, _ in FLAT)
    text = "\n".join(lines({"sections": sections}))
    for wanted in ("authorizations in one purchase", "x a decade", "PostgreSQL"):
        assert wanted in text


def test_growth_is_per_tenfold_size() -> None:
    rows = [{"size": 10, "ms": 2.0}, {"size": 100, "ms": 3.0}, {"size": 1_000, "ms": 8.0}]
    assert growth(rows, "ms") == pytest.approx(2.0)

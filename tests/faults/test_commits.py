"""A commit that fails, the n-th for every n: no goods unpaid, no money without goods, and new money is refused.

The failure is a stand-in for an error of fsync: what the store says of one, in place of the commit or after it. Nobody
knows then whether the transaction is on the disk, and both are tried.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.errors import StoreUnavailable
from contracts.evm.devnet import Devnet
from contracts.storage.sqlite import SqliteDatabase
from tests.patience import PATIENCE_S
from tests.seller.shop import PRICE_ATOMIC, open_shop

COMMITS_MAX = 40
AT_ONCE = 8


class FailingCommits:
    """Fails the n-th commit of one database, and counts them all."""

    def __init__(self, database: SqliteDatabase, number: int, *, written: bool) -> None:
        self.count = 0
        self._number = number
        self._written = written
        self._commit: Callable[[], None] = database._commit
        self._database = database
        database._commit = self._maybe  # type: ignore[method-assign]

    def _maybe(self) -> None:
        self.count += 1
        if self.count != self._number:
            self._commit()
            return
        if self._written:
            self._commit()
        raise StoreUnavailable(f"{self._database.name}: {sqlite3.OperationalError('disk I/O error')}")


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written all the same"])
@pytest.mark.parametrize("settle", ["before", "auto", "async"])
async def test_when_any_one_commit_fails_the_payment_ends_in_goods_for_one_price(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle: str, written: bool
) -> None:
    monkeypatch.setattr("seller.settlement.engine.FAILURE_PAUSE_S", 0.05)
    monkeypatch.setattr("seller.settlement.engine.FLUSH_WINDOW_S", 0.0)
    monkeypatch.setattr("seller.settlement.engine.TROUBLE_GRACE_S", 0.5)
    paid = failed = number = 0
    while number < COMMITS_MAX:
        number += 1
        folder = tmp_path / str(paid)
        folder.mkdir()
        async with open_shop(chain, folder, settle=settle) as shop:
            database = shop.seller.ledger.database
            assert isinstance(database, SqliteDatabase)
            commits = FailingCommits(database, number, written=written)
            header = shop.payment()
            answer = await shop.buy(header)
            failed += answer.status_code != 200
            async with asyncio.timeout(PATIENCE_S):
                while answer.status_code != 200:
                    assert answer.status_code in (409, 503), answer.text
                    assert shop.app.runs <= 2
                    await asyncio.sleep(0.05)
                    answer = await shop.buy(header)
            paid += 1
            await shop.settled()
            sums = shop.seller.ledger.sums()
            assert shop.earned == paid * PRICE_ATOMIC, f"commit {number}"
            assert (sums.earned_atomic, sums.lost_atomic) == (PRICE_ATOMIC, 0), f"commit {number}"
        if commits.count < number:
            if failed:
                break
            # Each time it was a commit of the settlement, which goes on beside the purchase: once more.
            number = 0
    else:
        raise AssertionError("one purchase made more commits than can be")


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written all the same"])
async def test_when_a_commit_of_many_purchases_fails_each_ends_in_goods_for_one_price(
    chain: Devnet, tmp_path: Path, written: bool
) -> None:
    for number in range(1, COMMITS_MAX):
        folder = tmp_path / str(number)
        folder.mkdir()
        # Nobody settles here, so that all commits are those of the purchases.
        async with open_shop(chain, folder, settle="async", settles=False) as shop:
            database = shop.seller.ledger.database
            assert isinstance(database, SqliteDatabase)
            headers = [shop.payment() for _ in range(AT_ONCE)]
            assert (await shop.buy(shop.payment())).status_code == 200
            commits = FailingCommits(database, number, written=written)
            statuses = [answer.status_code for answer in await asyncio.gather(*map(shop.buy, headers))]
            mattered = commits.count >= number
            assert not mattered or 503 in statuses
            async with asyncio.timeout(PATIENCE_S):
                for header in headers:
                    while (answer := await shop.buy(header)).status_code != 200:
                        assert answer.status_code in (409, 503), answer.text
                        await asyncio.sleep(0.05)
            sums = shop.seller.ledger.sums()
            assert sums.payments == {"queued": AT_ONCE + 1}, f"commit {number}"
            assert sums.outstanding_atomic == (AT_ONCE + 1) * PRICE_ATOMIC
        if not mattered:
            break
    else:
        raise AssertionError("so many purchases at once made more commits than can be")

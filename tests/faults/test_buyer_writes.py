"""A write of the buyer that fails, the n-th for every n: nothing leaves that is not on disk, nothing signed is lost.

The failures are stand-ins for an error of fsync: what the store says of one, in place of a commit or after it, and
what the kernel says of one when the generation's note is written. Both are tried with the write done all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from buyer.flow import Incoming, Lost, NeverLeft, Outcome, Outgoing, advance, pay_with_pool
from buyer.home import Home
from buyer.http import open_client, send
from buyer.pool import Pool
from buyer.presign import Draft, carry_out, prepare
from buyer.signers import KeySigner
from contracts.address import parse_address
from contracts.errors import FareboxError, NameUnknown, StoreUnavailable
from contracts.evm.devnet import Devnet
from contracts.headers import PAYMENT_SIGNATURE, decode_payment
from contracts.offers import Offer
from contracts.storage.sqlite import SqliteDatabase
from tests.buyer.parts import Shop, offer_of, serving, terms_of, token_of

COUNT = 4
PRICE_ATOMIC = 1000
WRITES_MAX = 60

T = TypeVar("T")


class FailingWrites:
    """Fails the n-th write of a buyer, its commits and its notes counted together; `count` is how many there were."""

    def __init__(self, number: int, *, written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._number = number
        self._written = written
        commit, note = SqliteDatabase._commit, os.pwrite
        monkeypatch.setattr(SqliteDatabase, "_commit", lambda database: self._commit(lambda: commit(database)))
        monkeypatch.setattr("buyer.generation.os.pwrite", lambda *words: self._note(lambda: note(*words)))

    def _commit(self, work: Callable[[], None]) -> None:
        self._do(work, StoreUnavailable(f"buyer.db: {sqlite3.OperationalError('disk I/O error')}"))

    def _note(self, work: Callable[[], int]) -> int:
        return self._do(work, OSError(5, "Input/output error")) or 0

    def _do(self, work: Callable[[], T], error: Exception) -> T:
        self.count += 1
        if self.count != self._number:
            return work()
        if self._written:
            work()
        raise error


class Wallet(KeySigner):
    """A key that remembers the nonce of all it signs."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self.signed: set[bytes] = set()

    def sign_authorizations(self, authorizations: Sequence[object], *terms: object) -> list[bytes]:
        self.signed |= {authorization.nonce for authorization in authorizations}  # type: ignore[attr-defined]
        return super().sign_authorizations(authorizations, *terms)  # type: ignore[arg-type]


class Buyer:
    """One buyer's life as a list of steps; each is repeated until the disk lets it pass."""

    def __init__(self, chain: Devnet, home: Home, offer: Offer, url: str) -> None:
        self.wallet = Wallet(chain.accounts[0].key)
        self.failures: list[FareboxError] = []
        self._chain = chain
        self._home = home
        self._offer = offer
        self._url = url

    def buy(self) -> None:
        with Pool.open(self._home) as pool:
            try:
                existing = pool.purchase("p")
            except NameUnknown:
                existing = None
            draft = Draft(
                name="p",
                kind="pool",
                endpoint=self._url,
                model="m",
                payer=self.wallet.address,
                terms=terms_of(self._offer),
                price_cap_atomic=PRICE_ATOMIC,
                ttl_s=86_400,
                refill=None,
                rpc_urls=(self._chain.rpc_url,),
                existing=existing,
            )
            wanted = COUNT if existing is None else COUNT - pool.counts("p").signed
            if wanted:
                carry_out(pool, asyncio.run(prepare(pool, draft, wanted, int(time.time()))), self.wallet)

    def call(self, key: str) -> Outcome:
        """Ask once, in a process that has just begun. What leaves is looked up on the disk as it leaves."""
        with Pool.open(self._home) as pool:
            spender = pool.spender()
            try:
                request = Outgoing("POST", f"{self._url}/v1/chat/completions", body=b"{}")
                flow = pay_with_pool(request, spender, pool.purchase("p"), key, time.time)
                step = advance(flow, None)
                while isinstance(step, Outgoing):
                    assert self._is_on_disk(step), "it leaves, and is not on disk as sent"
                    happened: Incoming | NeverLeft | Lost
                    with open_client(20) as client:
                        happened = send(client, step, 10**6)
                    step = advance(flow, happened)
                return step
            finally:
                with contextlib.suppress(StoreUnavailable):
                    spender.close()

    def until_done(self, work: Callable[[], Outcome | None]) -> None:
        """Repeat `work`, as a person or a client would, until it is done."""
        for _ in range(4):
            try:
                outcome = work()
            except StoreUnavailable as error:
                self.failures.append(error)
                continue
            if outcome is None or outcome.kind == "served":
                return
            assert outcome.error is not None
            assert isinstance(outcome.error, StoreUnavailable), outcome.error.message
            self.failures.append(outcome.error)
        raise AssertionError("one failed write was met more than once")

    def states(self) -> dict[bytes, str]:
        """Return what the disk itself holds: the state of every authorization, `intent` for one not signed yet."""
        with contextlib.closing(sqlite3.connect(self._home.path / "buyer.db")) as connection:
            rows = dict(connection.execute("SELECT nonce, state FROM authorizations").fetchall())
            return {**dict(connection.execute("SELECT nonce, 'intent' FROM intents").fetchall()), **rows}

    def _is_on_disk(self, request: Outgoing) -> bool:
        payment = decode_payment(PAYMENT_SIGNATURE, dict(request.headers)[PAYMENT_SIGNATURE])
        nonce = bytes.fromhex(_nonce_text(payment.payload))
        return self.states()[nonce] in ("sent", "unknown", "spent")


def _nonce_text(payload: bytes) -> str:
    text = bytes(payload).decode()
    return text.partition('"nonce":"0x')[2][:64]


@pytest.fixture
def shop(chain: Devnet) -> Iterator[tuple[Shop, Offer, str]]:
    chain.mint(chain.accounts[0].address, 100 * PRICE_ATOMIC)
    offer = offer_of(PRICE_ATOMIC, asset=token_of(chain), pay_to=parse_address(chain.accounts[1].address))
    shop = Shop([offer])
    with serving(shop) as url:
        yield shop, offer, url


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written all the same"])
def test_when_any_one_write_fails_nothing_is_lost_and_nothing_leaves_unrecorded(
    chain: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop: tuple[Shop, Offer, str], written: bool
) -> None:
    seller, offer, url = shop
    mattered = 0
    for number in range(1, WRITES_MAX):
        home = Home.open(tmp_path / str(number))
        buyer = Buyer(chain, home, offer, url)
        seller.paid.clear()
        with monkeypatch.context() as patch:
            writes = FailingWrites(number, written=written, monkeypatch=patch)
            buyer.until_done(buyer.buy)
            for key in ("first", "second"):
                buyer.until_done(lambda: buyer.call(key))  # noqa: B023 - runs at once
        mattered += len(buyer.failures)
        where = f"write {number}"
        for failure in buyer.failures:
            assert failure.http_status == 503, where
            assert "error" in failure.message, where
        states = buyer.states()
        assert buyer.wallet.signed <= set(states), f"{where}: a signed one is in no book"
        assert len(states) == COUNT, where
        assert {one.nonce for one in seller.paid} <= {nonce for nonce, state in states.items() if state == "spent"}, (
            where
        )
        with Pool.open(home) as pool:
            counts = pool.counts("p")
            assert (counts.signed, counts.spent, counts.ready) == (COUNT, 2, COUNT - 2), where
            assert pool.worst_case_loss_atomic("p") == (COUNT - 2) * PRICE_ATOMIC, where
        if writes.count < number:
            break
    else:
        raise AssertionError("one buyer wrote more often than can be")
    assert mattered > 10, "no write mattered"

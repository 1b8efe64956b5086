"""The seller's ledger against a model: claims, work, settlements and deaths of processes in any order."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contracts.address import Address, parse_address
from contracts.errors import (
    ExposureExceeded,
    InsufficientFunds,
    PaymentReplayed,
    RequestInProgress,
)
from contracts.lifecycle import MoneyEvent
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import Offer
from contracts.schemes.authorization import Authorization
from contracts.storage.presence import FilePresence
from seller import books
from seller.claims import Claim, Replay
from seller.ledger import Ledger
from seller.policy import Caps, Mode
from seller.spool import Beginning
from seller.verify import VerifiedPayment

T = TypeVar("T")

PRICE = 10
TOKEN = parse_address("0x" + "11" * 20)
OFFER = Offer("exact", Network(31337), Asset(TOKEN, "USDC", "2", 6, "USDC"), PRICE, parse_address("0x" + "22" * 20), 60)
CAPS = Caps(per_payer_atomic=PRICE, total_atomic=PRICE + PRICE // 2)
WALLET = 6 * PRICE
NOW_S = 1_800_000_000
ANSWER = Beginning(200, [(b"content-type", b"text/plain")], b"goods", whole=True)
PAYERS = [Address(bytes([number]) * 20) for number in (1, 2)]
SETTINGS: list[Literal["auto", "before", "after", "async"]] = ["auto", "before", "after", "async"]


@dataclass
class Held:
    """A claim some process works on, as the model knows it."""

    process: int
    claim: Claim
    key: tuple[int, int]


class LedgerMachine(RuleBasedStateMachine):
    """Two processes on one store; a payment is a payer and a number, a request one of two digests."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.url = f"sqlite:///{self.folder.name}/seller.db"
        self.processes = [self.start() for _ in range(2)]
        # The model. A key is bound to the first digest that began work; delivered once; paid once.
        self.held: list[Held] = []
        self.ids: dict[tuple[int, int], int] = {}
        self.seen: dict[tuple[int, int], int] = {}
        self.delivered: set[tuple[int, int]] = set()
        self.settled: set[tuple[int, int]] = set()
        self.on_credit: set[tuple[int, int]] = set()
        self.lost: set[tuple[int, int]] = set()

    def start(self) -> Ledger:
        return Ledger(self.url, 31337, TOKEN)

    def teardown(self) -> None:
        for ledger in self.processes:
            ledger.close()
        self.loop.close()
        self.folder.cleanup()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def balance_of(self, payer: int) -> int:
        return WALLET - PRICE * sum(key[0] == payer for key in self.settled)

    @rule(
        process=st.integers(0, 1),
        payer=st.integers(0, 1),
        number=st.integers(0, 3),
        digest=st.integers(0, 1),
        setting=st.sampled_from(SETTINGS),
    )
    def reserve(
        self, process: int, payer: int, number: int, digest: int, setting: Literal["auto", "before", "after", "async"]
    ) -> None:
        key = payer, number
        authorization = Authorization(PAYERS[payer], OFFER.pay_to, PRICE, 0, NOW_S + 10_000, bytes([number]) * 32)
        reserving = self.processes[process].reserve(
            VerifiedPayment(authorization, bytes(65), OFFER, 2),
            bytes([digest]) * 32,
            "POST /x",
            setting=setting,
            caps=CAPS,
            balance_atomic=lambda _: self.balance_of(payer),
            since_block=0,
            now_s=NOW_S,
        )
        busy = {held.key for held in self.held}
        try:
            claim = self.run(reserving)
        except RequestInProgress:
            assert key in busy
        except PaymentReplayed:
            assert key in self.seen
        except (ExposureExceeded, InsufficientFunds):
            assert key not in self.delivered
        else:
            if isinstance(claim, Replay):
                assert key in self.delivered
                assert self.seen[key] == digest, "a kept answer for another request"
                return
            assert key not in busy, "two requests hold one payment"
            assert key not in self.delivered, "a payment buys twice"
            assert claim.credit == (key in self.settled)
            assert key not in self.settled or self.seen[key] == digest, "paid for another request"
            self.ids[key], self.seen[key] = claim.id, digest
            self.on_credit.discard(key)
            if claim.mode is Mode.ASYNC and not claim.credit:
                self.on_credit.add(key)
            self.held.append(Held(process, claim, key))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ending=st.sampled_from(["serve", "serve", "give up", "pay and fail"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        ledger, claim = self.processes[held.process], held.claim
        if ending == "give up" or (ending == "pay and fail" and claim.mode is Mode.ASYNC):
            self.run(ledger.give_up(claim, "failed"))
            self.on_credit.discard(held.key)
            return
        if claim.mode is Mode.ASYNC and not claim.credit:
            self.run(ledger.owe(claim, ANSWER))
        else:
            if not claim.credit:
                self.run(ledger.begin(claim))
                self.run(ledger.owe(claim))
                self.move(ledger, held.key, MoneyEvent.CHAIN_PAID)
                self.settled.add(held.key)
            if ending == "pay and fail":
                self.run(ledger.give_up(claim, "failed"))
                return
            self.run(ledger.delivered(claim, ANSWER))
        self.delivered.add(held.key)

    @precondition(lambda self: self.on_credit & self.delivered)
    @rule(data=st.data(), paid=st.booleans())
    def settle(self, data: st.DataObject, paid: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.on_credit & self.delivered)))
        self.on_credit.discard(key)
        self.move(self.processes[0], key, MoneyEvent.CHAIN_PAID if paid else MoneyEvent.HOPELESS)
        (self.settled if paid else self.lost).add(key)

    @rule(process=st.integers(0, 1))
    def die(self, process: int) -> None:
        """A process is killed; another one starts and takes up what it left."""
        abandon(self.processes[process])
        self.processes[process] = self.start()
        for held in [held for held in self.held if held.process == process]:
            self.held.remove(held)
            self.on_credit.discard(held.key)

    @invariant()
    def the_books_are_the_sums_of_what_happened(self) -> None:
        sums = self.processes[0].sums()
        assert sums == self.processes[1].sums()
        assert sums.payments == self.counted()
        on_its_way = {held.key for held in self.held if not held.claim.credit} | self.on_credit
        assert sums.earned_atomic == PRICE * len(self.settled)
        assert sums.lost_atomic == PRICE * len(self.lost)
        assert sums.outstanding_atomic == PRICE * len(on_its_way)
        assert sums.exposure_atomic == PRICE * len(self.on_credit) <= CAPS.total_atomic
        for payer in range(2):
            owed = [key for key in self.on_credit if key[0] == payer]
            assert PRICE * len(owed) <= CAPS.per_payer_atomic

    def counted(self) -> dict[str, int]:
        """Return how many rows there are by state, the slow way."""
        query = "SELECT money, count(*) FROM payments GROUP BY money"
        rows = self.processes[0].database.read(lambda connection: connection.execute(query).fetchall())
        return {row[0]: row[1] for row in rows}

    def move(self, ledger: Ledger, key: tuple[int, int], event: MoneyEvent) -> None:
        payment_id = self.ids[key]
        ledger.database.transact(
            lambda connection: books.move(connection, payment_id, event, NOW_S * 1000, transaction_hash="0x1")
        )


def abandon(ledger: Ledger) -> None:
    """Let go of a process's lock as the kernel does for a dead one, without a word to the store."""
    assert isinstance(ledger.owner, FilePresence)
    os.close(ledger.owner._lock)
    ledger.database.close()


LedgerMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedgerMachine = LedgerMachine.TestCase

"""The seller's ledger against a model, by usage: streams noted, charged, given up and cut off in any order."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contracts.address import address_text, parse_address
from contracts.errors import ExposureExceeded, StoreUnavailable
from contracts.lifecycle import MoneyEvent
from contracts.money import Asset
from contracts.networks import Network
from contracts.offers import PERMIT2, Offer
from contracts.schemes.authorization import Authorization
from seller import books
from seller.claims import Claim
from seller.ledger import Ledger
from seller.policy import Caps
from seller.spool import Beginning
from seller.verify import VerifiedPayment
from tests.attacks.test_ledger_model import NOW_S, PAYERS, TOKEN, abandon

T = TypeVar("T")

CEILING = 10
FACILITATOR = parse_address("0x" + "33" * 20)
OFFER = Offer(
    "upto",
    Network(31337),
    Asset(TOKEN, "USDC", "2", 6, "USDC"),
    CEILING,
    parse_address("0x" + "22" * 20),
    60,
    method=PERMIT2,
    extra={"facilitatorAddress": address_text(FACILITATOR)},
)
CAPS = Caps(per_payer_atomic=3 * CEILING, total_atomic=4 * CEILING)
BEGINNING = Beginning(200, [(b"content-type", b"text/event-stream")], b"data: 1\n\n", whole=False)
CHARGES = st.integers(0, CEILING)


@dataclass
class Stream:
    """An answer that passes, or is about to; `noted` is None before its first byte."""

    process: int
    claim: Claim
    noted: int | None = None


class MeteredMachine(RuleBasedStateMachine):
    """Two processes on one store. Every payment is new; each has one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.url = f"sqlite:///{self.folder.name}/seller.db"
        self.processes = [Ledger(self.url, 31337, TOKEN) for _ in range(2)]
        self.number = 0
        self.streams: list[Stream] = []
        self.due: dict[int, int] = {}
        self.earned = 0

    def teardown(self) -> None:
        for ledger in self.processes:
            ledger.close()
        self.loop.close()
        self.folder.cleanup()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @rule(process=st.integers(0, 1), payer=st.integers(0, 1))
    def begin(self, process: int, payer: int) -> None:
        self.number += 1
        nonce = self.number.to_bytes(32, "big")
        authorization = Authorization(PAYERS[payer], OFFER.pay_to, CEILING, 0, NOW_S + 10_000, nonce, FACILITATOR)
        reserving = self.processes[process].reserve(
            VerifiedPayment(authorization, bytes(65), OFFER, 2),
            bytes(32),
            "POST /x",
            setting="async",
            caps=CAPS,
            balance_atomic=lambda _: 10**9,
            since_block=0,
            now_s=NOW_S,
        )
        try:
            claim = self.run(reserving)
        except ExposureExceeded:
            return
        assert isinstance(claim, Claim)
        self.streams.append(Stream(process, claim))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), charge=CHARGES)
    def pass_on(self, data: st.DataObject, charge: int) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        ledger = self.processes[stream.process]
        if stream.noted is None:
            self.run(ledger.deliver_metered(stream.claim, BEGINNING, charge))
        else:
            self.run(ledger.meter(stream.claim, charge))
        stream.noted = charge

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), charge=CHARGES)
    def end(self, data: st.DataObject, charge: int) -> None:
        stream = self.streams.pop(data.draw(st.integers(0, len(self.streams) - 1)))
        ledger = self.processes[stream.process]
        if stream.noted is None:
            self.run(ledger.give_up(stream.claim, "failed"))
            return
        self.run(ledger.charge(stream.claim, charge))
        self.charged(stream, charge)
        # What comes late changes nothing.
        self.run(ledger.charge(stream.claim, CEILING))
        self.run(ledger.give_up(stream.claim, "cancelled"))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def give_up_what_has_begun_to_leave(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.streams))
        if stream.noted is not None:
            self.run(self.processes[stream.process].give_up(stream.claim, "cancelled"))

    @rule(process=st.integers(0, 1))
    def die(self, process: int) -> None:
        """A process is killed; another one starts and takes up what it left."""
        abandon(self.processes[process])
        self.processes[process] = Ledger(self.url, 31337, TOKEN)
        for stream in [stream for stream in self.streams if stream.process == process]:
            self.streams.remove(stream)
            if stream.noted is not None:
                self.charged(stream, stream.noted)
            # A process that was taken for dead and is not, finds that its claim is over.
            try:
                self.run(self.processes[process].meter(stream.claim, CEILING))
            except StoreUnavailable:
                pass
            else:
                raise AssertionError("a claim that was taken over is noted for")

    @precondition(lambda self: self.due)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        payment_id = data.draw(st.sampled_from(sorted(self.due)))
        self.earned += self.due.pop(payment_id)
        self.processes[0].database.transact(
            lambda connection: books.move(
                connection, payment_id, MoneyEvent.CHAIN_PAID, NOW_S * 1000, transaction_hash="0x1"
            )
        )

    @invariant()
    def the_ceiling_counts_until_the_charge_is_known_and_then_only_the_charge(self) -> None:
        sums = self.processes[0].sums()
        assert sums == self.processes[1].sums()
        on_its_way = CEILING * len(self.streams) + sum(self.due.values())
        assert (sums.earned_atomic, sums.lost_atomic) == (self.earned, 0)
        assert sums.outstanding_atomic == sums.exposure_atomic == on_its_way <= CAPS.total_atomic

    def charged(self, stream: Stream, charge: int) -> None:
        if charge:
            self.due[stream.claim.id] = charge


MeteredMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMeteredMachine = MeteredMachine.TestCase

"""The pool against a model: whatever happens in whatever order, nothing is lost, freed or used for two requests."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from buyer.audit import audit_pool
from buyer.budgets import remove_budget, set_budget
from buyer.home import Home
from buyer.pool import Claim, Counts, Pool, Spender
from contracts.errors import AuthorizationsExhausted, OutcomeUnknown, RequestAlreadyPaid, RequestInProgress
from contracts.offers import PERMIT2
from contracts.storage import Connection
from contracts.storage.presence import FilePresence
from tests.buyer.parts import NOW_S, add_purchase, add_signed, offer_of

WORKERS = 2
KEYS = st.sampled_from([f"request {number}" for number in range(6)])
WHO = st.integers(0, WORKERS - 1)


class PoolMachine(RuleBasedStateMachine):
    """Two workers on one pool, with top-ups, lost answers, repetitions, closings, kills and power losses.

    With `NEW`, a key that was never used is said to be one.
    """

    OFFER = offer_of()
    NEW = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.home = self.new_home(Path(self.folder.name) / "home")
        self.boot = 0
        self.pool = Pool.open(self.home, era="boot 0")
        self.purchase = add_purchase(self.pool, offer=self.OFFER)
        self.workers = [self.pool.spender(lease_size=3) for _ in range(WORKERS)]
        self.signed = 0
        self.used: set[str] = set()
        # The model: which request an authorization was shown to a seller for, and those that were answered.
        self.shown: dict[bytes, str] = {}
        self.spent: set[bytes] = set()
        self.claimed: list[tuple[int, Claim]] = []
        self.sent: list[tuple[int, Claim]] = []

    @staticmethod
    def new_home(folder: Path) -> Home:
        """Return a home whose pool is empty."""
        return Home.open(folder)

    def teardown(self) -> None:
        self.check()
        for worker in self.workers:
            abandon(worker)
        self.pool.close()
        self.folder.cleanup()

    @rule(count=st.integers(1, 5), days=st.integers(1, 3))
    def sign_more(self, count: int, days: int) -> None:
        add_signed(self.pool, self.purchase, count, valid_before_s=NOW_S + days * 86_400)
        self.signed += count

    @rule(who=WHO, key=KEYS)
    def claim(self, who: int, key: str) -> None:
        open_keys = {claim.request_key for _, claim in self.claimed + self.sent}
        is_new = self.NEW and key not in self.used
        self.used.add(key)
        try:
            claim = self.workers[who].claim(self.purchase, key, NOW_S, is_new=is_new)
        except AuthorizationsExhausted:
            assert self.pool.counts("p").ready == 0
        except (RequestInProgress, OutcomeUnknown):
            assert key in open_keys | set(self.shown.values())
        except RequestAlreadyPaid:
            assert key in {self.shown[nonce] for nonce in self.spent}
        else:
            assert key not in open_keys | set(self.shown.values())
            assert claim.authorization.nonce not in self.shown
            self.claimed.append((who, claim))

    @rule(who=WHO, key=KEYS)
    def repeat(self, who: int, key: str) -> None:
        try:
            claim = self.workers[who].reopen(key, NOW_S)
        except RequestInProgress:
            assert key in {claim.request_key for _, claim in self.claimed + self.sent}
            return
        if claim is not None:
            assert self.shown[claim.authorization.nonce] == key
            assert claim.again
            assert claim.spent is (claim.authorization.nonce in self.spent)
            if not claim.spent:
                self.sent.append((who, claim))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def send_or_abort(self, data: st.DataObject) -> None:
        who, claim = self.claimed.pop(data.draw(st.integers(0, len(self.claimed) - 1)))
        if data.draw(st.booleans()):
            self.workers[who].sent(claim)
            self.sent.append((who, claim))
        else:
            self.workers[who].abort(claim)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), ending=st.sampled_from(["served", "lost", "never left"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        who, claim = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        nonce, worker = claim.authorization.nonce, self.workers[who]
        if ending == "served":
            worker.served(claim, status=200, receipt=None, latency_ms=1)
            self._show(claim)
            self.spent.add(nonce)
        elif ending == "lost":
            worker.lost(claim, status=None, reason="lost")
            self._show(claim)
        else:
            worker.never_left(claim)

    @rule(who=WHO, kill=st.booleans())
    def restart(self, who: int, kill: bool) -> None:
        if kill:
            abandon(self.workers[who])
            Pool.open(self.home, era=f"boot {self.boot}").close()
        else:
            self.workers[who].close()
        self.workers[who] = self.pool.spender(lease_size=3)
        for other, claim in self.sent:
            if other == who:
                self._show(claim)
        self._forget(who)

    @rule()
    def lose_power(self) -> None:
        """The machine goes down: another boot finds the store, and nobody closed anything."""
        for worker in self.workers:
            abandon(worker)
        self.pool.close()
        self.boot += 1
        self.pool = Pool.open(self.home, era=f"boot {self.boot}")
        self.workers = [self.pool.spender(lease_size=3) for _ in range(WORKERS)]
        for _, claim in self.claimed + self.sent:
            self._show(claim)
        for who in range(WORKERS):
            self._forget(who)

    @invariant()
    def nothing_is_lost_and_nothing_comes_back(self) -> None:
        if not self.NEW:
            self.check()

    def check(self) -> None:
        counts = self.pool.counts("p")
        assert counts.signed == self.signed
        assert counts.spent == len(self.spent)
        assert counts.claimed == len(self.claimed)
        assert counts.sent == sum(not claim.again for _, claim in self.sent)
        seen = set(self.shown) | {claim.authorization.nonce for _, claim in self.claimed + self.sent}
        assert counts.ready + counts.unknown + len(self.spent) + counts.claimed + counts.sent == self.signed
        assert counts.ready <= self.signed - len(seen)
        # A power loss alone takes what nobody has seen.
        assert self.boot or counts.ready == self.signed - len(seen)
        assert self.pool.worst_case_loss_atomic("p") == 1000 * (self.signed - counts.spent)

    def _show(self, claim: Claim) -> None:
        """Note that a seller may have seen it, and check that it never was for another request."""
        assert self.shown.setdefault(claim.authorization.nonce, claim.request_key) == claim.request_key

    def _forget(self, who: int) -> None:
        self.claimed = [(other, claim) for other, claim in self.claimed if other != who]
        self.sent = [(other, claim) for other, claim in self.sent if other != who]


class Permit2Machine(PoolMachine):
    """The same over Permit2, whose nonces are bits in words of the purchase's own."""

    OFFER = replace(offer_of(), method=PERMIT2)

    @rule(count=st.integers(200, 300))
    def sign_more_than_a_word_holds(self, count: int) -> None:
        self.sign_more(count, 2)

    @invariant()
    def every_word_is_filled_bit_by_bit(self) -> None:
        query = "SELECT nonce FROM authorizations"
        nonces = self.pool.database.read(lambda c: [bytes(row["nonce"]) for row in c.execute(query)])
        words: dict[bytes, list[int]] = {}
        for nonce in nonces:
            words.setdefault(nonce[:31], []).append(nonce[31])
        assert all(sorted(bits) == list(range(len(bits))) for bits in words.values())
        assert len(words) == -(-len(nonces) // 256)


def abandon(worker: Spender) -> None:
    """Let go of a worker's lock as the kernel does for a dead process, without a word to the store."""
    presence = worker._slots.worker._presence
    if isinstance(presence, FilePresence):
        os.close(presence._lock)
    else:
        presence.close()


class TailMachine(PoolMachine):
    """The same where most requests are new, so that their steps are written down beside the books.

    A look enters these into the books, so looks are steps of their own.
    """

    NEW = True

    @initialize()
    def sign_enough(self) -> None:
        self.sign_more(40, 2)

    @rule(who=WHO, number=st.integers(0, 10**9))
    def claim_for_a_new_request(self, who: int, number: int) -> None:
        self.claim(who, f"new request {number}")

    @rule()
    def look(self) -> None:
        self.check()

    @rule(calls_in=st.booleans())
    def let_another_process_look(self, calls_in: bool) -> None:
        with Pool.open(self.home, era=f"boot {self.boot}") as other:
            if calls_in:
                other.drain(self.purchase)
            assert other.counts("p") == self.pool.counts("p")
            assert all(finding.ok and not finding.notes for finding in audit_pool(other))

    @rule(lift=st.booleans())
    def limit_what_is_spent(self, lift: bool) -> None:
        """Have a budget that is never reached: what is taken of it is counted all the same."""

        def change(connection: Connection) -> None:
            set_budget(connection, "purchase:p", max_per_day=None, max_total=10**60, now_s=NOW_S)
            if lift:
                remove_budget(connection, "purchase:p")

        with Pool.open(self.home, era=f"boot {self.boot}") as other:
            other.database.transact(change)


PoolMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPoolMachine = PoolMachine.TestCase
TailMachine.TestCase.settings = settings(
    max_examples=12, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTailMachine = TailMachine.TestCase
Permit2Machine.TestCase.settings = settings(
    max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPermit2Machine = Permit2Machine.TestCase


def test_counts_know_what_was_signed() -> None:
    assert Counts(1, 2, 3, 4, 5, 6, 7).signed == 28
    assert Counts(1, 2, 3, 4, 5, 6, 7).live == 10

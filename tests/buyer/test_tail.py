"""The tail: what a worker writes down beside the books is in them for whoever looks, and nobody's claim is lost."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buyer import steps
from buyer.audit import audit_pool
from buyer.budgets import parse_units, read_budgets, set_budget
from buyer.home import Home
from buyer.pool import Claim, Counts, Pool, Spender
from buyer.posting import post
from buyer.purchase import Purchase
from buyer.tail import Entry, Tail, call_in, read_tail
from contracts.errors import AuthorizationsExhausted, BudgetExceeded, RequestInProgress, StoreUnavailable
from contracts.storage import Connection
from tests.buyer.parts import NOW_S, add_purchase, add_signed, open_pool
from tests.buyer.test_pool_model import abandon

LEASE = 4


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    opened, _ = open_pool(home, 40)
    with opened:
        yield opened


@pytest.fixture
def purchase(pool: Pool) -> Purchase:
    return pool.purchase("p")


@pytest.fixture
def spender(pool: Pool) -> Iterator[Spender]:
    with closing(pool.spender(lease_size=LEASE)) as opened:
        yield opened


def claim_new(spender: Spender, purchase: Purchase, key: str, **options: Any) -> Claim:
    """Claim for a request that was never asked before."""
    claim = spender.claim(purchase, key, NOW_S, is_new=True, **options)
    assert claim.tail is not None
    return claim


def tails(pool: Pool) -> list[Path]:
    return sorted((pool.home.path / "generation").glob("*.tail"))


def raw_states(pool: Pool) -> set[str]:
    """Return the states that the books themselves have, without what is beside them."""
    query = "SELECT DISTINCT state FROM authorizations"
    return pool.database.read(lambda connection: {row["state"] for row in connection.execute(query)}, bare=True)


def test_steps_are_beside_the_books_until_somebody_looks(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    claims = [claim_new(spender, purchase, f"r{number}", route="/v1/chat/completions") for number in range(3)]
    for claim in claims:
        spender.sent(claim)
    spender.served(claims[0], status=200, receipt=None, latency_ms=5)
    assert raw_states(pool) == {"ready"}
    with Pool.open(pool.home) as other:
        assert other.counts("p") == pool.counts("p") == Counts(ready=37, sent=2, spent=1)
        (receipt,) = [each for each in other.receipts() if each.state == "spent"]
        assert (receipt.request_key, receipt.route, receipt.status) == ("r0", "/v1/chat/completions", 200)
        assert all(finding.ok for finding in audit_pool(other))


def test_what_an_undone_transaction_had_entered_is_entered_by_the_next(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    claims = [claim_new(spender, purchase, f"r{number}") for number in range(2)]

    def enter(connection: Connection) -> None:
        assert pool.tails is not None
        pool.tails.enter(connection)

    def go_on_meanwhile_and_fail(connection: Connection) -> None:
        for claim in claims:
            spender.sent(claim)
            enter(connection)
        raise LookupError

    with pytest.raises(LookupError):
        pool.database.transact(go_on_meanwhile_and_fail, bare=True)
    assert raw_states(pool) == {"ready"}
    pool.database.transact(enter, bare=True)
    assert pool.counts("p").sent == 2


def test_a_look_leaves_the_lease_alone_and_a_change_calls_it_in(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    first = claim_new(spender, purchase, "first")
    with Pool.open(pool.home) as other:
        other.counts("p")
        second = claim_new(spender, purchase, "second")
        assert second.tail is first.tail
        add_signed(other, purchase, 1)
        third = spender.claim(purchase, "third", NOW_S, is_new=True)
        spender.sent(first)
        assert other.counts("p") == Counts(ready=38, claimed=2, sent=1)
    assert third.authorization.nonce not in {first.authorization.nonce, second.authorization.nonce}
    assert claim_new(spender, purchase, "fourth").tail is not first.tail
    assert len(tails(pool)) == 1


def test_a_purchase_that_another_process_removes_is_claimed_from_no_more(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    claim_new(spender, purchase, "before")
    with Pool.open(pool.home) as other:
        other.remove(purchase)
    with pytest.raises(AuthorizationsExhausted):
        spender.claim(purchase, "after", NOW_S, is_new=True)


def test_a_budget_that_another_process_sets_holds_from_the_next_claim_on(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    for number in range(2):
        spender.sent(claim_new(spender, purchase, f"before {number}"))
    with Pool.open(pool.home) as other:
        units = parse_units("0.003", "--max-total")
        other.database.transact(
            lambda connection: set_budget(connection, "all", max_per_day=None, max_total=units, now_s=NOW_S)
        )
    spender.claim(purchase, "the third", NOW_S, is_new=True)
    with pytest.raises(BudgetExceeded):
        spender.claim(purchase, "the fourth", NOW_S, is_new=True)
    (budget,) = pool.database.read(read_budgets)
    assert budget.taken_total == units
    assert all(finding.ok and not finding.notes for finding in audit_pool(pool))


def test_a_budget_of_one_client_key_is_kept_in_the_books_and_others_stay_beside_them(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    units = parse_units("0.001", "--max-total")
    pool.database.transact(
        lambda connection: set_budget(connection, "key:alice", max_per_day=None, max_total=units, now_s=NOW_S)
    )
    spender.claim(purchase, "a", NOW_S, client_key="alice", is_new=True)
    with pytest.raises(BudgetExceeded):
        spender.claim(purchase, "b", NOW_S, client_key="alice", is_new=True)
    claim_new(spender, purchase, "c", client_key="bob")


def test_a_request_is_found_in_another_workers_tail(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    spender.sent(claim_new(spender, purchase, "request"))
    with closing(pool.spender()) as other:
        with pytest.raises(RequestInProgress):
            other.reopen("request", NOW_S)
        with pytest.raises(RequestInProgress):
            other.claim(purchase, "request", NOW_S)


def test_what_a_dead_worker_had_sent_is_found_by_its_content_and_presented_again(
    pool: Pool, purchase: Purchase
) -> None:
    dying = pool.spender()
    claim = claim_new(dying, purchase, "request", fingerprint="same body")
    dying.sent(claim)
    abandon(dying)
    with closing(pool.spender()) as survivor:
        assert survivor.unanswered("same body", NOW_S) == "request"
        again = survivor.reopen("request", NOW_S)
        assert again is not None
        assert again.authorization == claim.authorization
    assert tails(pool) == []


def test_an_ended_call_is_found_at_once_by_another_worker(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    claim = claim_new(spender, purchase, "request", fingerprint="same body")
    spender.sent(claim)
    with closing(pool.spender()) as other:
        assert other.unanswered("same body", NOW_S) is None, "it is under way"
        spender.lost(claim, status=503, reason="busy")
        assert other.unanswered("same body", NOW_S) == "request"


def test_an_answer_that_a_repetition_got_at_last_is_over_for_everybody(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    claim = claim_new(spender, purchase, "request", fingerprint="same body")
    spender.sent(claim)
    spender.served(claim, status=200, receipt=None, latency_ms=1, delivered_s=None)
    spender.undelivered(claim)
    with closing(pool.spender()) as other:
        assert spender.unanswered("same body", NOW_S) == other.unanswered("same body", NOW_S) == "request"
        spender.delivered(claim, NOW_S, to_repetition=True)
        assert spender.unanswered("same body", NOW_S) is other.unanswered("same body", NOW_S) is None


def test_what_a_worker_holds_without_its_tail_waits_for_the_chain(pool: Pool, purchase: Purchase) -> None:
    worker = pool.spender(lease_size=LEASE)
    worker.sent(claim_new(worker, purchase, "request"))
    for path in tails(pool):
        path.unlink()
    with Pool.open(pool.home) as other:
        assert other.counts("p") == Counts(ready=36, unknown=LEASE)
    # The worker goes on under another name, with another lease.
    held = [worker.claim(purchase, f"held {number}", NOW_S, is_new=True) for number in range(LEASE)]
    fresh = [claim for claim in held if claim.tail is not None and claim.tail.path.exists()]
    assert pool.counts("p") == Counts(ready=36 - len(fresh), unknown=LEASE, claimed=len(fresh))
    worker.close()


def test_a_worker_whose_tail_is_gone_leases_under_another_name(pool: Pool, purchase: Purchase) -> None:
    worker = pool.spender(lease_size=LEASE)
    lost = [claim_new(worker, purchase, f"lost {number}") for number in range(LEASE)]
    for path in tails(pool):
        path.unlink()
    claim = claim_new(worker, purchase, "next")
    assert claim.authorization.nonce not in {each.authorization.nonce for each in lost}
    assert pool.counts("p") == Counts(ready=35, unknown=LEASE, claimed=1)
    with pytest.raises(StoreUnavailable, match="no longer held"):
        worker.sent(lost[0])
    assert all(finding.ok for finding in audit_pool(pool))
    worker.close()


class FailingDisk:
    """A stand-in for a disk that is full or broken: the write `left` from now fails, written or in part or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        self.left = -1
        self._how, self._write = how, os.write
        monkeypatch.setattr("buyer.tail.os.write", self._maybe)

    def _maybe(self, file: int, data: bytes) -> int:
        self.left -= 1
        if self.left != 0:
            return self._write(file, data)
        if self._how == "written":
            self._write(file, data)
        if self._how == "in part":
            return self._write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("how", ["not written", "in part", "written"])
@pytest.mark.parametrize("step", ["claim", "sent", "served"])
def test_a_step_that_the_disk_does_not_take_is_refused_or_made_up_for(
    pool: Pool, purchase: Purchase, spender: Spender, monkeypatch: pytest.MonkeyPatch, how: str, step: str
) -> None:
    disk = FailingDisk(monkeypatch, how)
    before = claim_new(spender, purchase, "before")
    spender.sent(before)
    disk.left = {"claim": 1, "sent": 2, "served": 3}[step]

    def pay() -> None:
        claim = claim_new(spender, purchase, "request")
        spender.sent(claim)
        spender.served(claim, status=200, receipt=None, latency_ms=1)

    with pytest.raises(StoreUnavailable):
        pay()
    with Pool.open(pool.home) as other:
        assert other.counts("p").signed == 40
    spender.served(before, status=200, receipt=None, latency_ms=1)
    spender.sent(spender.claim(purchase, "another", NOW_S, is_new=True))
    assert pool.counts("p") == (
        Counts(ready=37, sent=1, spent=2) if step == "served" else Counts(ready=38, sent=1, spent=1)
    )
    claims = [spender.claim(purchase, f"r{number}", NOW_S, is_new=True) for number in range(pool.counts("p").ready)]
    assert len({each.authorization.nonce for each in claims}) == len(claims)
    with pytest.raises(AuthorizationsExhausted):
        spender.claim(purchase, "one too many", NOW_S, is_new=True)
    assert all(finding.ok for finding in audit_pool(pool))


def test_leases_grow_while_they_do_not_last_and_are_small_again_after_a_quiet_while(home: Home) -> None:
    pool, purchase = open_pool(home, 200)
    with pool, closing(pool.spender(lease_size=LEASE)) as worker:

        def lease_after(claims: int, now_s: int) -> int:
            """Return how many the worker holds of its lease once it had to take another."""
            for number in range(claims):
                worker.claim(purchase, f"{now_s} {number} {claims}", now_s, is_new=True)
            query = "SELECT count(*) FROM authorizations WHERE state = 'ready' AND lease IS NOT NULL"
            held: int = pool.database.read(lambda connection: connection.execute(query).fetchone()[0], bare=True)
            return held

        assert lease_after(1, NOW_S) == LEASE
        assert [lease_after(claims, NOW_S) for claims in (4, 8, 16)] == [8, 16, 16], "at most four times the first"
        assert lease_after(16, NOW_S + 60) == LEASE


def test_a_long_tail_is_followed_by_a_new_one(
    pool: Pool, purchase: Purchase, spender: Spender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buyer.slots.TAIL_BYTES_MAX", 100)
    claims = [claim_new(spender, purchase, f"r{number}") for number in range(40)]
    for claim in claims:
        spender.sent(claim)
        spender.served(claim, status=200, receipt=None, latency_ms=1)
    assert pool.counts("p") == Counts(spent=40)
    assert len(tails(pool)) == 1
    assert tails(pool)[0].stat().st_size < 10_000


def test_a_tail_is_for_its_owner_alone_and_goes_with_the_worker(pool: Pool, purchase: Purchase) -> None:
    worker = pool.spender()
    claim_new(worker, purchase, "request")
    (path,) = tails(pool)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    worker.close()
    assert tails(pool) == []
    assert pool.counts("p") == Counts(ready=40)


def test_threads_of_two_workers_and_a_third_process_that_calls_in_share_a_pool_to_the_last(pool: Pool) -> None:
    purchase = add_purchase(pool, "q")
    add_signed(pool, purchase, 200)
    spent: list[Claim] = []

    def work(spender: Spender, who: int) -> None:
        with suppress(AuthorizationsExhausted):
            for number in itertools.count():
                claim = spender.claim(purchase, f"{who} {number}", NOW_S, is_new=number % 5 > 0)
                spender.sent(claim)
                spender.served(claim, status=200, receipt=None, latency_ms=1)
                spent.append(claim)

    with closing(pool.spender(lease_size=8)) as one, Pool.open(pool.home) as elsewhere:
        with closing(elsewhere.spender(lease_size=8)) as two, ThreadPoolExecutor(7) as threads:
            works = [threads.submit(work, (one, two)[who % 2], who) for who in range(6)]
            while not all(each.done() for each in works):
                with Pool.open(pool.home) as third:
                    third.drain(third.purchase("p"))
            for each in works:
                each.result()
    assert len({claim.authorization.nonce for claim in spent}) == len(spent) == 200
    assert pool.counts("q") == Counts(spent=200)


# What may follow what, for one authorization: the steps a spender writes down.
FOLLOWS = {
    None: ["claim"],
    "claim": ["send", "abort"],
    "send": ["never left", "served", "serving"],
    "abort": ["claim"],
    "never left": ["claim"],
    "serving": ["delivered"],
}
VALUES: dict[str, dict[str, Any]] = {
    "served": {"status": 200, "latency_ms": 3, "transaction_hash": "0x1", "charged_atomic": None, "delivered_s": 9},
    "serving": {"status": 201, "latency_ms": 4, "transaction_hash": None, "charged_atomic": "7"},
    "delivered": {"now": NOW_S + 1},
}


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_posting_leaves_the_books_as_if_each_step_had_been_written_there(
    pool: Pool, purchase: Purchase, spender: Spender, data: st.DataObject
) -> None:
    worker_id, ids = spender._slots.worker.id, [1, 2, 3]
    entries, last = [], dict.fromkeys(ids)
    for number in range(data.draw(st.integers(1, 20))):
        row_id = data.draw(st.sampled_from(ids))
        step = data.draw(st.sampled_from(FOLLOWS.get(last[row_id], [None])))
        if step is not None:
            last[row_id] = step
            claimed = {"request_key": f"k{number}", "fingerprint": None, "route": "/r", "digest": b"d" * 32}
            values = {**claimed, "client_key": None, "now": NOW_S} if step == "claim" else VALUES.get(step, {})
            entries.append(Entry(step, row_id, values))
    cut = data.draw(st.integers(0, len(entries)))

    def posted(connection: Connection) -> tuple[list[tuple[Any, ...]], int]:
        sent = post(connection, worker_id, entries[:cut]) + post(connection, worker_id, entries[cut:])
        return rows(connection, ids), sent

    def one_by_one(connection: Connection) -> tuple[list[tuple[Any, ...]], int]:
        for entry in entries:
            values = {"id": entry.row_id, "lease": worker_id, "scopes": (), "units": 0, "now": NOW_S, **entry.values}
            if entry.step == steps.CLAIM:
                assert steps.take_claim(connection, values, is_new=True)
            else:
                assert steps.run_step(connection, entry.step, values)
        return rows(connection, ids), sum(entry.step == steps.SEND for entry in entries)

    assert undone(pool, worker_id, ids, posted) == undone(pool, worker_id, ids, one_by_one)


def rows(connection: Connection, ids: list[int]) -> list[tuple[Any, ...]]:
    return [tuple(connection.execute("SELECT * FROM authorizations WHERE id = ?", (id_,)).fetchone()) for id_ in ids]


def undone(pool: Pool, worker_id: str, ids: list[int], work: Any) -> Any:
    """Return what `work` finds in a transaction that is rolled back, in which the worker holds `ids`."""
    found = []

    def leave(connection: Connection) -> None:
        connection.executemany("UPDATE authorizations SET lease = ? WHERE id = ?", [(worker_id, id_) for id_ in ids])
        found.append(work(connection))
        raise LookupError

    with pytest.raises(LookupError):
        pool.database.transact(leave, bare=True)
    return found[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "0.tail"


def test_what_is_not_whole_ends_a_tail(file: Path) -> None:
    tail = Tail(file)
    assert tail.append("claim", 1, {"now": 1})
    assert tail.append("send", 1, {})
    whole = file.read_bytes()
    (claim, send), end = read_tail(file, 0).entries, len(whole)
    assert (claim.step, claim.row_id, claim.values, send.step) == ("claim", 1, {"now": 1}, "send")
    for length in range(end):
        file.write_bytes(whole[:length])
        assert read_tail(file, 0).entries == ([claim] if length >= read_tail(file, 0).end > 0 else [])
    for place in range(end):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert len(read_tail(file, 0).entries) < 2
    tail.close()


def test_what_follows_the_last_word_does_not_count(file: Path) -> None:
    tail = Tail(file)
    assert tail.append("claim", 1, {})
    call_in(file)
    assert not tail.append("send", 1, {})
    assert not tail.append("abort", 1, {})
    unposted = read_tail(file, 0)
    assert ([entry.step for entry in unposted.entries], unposted.is_over) == (["claim"], True)
    tail.close()

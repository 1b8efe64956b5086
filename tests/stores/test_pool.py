"""The buyer's pool on PostgreSQL: the tests that `tests/buyer` runs on SQLite, and what only a server can do to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from buyer.home import STORE_VARIABLE, Home
from buyer.lease import Worker
from buyer.pool import Counts, Pool
from buyer.purchase import Purchase
from contracts.errors import AuthorizationsExhausted, StoreUnavailable
from contracts.storage import Life, advisory
from tests.buyer import test_pool, test_pool_crash
from tests.buyer.parts import NOW_S, add_purchase, add_signed
from tests.buyer.test_pool_model import PoolMachine
from tests.patience import eventually
from tests.stores.parts import Forgetful, Place, suite_of
from tests.stores.servers import Server

FILES_ONLY = {
    "test_the_home_and_everything_in_it_are_for_the_owner_alone",
    "test_after_a_power_loss_everything_a_worker_held_waits_for_the_chain",
    "test_a_copied_store_without_its_lock_files_trusts_no_lease",
}

globals().update(suite_of(test_pool, test_pool_crash, without=FILES_ONLY))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Server) -> Home:
    """A home whose pool is in a database of its own; processes started by the test find it, too."""
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(STORE_VARIABLE, postgres.new_database())
    return Home.open()


def test_the_pool_and_its_model_agree(postgres: Server) -> None:
    class Machine(PoolMachine):
        @staticmethod
        def new_home(folder: Path) -> Home:
            return Home.open(folder, store=postgres.new_database())

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=8, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def terminate(url: str, what: str) -> None:
    """End the connections of a database that `what` selects from pg_stat_activity, as a broken network would."""
    backends = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute(f"SELECT pg_terminate_backend(pid, 10000) FROM {backends} AND {what}").fetchall()


SIGNS_OF_LIFE = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1)"


def test_a_worker_that_is_no_longer_seen_stops_claiming_what_another_has_taken_over(
    pool: Pool, purchase: Purchase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "STORE_PRESENCE_S", 3600)
    add_signed(pool, purchase, 4)
    unseen = pool.spender(lease_size=4)
    first, second = (unseen.claim(purchase, f"request {number}", NOW_S) for number in range(2))
    unseen.sent(second)
    assert pool.home.store is not None
    terminate(pool.home.store, SIGNS_OF_LIFE)

    with Pool.open(pool.home) as other:
        assert other.counts("p") == Counts(ready=3, unknown=1)
        heir = other.spender(lease_size=4)
        taken = {heir.claim(purchase, f"other {number}", NOW_S).authorization.nonce for number in range(3)}
        assert first.authorization.nonce in taken
        with pytest.raises(StoreUnavailable, match="no longer held"):
            unseen.sent(first)
        unseen.served(second, status=200, receipt=None, latency_ms=1)
        assert other.counts("p") == Counts(claimed=3, unknown=1), "only the chain can tell now"
        with pytest.raises(AuthorizationsExhausted):
            unseen.claim(purchase, "one more", NOW_S)
        add_signed(pool, purchase, 1)
        unseen.sent(unseen.claim(purchase, "one more", NOW_S))
        assert other.counts("p") == Counts(claimed=3, sent=1, unknown=1)
        heir.close()
    unseen.close()
    assert pool.counts("p") == Counts(ready=3, unknown=2)


def test_a_worker_that_is_taken_for_dead_while_it_takes_a_lease_gets_none(
    pool: Pool, purchase: Purchase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "STORE_PRESENCE_S", 3600)
    spender = pool.spender()
    assert pool.home.store is not None
    terminate(pool.home.store, SIGNS_OF_LIFE)
    Pool.open(pool.home).close()
    add_signed(pool, purchase, 2)
    with monkeypatch.context() as moment:
        moment.setattr(Worker, "holds", lambda _self, _era: True)  # as it was a moment before
        with pytest.raises(StoreUnavailable, match="taken for dead"):
            spender.claim(purchase, "request", NOW_S)
    spender.claim(purchase, "request", NOW_S)
    assert pool.counts("p") == Counts(ready=1, claimed=1)
    spender.close()


def test_a_worker_that_lost_its_connection_and_was_not_missed_goes_on(
    pool: Pool, purchase: Purchase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advisory, "STORE_PRESENCE_S", 3600)
    add_signed(pool, purchase, 8)
    spender = pool.spender(lease_size=2)
    claim = spender.claim(purchase, "request", NOW_S)
    assert pool.home.store is not None
    terminate(pool.home.store, "TRUE")
    spender.sent(claim)
    spender.served(claim, status=200, receipt=None, latency_ms=1)
    for number in range(7):
        spender.sent(spender.claim(purchase, f"next {number}", NOW_S))
    assert pool.counts("p") == Counts(sent=7, spent=1)
    spender.close()


def test_after_a_failover_what_a_worker_held_waits_for_the_chain(pool: Pool, purchase: Purchase) -> None:
    """Another timeline may lack the last commits: the lease is no longer spent from, and nothing of it returns."""
    add_signed(pool, purchase, 8)
    eras = ["server 1-timeline 1"]
    with Pool(pool.home, pool.database) as switched:
        switched.era = lambda: eras[0]  # type: ignore[method-assign]
        spender = switched.spender(lease_size=2)
        spender.abort(spender.claim(purchase, "to take a lease", NOW_S))
        eras[0] = "server 2-timeline 2"
        # It still has its lease in hand, and each step in it is checked by the store that is there now.
        held = [spender.claim(purchase, f"held {number}", NOW_S) for number in range(2)]
        fresh = spender.claim(purchase, "fresh", NOW_S)
        assert fresh.authorization.nonce not in {claim.authorization.nonce for claim in held}
        counts = switched.counts("p")
        assert (counts.unknown, counts.claimed) == (2, 1)
        spender.close()


@pytest.fixture
def shared(place: Place, tmp_path: Path) -> Iterator[tuple[Pool, Purchase]]:
    """A pool on either store."""
    with Pool.open(Home.open(tmp_path / "home", store=place.url("buyer"))) as opened:
        yield opened, add_purchase(opened)


def test_a_claim_of_which_nobody_knows_whether_it_was_written_can_be_made_again(
    shared: tuple[Pool, Purchase], doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, purchase = shared
    add_signed(pool, purchase, 2)
    spender = pool.spender()
    spender.abort(spender.claim(purchase, "to take a lease", NOW_S))
    forgetful = Forgetful(pool.database, monkeypatch)
    forgetful.mode = doubt
    with pytest.raises(StoreUnavailable):
        spender.claim(purchase, "request", NOW_S)
    assert spender.reopen("request", NOW_S) is None
    spender.sent(spender.claim(purchase, "request", NOW_S))
    assert pool.counts("p") == Counts(ready=1, sent=1)
    spender.claim(purchase, "another", NOW_S)
    assert pool.counts("p") == Counts(claimed=1, sent=1)
    spender.close()


def test_a_sending_of_which_nobody_knows_whether_it_was_written_does_not_happen(
    shared: tuple[Pool, Purchase], doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, purchase = shared
    add_signed(pool, purchase, 1)
    spender = pool.spender()
    claim = spender.claim(purchase, "request", NOW_S)
    forgetful = Forgetful(pool.database, monkeypatch)
    forgetful.mode = doubt
    with pytest.raises(StoreUnavailable):
        spender.sent(claim)
    assert spender.reopen("request", NOW_S) is None
    assert pool.counts("p") == Counts(ready=1)
    spender.sent(spender.claim(purchase, "another", NOW_S))
    spender.close()


def test_an_outcome_of_which_nobody_knows_whether_it_was_written_is_written_before_the_next_step(
    shared: tuple[Pool, Purchase], doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, purchase = shared
    add_signed(pool, purchase, 3)
    spender = pool.spender()
    served, lost = (spender.claim(purchase, f"request {number}", NOW_S) for number in range(2))
    endings: list[Callable[[], None]] = [
        lambda: spender.served(served, status=200, receipt=None, latency_ms=1),
        lambda: spender.lost(lost, status=503, reason="busy"),
    ]
    forgetful = Forgetful(pool.database, monkeypatch)
    for claim, end in zip((served, lost), endings, strict=True):
        spender.sent(claim)
        forgetful.mode = doubt
        with pytest.raises(StoreUnavailable):
            end()
    assert spender.reopen("no such request", NOW_S) is None
    assert pool.counts("p") == Counts(ready=1, spent=1, unknown=1)
    spender.close()


def test_two_buyers_machines_never_sign_for_one_purchase_at_once(shared: tuple[Pool, Purchase]) -> None:
    pool, _ = shared
    with Pool.open(pool.home) as other:
        with pool.exclusively("sign-p"):
            with pytest.raises(Exception, match="another farebox process"), other.exclusively("sign-p"):
                pass
        with other.exclusively("sign-p"):
            pass


def test_a_spender_that_is_closed_is_not_seen_any_more(shared: tuple[Pool, Purchase]) -> None:
    pool, _ = shared
    spender = pool.spender()
    name = spender._slots.worker.id
    assert pool.database.life_of(name) is Life.ALIVE
    spender.close()
    eventually(lambda: pool.database.life_of(name) is not Life.ALIVE)

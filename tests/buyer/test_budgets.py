"""Reserved and spent together never pass a limit, and what a claim did not cost comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from typer.testing import CliRunner

from buyer.audit import audit_pool
from buyer.budgets import Budget, check_scope, parse_units, read_budgets, set_budget
from buyer.home import Home
from buyer.pool import Counts, Pool, Spender
from buyer.purchase import Purchase
from contracts.errors import BudgetExceeded, UsageError
from gateway.cli import app
from tests.buyer.parts import ASSET, NOW_S, add_purchase, add_signed, offer_of

DAY_S = 86_400
PRICE = "0.001"


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


@pytest.fixture
def purchase(pool: Pool) -> Purchase:
    made = add_purchase(pool)
    add_signed(pool, made, 120, valid_before_s=NOW_S + 10 * DAY_S)
    return made


@pytest.fixture
def spender(pool: Pool) -> Iterator[Spender]:
    with closing(pool.spender()) as opened:
        yield opened


def limit(pool: Pool, scope: str, *, day: str | None = None, total: str | None = None, now_s: int = NOW_S) -> None:
    per_day, ever = parse_units(day, "--max-per-day"), parse_units(total, "--max-total")
    pool.database.transact(
        lambda connection: set_budget(connection, scope, max_per_day=per_day, max_total=ever, now_s=now_s)
    )


def budget(pool: Pool) -> Budget:
    (only,) = pool.database.read(read_budgets)
    return only


def calls(count: int) -> int:
    """Return what `count` calls cost, in units."""
    return count * (parse_units(PRICE, "price") or 0)


def agree(pool: Pool) -> bool:
    """Tell whether the counters equal the sums over the rows, exactly."""
    return all(finding.ok and not finding.notes for finding in audit_pool(pool))


@pytest.mark.parametrize("scope", ["all", "purchase:p", "seller:http://127.0.0.1:8402", "key:alice"])
@pytest.mark.parametrize("kind", ["day", "total"])
def test_a_hundred_requests_at_once_never_pass_a_limit(pool: Pool, purchase: Purchase, scope: str, kind: str) -> None:
    limit(pool, scope, day="0.0375" if kind == "day" else None, total="0.0375" if kind == "total" else None)
    with closing(pool.spender()) as one, closing(pool.spender()) as other, ThreadPoolExecutor(20) as threads:

        def call(number: int) -> bool:
            worker = (one, other)[number % 2]
            try:
                claim = worker.claim(purchase, f"r{number}", NOW_S, client_key="alice")
            except BudgetExceeded:
                return False
            assert budget(pool).taken_total <= calls(37)
            worker.sent(claim)
            worker.served(claim, status=200, receipt=None, latency_ms=1)
            return True

        assert sum(threads.map(call, range(100))) == 37
    assert pool.counts("p").spent == 37
    assert budget(pool).taken_total == calls(37)
    assert agree(pool)


@pytest.mark.parametrize("amount", ["$1.00", "1.00 USDC", "1000 atomic", "1,00", "-1", ""])
def test_a_limit_is_a_number_of_tokens_and_nothing_else(amount: str) -> None:
    with pytest.raises(UsageError, match=r'--max-total: expected a number of tokens, as "0\.50"'):
        parse_units(amount, "--max-total")


def test_a_refusal_names_the_limit_and_when_it_resets_and_takes_nothing(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    limit(pool, "key:alice", day="0.0015", total="5")
    spender.claim(purchase, "a", NOW_S, client_key="alice")
    with pytest.raises(BudgetExceeded) as refused:
        spender.claim(purchase, "b", NOW_S, client_key="alice")
    assert "key:alice: 0.0015 a day, of which 0.001 are taken" in refused.value.message
    assert "it resets at 2027-01-16T00:00:00Z" in refused.value.message
    assert pool.counts("p").claimed == 1
    spender.claim(purchase, "b", NOW_S, client_key="bob")
    assert agree(pool)


def test_a_new_day_opens_the_days_limit_and_not_the_total(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    limit(pool, "purchase:p", day="0.001", total="0.002")
    spender.claim(purchase, "a", NOW_S)
    spender.claim(purchase, "b", NOW_S + DAY_S)
    with pytest.raises(BudgetExceeded, match="it never resets"):
        spender.claim(purchase, "c", NOW_S + 2 * DAY_S)


def test_a_clock_that_goes_back_over_midnight_opens_no_day_again(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    limit(pool, "all", day="0.001")
    spender.claim(purchase, "a", NOW_S)
    spender.claim(purchase, "b", NOW_S + DAY_S)
    with pytest.raises(BudgetExceeded):
        spender.claim(purchase, "c", NOW_S)


@pytest.mark.parametrize("ending", ["abort", "never_left"])
def test_what_never_left_is_given_back(pool: Pool, purchase: Purchase, spender: Spender, ending: str) -> None:
    limit(pool, "all", day="0.001", total="0.001")
    for key in "abc":
        claim = spender.claim(purchase, key, NOW_S, client_key="alice")
        if ending == "never_left":
            spender.sent(claim)
        getattr(spender, ending)(claim)
    assert (budget(pool).taken_total, budget(pool).taken_day) == (0, 0)
    assert agree(pool)


def test_an_open_outcome_stays_taken(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    limit(pool, "all", total="0.001")
    claim = spender.claim(purchase, "a", NOW_S)
    spender.sent(claim)
    spender.lost(claim, status=None, reason="timeout")
    with pytest.raises(BudgetExceeded):
        spender.claim(purchase, "b", NOW_S)
    assert spender.reopen("a", NOW_S) is not None, "presenting it again costs nothing more"


def test_what_a_worker_that_ended_had_not_sent_is_given_back(pool: Pool, purchase: Purchase) -> None:
    limit(pool, "all", total="0.002")
    worker = pool.spender()
    worker.claim(purchase, "a", NOW_S)
    worker.sent(worker.claim(purchase, "b", NOW_S))
    worker.close()
    assert pool.counts("p") == Counts(ready=119, unknown=1)
    assert budget(pool).taken_total == calls(1)
    assert agree(pool)


def test_a_limit_set_late_counts_what_was_spent_before(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    for key in "ab":
        spender.claim(purchase, key, NOW_S, client_key="alice")
    limit(pool, "key:alice", total="0.002")
    with pytest.raises(BudgetExceeded):
        spender.claim(purchase, "c", NOW_S, client_key="alice")


def test_tokens_of_different_decimals_share_one_limit(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    fine = ASSET.__class__(bytes.fromhex("33" * 20), "EURC", "2", 18, "EURC")  # type: ignore[arg-type]
    other = add_purchase(pool, "fine", offer=offer_of(10**15, asset=fine))
    add_signed(pool, other, 5)
    limit(pool, "all", total="0.002")
    spender.claim(purchase, "a", NOW_S)
    spender.claim(other, "b", NOW_S)
    with pytest.raises(BudgetExceeded):
        spender.claim(other, "c", NOW_S)
    assert agree(pool)


@pytest.mark.parametrize("text", ["", "purchase:", "nonsense", "key", "seller:"])
def test_a_scope_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SCOPE"):
        check_scope(text)


def test_the_command_sets_lists_and_lifts_limits(home: Home) -> None:
    def farebox(*arguments: str, code: int = 0) -> dict[str, object]:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == code, done.output
        document: dict[str, object] = json.loads(done.stdout)
        return document

    farebox("budget", "set", "seller:http://127.0.0.1:8402/v1", "--max-per-day", "2.50")
    assert farebox("budget", "list")["budgets"] == [
        {
            "scope": "seller:http://127.0.0.1:8402",
            "max_per_day": "2.5",
            "max_total": None,
            "taken_today": "0",
            "taken_total": "0",
        }
    ]
    farebox("budget", "remove", "seller:http://127.0.0.1:8402")
    assert farebox("budget", "list")["budgets"] == []
    farebox("budget", "set", "all", "--max-total", "1,5", code=2)
    farebox("budget", "set", "all", code=2)

"""The pool as one process sees it."""

from __future__ import annotations

import stat
from collections.abc import Iterator

import pytest

from buyer.home import Home
from buyer.limits import ANSWER_LIFE_S, CLAIM_MARGIN_S
from buyer.pool import Counts, Pool, Spender
from buyer.purchase import Purchase
from contracts.errors import (
    AuthorizationsExhausted,
    ConfigInvalid,
    NameUnknown,
    OutcomeUnknown,
    RequestAlreadyPaid,
    RequestChanged,
    RequestInProgress,
    StoreUnavailable,
)
from contracts.wire import SettlementResponse
from tests.buyer.parts import NOW_S, add_purchase, add_signed, offer_of

TRANSACTION = "0x" + "ab" * 32


@pytest.fixture
def pool(home: Home) -> Iterator[Pool]:
    with Pool.open(home) as opened:
        yield opened


@pytest.fixture
def purchase(pool: Pool) -> Purchase:
    return add_purchase(pool)


@pytest.fixture
def spender(pool: Pool, purchase: Purchase) -> Iterator[Spender]:
    opened = pool.spender()
    yield opened
    opened.close()


def test_a_served_request_is_spent_and_has_a_receipt(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    add_signed(pool, purchase, 2)
    claim = spender.claim(purchase, "request", NOW_S, fingerprint="f", route="/v1/chat/completions")
    assert pool.counts("p") == Counts(ready=1, claimed=1)
    spender.sent(claim)
    assert pool.counts("p") == Counts(ready=1, sent=1)
    spender.served(claim, status=200, receipt=SettlementResponse(success=True, transaction=TRANSACTION), latency_ms=7)
    assert pool.counts("p") == Counts(ready=1, spent=1)
    (receipt,) = pool.receipts(name="p")
    assert receipt.receipt_id == claim.receipt_id
    assert (receipt.state, receipt.status, receipt.transaction, receipt.latency_ms) == ("spent", 200, TRANSACTION, 7)
    assert receipt.route == "/v1/chat/completions"


def test_a_receipt_keeps_no_word_of_the_seller_that_is_not_a_transaction_hash(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 1)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.served(claim, status=200, receipt=SettlementResponse(success=True, transaction="<script>"), latency_ms=1)
    assert pool.receipts()[0].transaction is None


def test_what_expires_soonest_is_spent_first(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    for days in (3, 1, 2):
        add_signed(pool, purchase, 1, valid_before_s=NOW_S + days * 86_400)
    order = [spender.claim(purchase, f"r{i}", NOW_S).authorization.valid_before_s for i in range(3)]
    assert order == sorted(order)


def test_an_authorization_too_near_its_end_is_never_handed_out(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    shortest_s = CLAIM_MARGIN_S + purchase.offer.max_timeout_s
    add_signed(pool, purchase, 1, valid_before_s=NOW_S + shortest_s - 1)
    (usable,) = add_signed(pool, purchase, 1, valid_before_s=NOW_S + shortest_s)
    assert spender.claim(purchase, "request", NOW_S).authorization == usable
    assert pool.counts("p") == Counts(claimed=1, expired=1)


def test_one_leased_in_time_is_not_handed_out_when_time_has_passed(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 8)
    spender.claim(purchase, "in time", NOW_S)
    with pytest.raises(AuthorizationsExhausted):
        spender.claim(purchase, "a day later", NOW_S + 86_400)
    assert pool.counts("p").expired == 7


def test_an_empty_pool_names_the_command_that_fills_it(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    with pytest.raises(AuthorizationsExhausted) as refused:
        spender.claim(purchase, "request", NOW_S)
    assert "farebox refill p" in refused.value.advice


def test_an_aborted_claim_and_one_without_connection_are_ready_again(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    (only,) = add_signed(pool, purchase, 1)
    spender.abort(spender.claim(purchase, "first", NOW_S))
    second = spender.claim(purchase, "second", NOW_S)
    spender.sent(second)
    spender.never_left(second)
    assert pool.counts("p") == Counts(ready=1)
    assert pool.receipts() == []
    assert spender.claim(purchase, "third", NOW_S).authorization == only


def test_a_lost_answer_leaves_the_authorization_unknown_for_every_other_request(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 1)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.lost(claim, status=503, reason="upstream busy")
    assert pool.counts("p") == Counts(unknown=1)
    with pytest.raises(AuthorizationsExhausted):
        spender.claim(purchase, "another", NOW_S)
    assert pool.receipts()[0].reason == "upstream busy"


def test_the_same_request_presents_the_same_authorization_again(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 2)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.lost(claim, status=None, reason="timeout")
    again = spender.reopen("request", NOW_S)
    assert again is not None
    assert again.authorization == claim.authorization
    assert again.headers() == claim.headers()
    assert pool.counts("p") == Counts(ready=1, unknown=1)
    with pytest.raises(RequestInProgress):
        spender.reopen("request", NOW_S)
    spender.sent(again)
    spender.served(again, status=200, receipt=None, latency_ms=1)
    assert pool.counts("p") == Counts(ready=1, spent=1)


def test_a_request_that_was_answered_is_never_paid_again_and_presented_only_for_its_answer(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 2)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.served(claim, status=200, receipt=None, latency_ms=1)
    with pytest.raises(RequestAlreadyPaid):
        spender.claim(purchase, "request", NOW_S)
    again = spender.reopen("request", NOW_S)
    assert again is not None
    assert (again.spent, again.headers()) == (True, claim.headers())
    for ending in (spender.never_left, spender.abort):
        ending(again)
    spender.lost(again, status=402, reason="no answer is kept")
    assert pool.counts("p") == Counts(ready=1, spent=1)


@pytest.mark.parametrize("ending", ["unknown", "spent"])
def test_an_authorization_is_never_presented_with_another_request(
    pool: Pool, purchase: Purchase, spender: Spender, ending: str
) -> None:
    add_signed(pool, purchase, 2)
    claim = spender.claim(purchase, "request", NOW_S, digest=b"\x01" * 32)
    spender.sent(claim)
    if ending == "spent":
        spender.served(claim, status=200, receipt=None, latency_ms=1)
    else:
        spender.lost(claim, status=None, reason="timeout")
    with pytest.raises(RequestChanged):
        spender.reopen("request", NOW_S, digest=b"\x02" * 32)
    assert spender.reopen("request", NOW_S, digest=b"\x01" * 32) is not None


def test_an_answer_that_reached_nobody_is_found_by_the_repetition_while_its_seller_may_have_it(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 2)
    claim = spender.claim(purchase, "request", NOW_S, fingerprint="same body")
    spender.sent(claim)
    spender.served(claim, status=200, receipt=None, latency_ms=1, delivered_s=None)
    assert spender.unanswered("same body", NOW_S) is None, "its client is being answered"
    spender.undelivered(claim)
    assert spender.unanswered("same body", NOW_S) == "request"
    assert spender.unanswered("same body", NOW_S + ANSWER_LIFE_S + 1) is None
    spender.delivered(claim, NOW_S)
    assert spender.unanswered("same body", NOW_S) is None


def test_the_answer_of_a_worker_that_died_is_found_by_another(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    add_signed(pool, purchase, 2)
    dying = pool.spender()
    claim = dying.claim(purchase, "request", NOW_S, fingerprint="same body")
    dying.sent(claim)
    dying.served(claim, status=200, receipt=None, latency_ms=1, delivered_s=None)
    assert spender.unanswered("same body", NOW_S) is None
    dying.close()
    assert spender.unanswered("same body", NOW_S) == "request"


@pytest.mark.parametrize("ending", ["abort", "never_left"])
def test_a_repetition_that_never_leaves_does_not_free_what_the_seller_has_seen(
    pool: Pool, purchase: Purchase, spender: Spender, ending: str
) -> None:
    add_signed(pool, purchase, 1)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.lost(claim, status=None, reason="timeout")
    again = spender.reopen("request", NOW_S)
    assert again is not None
    getattr(spender, ending)(again)
    assert pool.counts("p") == Counts(unknown=1)


def test_a_request_in_flight_is_not_paid_twice(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    add_signed(pool, purchase, 5)
    spender.sent(spender.claim(purchase, "request", NOW_S))
    with pytest.raises(RequestInProgress):
        spender.claim(purchase, "request", NOW_S)
    with pytest.raises(RequestInProgress):
        spender.reopen("request", NOW_S)
    assert pool.counts("p") == Counts(ready=4, sent=1)


def test_a_request_with_an_open_outcome_is_not_claimed_anew(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    add_signed(pool, purchase, 5)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.lost(claim, status=None, reason="timeout")
    with pytest.raises(OutcomeUnknown):
        spender.claim(purchase, "request", NOW_S)


def test_a_request_whose_authorization_became_too_old_waits_for_the_chain(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 5)
    claim = spender.claim(purchase, "request", NOW_S)
    spender.sent(claim)
    spender.lost(claim, status=None, reason="timeout")
    with pytest.raises(OutcomeUnknown, match="too old"):
        spender.reopen("request", NOW_S + 86_400)


def test_an_unanswered_request_is_found_by_its_fingerprint(pool: Pool, purchase: Purchase, spender: Spender) -> None:
    add_signed(pool, purchase, 2)
    claim = spender.claim(purchase, "request", NOW_S, fingerprint="same body")
    spender.sent(claim)
    assert spender.unanswered("same body", NOW_S) is None
    spender.lost(claim, status=None, reason="timeout")
    assert spender.unanswered("same body", NOW_S) == "request"
    assert spender.unanswered("another body", NOW_S) is None


def test_two_workers_share_a_small_pool_to_the_last_one(pool: Pool, purchase: Purchase) -> None:
    add_signed(pool, purchase, 10)
    one, other = pool.spender(), pool.spender()
    claims = []
    for number in range(5):
        claims.append(one.claim(purchase, f"one {number}", NOW_S))
        claims.append(other.claim(purchase, f"other {number}", NOW_S))
    assert len({claim.authorization.nonce for claim in claims}) == 10
    for worker in (one, other):
        with pytest.raises(AuthorizationsExhausted):
            worker.claim(purchase, "one too many", NOW_S)
    one.close()
    other.close()


def test_a_worker_alone_reaches_what_an_idle_one_has_leased(pool: Pool, purchase: Purchase) -> None:
    add_signed(pool, purchase, 40)
    idle, busy = pool.spender(), pool.spender()
    held = idle.claim(purchase, "idle", NOW_S)
    taken = {busy.claim(purchase, f"r{number}", NOW_S).authorization.nonce for number in range(39)}
    assert len(taken) == 39
    assert held.authorization.nonce not in taken
    with pytest.raises(AuthorizationsExhausted):
        idle.claim(purchase, "idle again", NOW_S)
    idle.close()
    busy.close()


def test_closing_gives_unclaimed_ones_back_and_makes_open_ones_unknown(pool: Pool, purchase: Purchase) -> None:
    add_signed(pool, purchase, 10)
    worker = pool.spender()
    worker.claim(purchase, "claimed", NOW_S)
    worker.sent(worker.claim(purchase, "sent", NOW_S))
    worker.close()
    assert pool.counts("p") == Counts(ready=9, unknown=1)
    assert pool.receipts()[0].request_key == "sent"


def test_nothing_of_a_removed_purchase_is_handed_out_and_its_name_is_free(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 20)
    spender.claim(purchase, "before", NOW_S)
    pool.remove(purchase)
    with pytest.raises(AuthorizationsExhausted):
        spender.claim(purchase, "after", NOW_S)
    with pytest.raises(NameUnknown):
        pool.purchase("p")
    assert pool.exposure_of(purchase) == 20_000
    assert add_purchase(pool).id != purchase.id


def test_a_drained_purchase_is_removed_when_nothing_of_it_can_be_spent(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 1)
    pool.drain(purchase)
    assert not pool.finish_drained(purchase)
    claim = spender.claim(purchase, "last", NOW_S)
    spender.sent(claim)
    spender.served(claim, status=200, receipt=None, latency_ms=1)
    assert pool.finish_drained(purchase)
    assert pool.purchases() == []


def test_exposure_is_summed_over_all_purchases_of_a_wallet(pool: Pool, purchase: Purchase) -> None:
    add_signed(pool, purchase, 3)
    other = add_purchase(pool, "dear", offer=offer_of(10**20))
    add_signed(pool, other, 2)
    offer = purchase.offer
    exposure = pool.payer_exposure_atomic(offer.network.chain_id, offer.asset.address, purchase.payer)
    assert exposure == 3_000 + 2 * 10**20


def test_the_home_and_everything_in_it_are_for_the_owner_alone(
    pool: Pool, purchase: Purchase, spender: Spender
) -> None:
    add_signed(pool, purchase, 1)
    spender.claim(purchase, "request", NOW_S)
    assert stat.S_IMODE(pool.home.path.stat().st_mode) == 0o700
    for path in pool.home.path.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_home_that_others_could_enter_is_closed_to_them(home: Home) -> None:
    home.path.chmod(0o755)
    Home.open(home.path)
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700


def test_a_file_in_the_place_of_the_home_is_named(home: Home) -> None:
    path = home.path / "file"
    path.write_text("")
    with pytest.raises(ConfigInvalid, match="not a folder"):
        Home.open(path)


def test_a_claim_that_is_no_longer_ours_is_not_sent(pool: Pool, purchase: Purchase) -> None:
    add_signed(pool, purchase, 1)
    worker = pool.spender()
    claim = worker.claim(purchase, "request", NOW_S)
    worker.close()
    with pytest.raises(StoreUnavailable):
        worker.sent(claim)

"""The payment flow, driven by hand: every class of answer, and what the pool then holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from buyer.flow import (
    Incoming,
    Lost,
    NeverLeft,
    Outcome,
    Outgoing,
    PaymentFlow,
    advance,
    pay_when_asked,
    pay_with_pool,
    pay_with_signer,
)
from buyer.funds import SignerFunds
from buyer.home import Home
from buyer.policy import SpendPolicy
from buyer.pool import Counts, Pool, Spender
from buyer.purchase import Purchase
from buyer.signers import KeySigner
from contracts.address import parse_address
from contracts.errors import (
    AuthorizationsExhausted,
    BudgetExceeded,
    FareboxError,
    NotForSale,
    OutcomeUnknown,
    PaymentRefused,
    PriceAboveCap,
    RequestChanged,
    RequestInProgress,
    SellerUnreachable,
    TermsChanged,
    TermsNotAllowed,
)
from contracts.headers import PAYMENT_RESPONSE, PAYMENT_SIGNATURE, encode_header
from contracts.offers import Offer
from contracts.wire import SettlementResponse
from tests.buyer.parts import NOW_S, add_signed, answer, asks, offer_of, open_pool, receipt

URL = "http://127.0.0.1:8402/v1/chat/completions"
REQUEST = Outgoing("POST", URL, [("content-type", "application/json")], b'{"model": "m"}')


def clock() -> float:
    return float(NOW_S)


@pytest.fixture
def street(home: Home) -> Iterator[tuple[Pool, Purchase, Spender]]:
    pool, purchase = open_pool(home, 3)
    spender = pool.spender()
    yield pool, purchase, spender
    spender.close()
    pool.close()


Street = tuple[Pool, Purchase, Spender]


def begin(street: Street, key: str = "request") -> tuple[PaymentFlow, Outgoing]:
    flow = pay_with_pool(REQUEST, street[2], street[1], key, clock)
    step = advance(flow, None)
    assert isinstance(step, Outgoing)
    return flow, step


def end(flow: PaymentFlow, happened: Incoming | NeverLeft | Lost) -> Outcome:
    outcome = advance(flow, happened)
    assert isinstance(outcome, Outcome)
    return outcome


def test_the_payment_goes_with_the_first_request_and_is_on_disk_before(street: Street) -> None:
    flow, step = begin(street)
    assert step.paid
    assert (step.method, step.url, step.body) == (REQUEST.method, REQUEST.url, REQUEST.body)
    assert PAYMENT_SIGNATURE in dict(step.headers)
    assert street[0].counts("p") == Counts(ready=2, sent=1)
    outcome = end(flow, answer(200, {PAYMENT_RESPONSE: receipt()}))
    assert outcome.kind == "served"
    assert outcome.receipt is not None
    assert outcome.receipt.success
    assert street[0].counts("p") == Counts(ready=2, spent=1)


def test_payment_headers_of_the_caller_are_not_passed_on(street: Street) -> None:
    request = Outgoing("POST", URL, [("Payment-Signature", "theirs"), ("x-payment", "theirs"), ("accept", "*/*")])
    step = advance(pay_with_pool(request, street[2], street[1], "request", clock), None)
    assert isinstance(step, Outgoing)
    assert "theirs" not in dict(step.headers).values()
    assert ("accept", "*/*") in step.headers


@pytest.mark.parametrize("header", ["not base64", encode_header(SettlementResponse(success=False))[:-3]])
def test_a_broken_receipt_does_not_undo_a_served_request(street: Street, header: str) -> None:
    flow, _ = begin(street)
    outcome = end(flow, answer(200, {PAYMENT_RESPONSE: header}))
    assert (outcome.kind, outcome.receipt) == ("served", None)
    assert street[0].counts("p").spent == 1


def test_without_a_connection_nothing_is_spent(street: Street) -> None:
    flow, _ = begin(street)
    outcome = end(flow, NeverLeft("refused"))
    assert (outcome.kind, outcome.claim) == ("refused", None)
    assert isinstance(outcome.error, SellerUnreachable)
    assert street[0].counts("p") == Counts(ready=3)


def test_a_lost_answer_is_unknown_and_the_repetition_pays_with_the_same(street: Street) -> None:
    flow, first = begin(street)
    outcome = end(flow, Lost("reset"))
    assert (outcome.kind, type(outcome.error)) == ("unknown", OutcomeUnknown)
    flow, second = begin(street)
    assert dict(second.headers)[PAYMENT_SIGNATURE] == dict(first.headers)[PAYMENT_SIGNATURE]
    assert end(flow, answer(200)).kind == "served"
    assert street[0].counts("p") == Counts(ready=2, spent=1)


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 429, 500, 502, 503, 504])
def test_an_error_after_payment_is_passed_on_and_stays_unknown(street: Street, status: int) -> None:
    flow, _ = begin(street)
    outcome = end(flow, answer(status, {"retry-after": "3"}, b"busy"))
    assert outcome.kind == "unknown"
    assert outcome.incoming is not None
    assert outcome.incoming.body == b"busy"
    assert street[0].counts("p") == Counts(ready=2, unknown=1)
    assert street[0].receipts()[0].status == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_paid_request_follows_no_redirect(street: Street, status: int) -> None:
    flow, _ = begin(street)
    outcome = end(flow, answer(status, {"location": "https://elsewhere.example/"}))
    assert outcome.kind == "unknown"
    assert "redirect" in str(outcome.error)
    assert street[0].counts("p") == Counts(ready=2, unknown=1)


@pytest.mark.parametrize(
    ("now_offered", "word"),
    [
        (offer_of(2000), "price was 0.001 USDC and is 0.002 USDC"),
        (offer_of(pay_to=parse_address("0x" + "99" * 20)), "payee"),
        (offer_of(chain_id=8453), "network"),
    ],
)
def test_changed_terms_are_told_in_words_and_no_more_is_paid(street: Street, now_offered: Offer, word: str) -> None:
    flow, _ = begin(street)
    outcome = end(flow, asks(now_offered))
    assert (outcome.kind, type(outcome.error)) == ("refused", TermsChanged)
    assert word in str(outcome.error)
    assert outcome.claim is not None
    assert street[0].counts("p") == Counts(ready=2, unknown=1)


def test_a_refused_payment_is_never_used_for_another_request(street: Street) -> None:
    flow, _ = begin(street)
    outcome = end(flow, asks(offer_of(), error="payment_expired"))
    assert (outcome.kind, type(outcome.error)) == ("refused", PaymentRefused)
    assert "payment_expired" in str(outcome.error)
    assert street[0].counts("p") == Counts(ready=2, unknown=1)


def test_a_settlement_that_is_pending_is_unknown_not_refused(street: Street) -> None:
    pending = SettlementResponse(success=False, transaction="0x" + "cd" * 32, error_reason="settlement_pending")
    flow, _ = begin(street)
    outcome = end(flow, answer(402, {PAYMENT_RESPONSE: encode_header(pending)}))
    assert (outcome.kind, type(outcome.error)) == ("unknown", OutcomeUnknown)


def test_a_402_of_nonsense_is_a_refusal_not_a_crash(street: Street) -> None:
    flow, _ = begin(street)
    outcome = end(flow, answer(402, {}, b"\xff\xfe{{{{"))
    assert (outcome.kind, type(outcome.error)) == ("refused", PaymentRefused)


def test_a_driver_that_gives_up_leaves_the_authorization_unknown(street: Street) -> None:
    flow, _ = begin(street)
    flow.close()
    assert street[0].counts("p") == Counts(ready=2, unknown=1)


def test_another_origin_is_never_paid(street: Street) -> None:
    for url in ("http://127.0.0.1:8403/v1/chat/completions", "https://127.0.0.1:8402/", "http://localhost:8402/"):
        outcome = advance(pay_with_pool(Outgoing("POST", url), street[2], street[1], "request", clock), None)
        assert isinstance(outcome, Outcome)
        assert isinstance(outcome.error, TermsNotAllowed)
    assert street[0].counts("p") == Counts(ready=3)


def test_an_empty_pool_and_a_request_in_flight_are_outcomes(street: Street) -> None:
    flow, _ = begin(street)
    twin = advance(pay_with_pool(REQUEST, street[2], street[1], "request", clock), None)
    assert isinstance(twin, Outcome)
    assert isinstance(twin.error, RequestInProgress)
    for key in ("second", "third"):
        end(begin(street, key)[0], answer(200))
    last = advance(pay_with_pool(REQUEST, street[2], street[1], "fourth", clock), None)
    assert isinstance(last, Outcome)
    assert isinstance(last.error, AuthorizationsExhausted)
    flow.close()


def test_what_may_be_free_is_asked_for_without_payment_first(street: Street) -> None:
    paid = pay_with_pool(REQUEST, street[2], street[1], "request", clock)
    flow = pay_when_asked(REQUEST, paid)
    step = advance(flow, None)
    assert isinstance(step, Outgoing)
    assert not step.paid
    assert end(flow, answer(200)).kind == "free"
    assert street[0].counts("p") == Counts(ready=3)


def test_what_turns_out_to_cost_is_paid_on_the_second_request(street: Street) -> None:
    flow = pay_when_asked(REQUEST, pay_with_pool(REQUEST, street[2], street[1], "request", clock))
    advance(flow, None)
    step = advance(flow, asks(offer_of()))
    assert isinstance(step, Outgoing)
    assert step.paid
    assert end(flow, answer(200)).kind == "served"


SIGNER = KeySigner(bytes(range(1, 33)))
OFFER = offer_of()


def funds(**policy: object) -> SignerFunds:
    return SignerFunds(SIGNER, SpendPolicy(**{"max_price": "0.001", **policy}))  # type: ignore[arg-type]


def handshake(
    wallet: SignerFunds, asked: Incoming, request: Outgoing = REQUEST
) -> tuple[PaymentFlow, Outgoing | Outcome]:
    flow = pay_with_signer(request, wallet, clock)
    step = advance(flow, None)
    assert isinstance(step, Outgoing)
    assert not step.paid
    return flow, advance(flow, asked)


def test_a_signer_pays_what_the_policy_allows() -> None:
    wallet = funds()
    flow, step = handshake(wallet, asks(OFFER))
    assert isinstance(step, Outgoing)
    assert step.paid
    assert end(flow, answer(200, {PAYMENT_RESPONSE: receipt()})).kind == "served"
    assert wallet.signed_atomic(OFFER) == 1000


@pytest.mark.parametrize(
    ("asked", "policy", "error"),
    [
        (asks(offer_of(1001)), {}, PriceAboveCap),
        (asks(offer_of()), {"allowed_hosts": ["seller.example"]}, TermsNotAllowed),
        (asks(offer_of()), {"allowed_networks": ["base"]}, TermsNotAllowed),
        (asks(offer_of()), {"allowed_assets": ["0x" + "33" * 20]}, TermsNotAllowed),
        (asks(offer_of(chain_id=8453)), {}, TermsNotAllowed),
        (asks(offer_of(max_timeout_s=365 * 86_400)), {}, TermsNotAllowed),
        (asks(offer_of()), {"max_total": "0.0009"}, BudgetExceeded),
        (answer(402, {}, b"pay me"), {}, NotForSale),
    ],
)
def test_a_signer_signs_nothing_outside_its_policy(
    asked: Incoming, policy: dict[str, object], error: type[FareboxError]
) -> None:
    wallet = funds(**policy)
    _, outcome = handshake(wallet, asked)
    assert isinstance(outcome, Outcome)
    assert (outcome.kind, type(outcome.error)) == ("refused", error)
    assert wallet.signed_atomic(OFFER) == 0


@pytest.mark.parametrize("cap", [{}, {"max_price": None, "max_price_atomic": 1000, "max_total": "1"}])
def test_a_cap_in_whole_tokens_bounds_no_token_whose_decimals_nobody_knows(cap: dict[str, object]) -> None:
    unknown = offer_of(chain_id=8453)
    token = unknown.asset.address_text
    _, outcome = handshake(funds(allowed_assets=[token], **cap), asks(unknown))
    assert isinstance(outcome, Outcome)
    assert isinstance(outcome.error, TermsNotAllowed)
    assert "decimals" in outcome.error.message
    in_atomic = funds(allowed_assets=[token], max_price=None, max_price_atomic=1000)
    _, step = handshake(in_atomic, asks(unknown))
    assert isinstance(step, Outgoing)
    assert step.paid


def test_the_total_budget_is_counted_over_calls() -> None:
    wallet = funds(max_total="0.002")
    for _ in range(2):
        flow, _ = handshake(wallet, asks(OFFER))
        end(flow, answer(200))
    _, outcome = handshake(wallet, asks(OFFER))
    assert isinstance(outcome, Outcome)
    assert isinstance(outcome.error, BudgetExceeded)


def test_payments_whose_answer_was_lost_make_room_for_others_once_nobody_can_cash_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("buyer.funds.OPEN_PAYMENTS_MAX", 2)
    wallet = funds()
    for body in (b"one", b"two"):
        flow, _ = handshake(wallet, asks(OFFER), replace(REQUEST, body=body))
        assert end(flow, Lost("reset")).kind == "unknown"
    three = replace(REQUEST, body=b"three")
    _, outcome = handshake(wallet, asks(OFFER), three)
    assert isinstance(outcome, Outcome)
    assert isinstance(outcome.error, BudgetExceeded)
    assert "wait until" in outcome.error.advice
    a_day_later = pay_with_signer(three, wallet, lambda: NOW_S + 86_400.0)
    advance(a_day_later, None)
    step = advance(a_day_later, asks(OFFER))
    assert isinstance(step, Outgoing)
    assert step.paid


def test_a_signer_signs_once_for_a_request_whose_answer_was_lost() -> None:
    wallet = funds()
    flow, first = handshake(wallet, asks(OFFER))
    assert isinstance(first, Outgoing)
    assert end(flow, Lost("reset")).kind == "unknown"
    flow = pay_with_signer(REQUEST, wallet, clock)
    again = advance(flow, None)
    assert isinstance(again, Outgoing)
    assert again.headers == first.headers
    end(flow, answer(200))
    assert wallet.signed_atomic(OFFER) == 1000


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, url="https://elsewhere.example/v1/chat/completions"),
        replace(REQUEST, body=b'{"model":"other"}'),
        replace(REQUEST, method="PUT"),
    ],
)
def test_an_open_payment_is_shown_for_no_other_request_of_the_same_id(other: Outgoing) -> None:
    wallet = funds()
    name = [("x-farebox-request-id", "mine")]
    flow, first = handshake(wallet, asks(OFFER), replace(REQUEST, headers=name))
    assert isinstance(first, Outgoing)
    end(flow, Lost("reset"))
    with pytest.raises(RequestChanged):
        advance(pay_with_signer(replace(other, headers=name), wallet, clock), None)
    again = advance(pay_with_signer(replace(REQUEST, headers=name), wallet, clock), None)
    assert isinstance(again, Outgoing)
    assert again.headers == first.headers


def test_an_equal_request_after_an_answer_is_a_new_purchase() -> None:
    wallet = funds()
    for _ in range(2):
        flow, _ = handshake(wallet, asks(OFFER))
        end(flow, answer(200))
    assert wallet.signed_atomic(OFFER) == 2000


def test_free_answers_cost_a_signer_nothing() -> None:
    wallet = funds()
    _, outcome = handshake(wallet, answer(200))
    assert isinstance(outcome, Outcome)
    assert outcome.kind == "free"
    assert wallet.signed_atomic(OFFER) == 0


def test_a_pool_that_is_topped_up_serves_on(street: Street) -> None:
    for number in range(3):
        end(begin(street, f"r{number}")[0], answer(200))
    add_signed(street[0], street[1], 1)
    assert end(begin(street, "after")[0], answer(200)).kind == "served"

"""The tables of lives: what they promise, walked by every path."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.lifecycle import (
    AUTHORIZATION_TRANSITIONS,
    MONEY_TRANSITIONS,
    AuthorizationEvent,
    AuthorizationState,
    Money,
    MoneyEvent,
    advance,
    advance_money,
)

S = TypeVar("S", AuthorizationState, Money)

FINAL = {AuthorizationState.SPENT, AuthorizationState.EXPIRED, AuthorizationState.CANCELLED}
# An event by which a seller may have seen the authorization.
REVEALING = {AuthorizationEvent.LOST, AuthorizationEvent.SERVED}


def reachable(start: S) -> set[S]:
    steps: list[tuple[Enum, Enum]] = [(before, after) for (before, _), after in AUTHORIZATION_TRANSITIONS.items()]
    steps += [(before, after) for (before, _), after in MONEY_TRANSITIONS.items()]
    found = {start}
    while more := {cast("S", after) for before, after in steps if before in found} - found:
        found |= more
    return found


def test_every_state_can_be_reached_and_every_event_can_happen() -> None:
    assert reachable(AuthorizationState.READY) == set(AuthorizationState)
    assert reachable(Money.RESERVED) == set(Money)
    assert {event for _, event in AUTHORIZATION_TRANSITIONS} == set(AuthorizationEvent)
    assert {event for _, event in MONEY_TRANSITIONS} == set(MoneyEvent)


def test_spent_expired_and_cancelled_are_the_end() -> None:
    assert {state for state in AuthorizationState if reachable(state) == {state}} == FINAL


def test_settled_money_is_taken_back_by_the_chain_alone() -> None:
    leaving = {event for before, event in MONEY_TRANSITIONS if before is Money.SETTLED}
    assert leaving == {MoneyEvent.CHAIN_REORGANISED}


def test_every_authorization_can_still_come_to_an_end() -> None:
    for state in AuthorizationState:
        assert reachable(state) & FINAL


def test_only_its_own_request_or_the_chain_moves_what_a_seller_may_hold() -> None:
    assert {
        event for (state, event), _ in AUTHORIZATION_TRANSITIONS.items() if state is AuthorizationState.UNKNOWN
    } == {
        AuthorizationEvent.PRESENT_AGAIN,
        AuthorizationEvent.SERVED,
        AuthorizationEvent.LOST,
        AuthorizationEvent.POWER_LOST,
        AuthorizationEvent.CHAIN_USED,
        AuthorizationEvent.CHAIN_CANCELLED,
        AuthorizationEvent.CHAIN_UNUSED_PAST_TIME,
    }


def test_only_what_never_left_becomes_ready_again() -> None:
    back = {key for key, after in AUTHORIZATION_TRANSITIONS.items() if after is AuthorizationState.READY}
    assert back == {
        (AuthorizationState.CLAIMED, AuthorizationEvent.ABORT),
        (AuthorizationState.SENT, AuthorizationEvent.NEVER_LEFT),
    }


def test_nothing_is_sent_that_was_not_claimed() -> None:
    sent = {key for key, after in AUTHORIZATION_TRANSITIONS.items() if after is AuthorizationState.SENT}
    assert sent == {(AuthorizationState.CLAIMED, AuthorizationEvent.SEND)}


def test_what_is_presented_again_never_becomes_ready_whatever_happens_to_the_repetition() -> None:
    assert advance(AuthorizationState.UNKNOWN, AuthorizationEvent.PRESENT_AGAIN) is AuthorizationState.UNKNOWN
    assert AuthorizationState.READY not in reachable(AuthorizationState.UNKNOWN)


def test_money_that_may_be_on_its_way_is_only_released_by_the_chain() -> None:
    for state in (Money.SUBMITTED, Money.LOST, Money.SETTLED):
        for event in (MoneyEvent.WAIVE, MoneyEvent.RESERVE_AGAIN):
            assert (state, event) not in MONEY_TRANSITIONS
    leaving = {event for before, event in MONEY_TRANSITIONS if before is Money.LOST}
    assert leaving == {MoneyEvent.CHAIN_PAID}


@pytest.mark.parametrize("state", AuthorizationState)
@pytest.mark.parametrize("event", AuthorizationEvent)
def test_an_authorization_event_follows_the_table_or_is_a_bug(
    state: AuthorizationState, event: AuthorizationEvent
) -> None:
    if (state, event) in AUTHORIZATION_TRANSITIONS:
        assert advance(state, event) is AUTHORIZATION_TRANSITIONS[state, event]
    else:
        with pytest.raises(AssertionError, match="cannot take"):
            advance(state, event)


@pytest.mark.parametrize("state", Money)
@pytest.mark.parametrize("event", MoneyEvent)
def test_a_money_event_follows_the_table_or_is_a_bug(state: Money, event: MoneyEvent) -> None:
    if (state, event) in MONEY_TRANSITIONS:
        assert advance_money(state, event) is MONEY_TRANSITIONS[state, event]
    else:
        with pytest.raises(AssertionError, match="cannot take"):
            advance_money(state, event)


@given(events=st.lists(st.sampled_from(AuthorizationEvent), max_size=60))
def test_a_walk_that_gave_an_authorization_away_never_makes_it_ready(events: list[AuthorizationEvent]) -> None:
    state, given_away = AuthorizationState.READY, False
    for event in events:
        if (state, event) in AUTHORIZATION_TRANSITIONS:
            if given_away and event is AuthorizationEvent.NEVER_LEFT:
                continue  # an earlier presentation left: then the event is LOST
            state = advance(state, event)
            given_away |= event in REVEALING
        assert not (given_away and state is AuthorizationState.READY)


def test_the_stores_words_for_the_states_are_stable() -> None:
    assert [state.value for state in AuthorizationState] == [
        "ready",
        "claimed",
        "sent",
        "unknown",
        "spent",
        "expired",
        "cancelled",
    ]
    assert [state.value for state in Money] == ["reserved", "queued", "submitted", "settled", "void", "lost"]

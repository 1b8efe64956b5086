"""The lives of an authorization (buyer) and of a payment (seller), as tables.

Rules of this file: a state is what is true on disk; an event is what happened outside; a pair that is not in a table
cannot happen, and code that asks for it is wrong. Nothing here reads a clock, a socket or a store.

Buyer, one authorization:

    READY ──claim──► CLAIMED ──send──► SENT ──served──► SPENT
      ▲                 │                │
      └──────abort──────┘                ├──never left──► READY
                                         └──lost──► UNKNOWN ──served, on presenting it again──► SPENT
    READY or UNKNOWN ──chain──► SPENT | EXPIRED | CANCELLED
    READY, CLAIMED or SENT, leased to a worker ──power loss──► UNKNOWN   (its last writes may be gone)

An authorization that reached a seller never serves another request: it stays UNKNOWN, also while it is presented again,
until the same request is answered or the chain shows it used, revoked, or unused past its time.

Seller, one payment, two columns: what was done for it (`Work`) and what became of the money (`Money`).
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

__all__ = [
    "AUTHORIZATION_TRANSITIONS",
    "MONEY_TRANSITIONS",
    "AuthorizationEvent",
    "AuthorizationState",
    "Money",
    "MoneyEvent",
    "Work",
    "advance",
    "advance_money",
]

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)


class AuthorizationState(Enum):
    """Where a pre-signed authorization stands. Values are what the store holds."""

    READY = "ready"
    CLAIMED = "claimed"
    SENT = "sent"
    UNKNOWN = "unknown"
    SPENT = "spent"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class AuthorizationEvent(Enum):
    """What can happen to an authorization."""

    CLAIM = "one request took it"
    ABORT = "the request ended before anything was sent"
    SEND = "the first byte is about to leave"
    NEVER_LEFT = "no connection was made, so nothing left"
    SERVED = "the seller answered 2xx"
    LOST = "the answer was an error, or none came"
    PRESENT_AGAIN = "the same request is repeated"
    CHAIN_USED = "the chain shows the transfer"
    CHAIN_CANCELLED = "the chain shows the revocation"
    CHAIN_UNUSED_PAST_TIME = "the chain's clock is past validBefore and the nonce is unused"
    TIME_OVER = "it never left and is too old to send"
    RESTORED = "the store is an older copy, so it may have left since, and the chain does not show it used"
    POWER_LOST = "the machine went down while a worker held it, so its last state may not be on disk"


_A, _AE = AuthorizationState, AuthorizationEvent

AUTHORIZATION_TRANSITIONS: dict[tuple[AuthorizationState, AuthorizationEvent], AuthorizationState] = {
    (_A.READY, _AE.CLAIM): _A.CLAIMED,
    (_A.READY, _AE.TIME_OVER): _A.EXPIRED,
    # The pool file may have been copied: the chain has the last word on what we believe unused, too.
    (_A.READY, _AE.CHAIN_USED): _A.SPENT,
    (_A.READY, _AE.CHAIN_CANCELLED): _A.CANCELLED,
    (_A.READY, _AE.POWER_LOST): _A.UNKNOWN,
    (_A.READY, _AE.RESTORED): _A.UNKNOWN,
    (_A.CLAIMED, _AE.POWER_LOST): _A.UNKNOWN,
    (_A.SENT, _AE.POWER_LOST): _A.UNKNOWN,
    (_A.CLAIMED, _AE.ABORT): _A.READY,
    (_A.CLAIMED, _AE.SEND): _A.SENT,
    (_A.SENT, _AE.NEVER_LEFT): _A.READY,
    (_A.SENT, _AE.SERVED): _A.SPENT,
    (_A.SENT, _AE.LOST): _A.UNKNOWN,
    # Presented again it stays UNKNOWN: only SENT may turn out never to have left.
    (_A.UNKNOWN, _AE.PRESENT_AGAIN): _A.UNKNOWN,
    (_A.UNKNOWN, _AE.SERVED): _A.SPENT,
    (_A.UNKNOWN, _AE.LOST): _A.UNKNOWN,
    (_A.UNKNOWN, _AE.POWER_LOST): _A.UNKNOWN,
    (_A.UNKNOWN, _AE.CHAIN_USED): _A.SPENT,
    (_A.UNKNOWN, _AE.CHAIN_CANCELLED): _A.CANCELLED,
    (_A.UNKNOWN, _AE.CHAIN_UNUSED_PAST_TIME): _A.EXPIRED,
}


class Work(Enum):
    """What was done for a payment."""

    WAITING = "waiting"
    RUNNING = "running"
    DELIVERED = "delivered"
    FAILED = "failed"


class Money(Enum):
    """What became of the money of a payment. A refused payment leaves no row: its key is free."""

    RESERVED = "reserved"
    QUEUED = "queued"
    SUBMITTED = "submitted"
    SETTLED = "settled"
    VOID = "void"
    LOST = "lost"


class MoneyEvent(Enum):
    """What can happen to the money of a payment."""

    OWE = "it is due: settle it"
    WAIVE = "nothing was delivered, so nothing is due"
    FREE = "it was delivered, and by what it used nothing is due"
    RESERVE_AGAIN = "the same payment came back for the same request"
    SUBMIT = "a signed transaction that carries it is stored, and may be on its way"
    CHAIN_PAID = "the chain shows the transfer, whoever submitted it"
    CHAIN_REVERTED = "that transaction did not settle it, and the nonce is unused"
    CHAIN_REORGANISED = "the chain was re-organised and no longer shows the transfer"
    HOPELESS = "expired, revoked, or burnt without a transfer"


_M, _ME = Money, MoneyEvent

MONEY_TRANSITIONS: dict[tuple[Money, MoneyEvent], Money] = {
    (_M.RESERVED, _ME.OWE): _M.QUEUED,
    (_M.RESERVED, _ME.WAIVE): _M.VOID,
    # No transaction: there is nothing to move.
    (_M.RESERVED, _ME.FREE): _M.SETTLED,
    (_M.VOID, _ME.RESERVE_AGAIN): _M.RESERVED,
    (_M.QUEUED, _ME.SUBMIT): _M.SUBMITTED,
    # The goods were withheld and nothing of it is on its way: the client was told that it did not pay.
    (_M.QUEUED, _ME.WAIVE): _M.VOID,
    (_M.QUEUED, _ME.CHAIN_PAID): _M.SETTLED,
    (_M.QUEUED, _ME.HOPELESS): _M.LOST,
    (_M.SUBMITTED, _ME.CHAIN_PAID): _M.SETTLED,
    (_M.SUBMITTED, _ME.CHAIN_REVERTED): _M.QUEUED,
    (_M.SUBMITTED, _ME.HOPELESS): _M.LOST,
    (_M.SETTLED, _ME.CHAIN_REORGANISED): _M.QUEUED,
    # A re-organised chain may show the transfer after all.
    (_M.LOST, _ME.CHAIN_PAID): _M.SETTLED,
}


def advance(state: AuthorizationState, event: AuthorizationEvent) -> AuthorizationState:
    """Return the state of an authorization after `event`. Raises `AssertionError` for a pair not in the table."""
    return _step(AUTHORIZATION_TRANSITIONS, state, event)


def advance_money(state: Money, event: MoneyEvent) -> Money:
    """Return the state of a payment's money after `event`. Raises `AssertionError` for a pair not in the table."""
    return _step(MONEY_TRANSITIONS, state, event)


def _step(table: dict[tuple[S, E], S], state: S, event: E) -> S:
    if (state, event) not in table:
        raise AssertionError(f"{state} cannot take {event}")
    return table[state, event]

"""When a payment is settled: before the work, at its first byte, after it, or later from the queue. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import msgspec

from contracts.errors import ExposureExceeded, InsufficientFunds, SettlementFailed
from seller.limits import QUEUED_LIFE_S

__all__ = ["Caps", "Mode", "Standing", "choose_mode"]


class Mode(Enum):
    """How one payment is settled. Values are what the store holds."""

    BEFORE = "before"
    FIRST_BYTE = "first_byte"
    AFTER = "after"
    ASYNC = "async"


@dataclass(frozen=True, slots=True)
class Caps:
    """How much served, unsettled money the seller bears: per payer and in total, in atomic units."""

    per_payer_atomic: int
    total_atomic: int


class Standing(msgspec.Struct, frozen=True):
    """Where a payer stands at the moment of a claim.

    `exposure_atomic` is credit given to it and not settled; `outstanding_atomic` is all of its money that is claimed
    here and still on its account, `total_outstanding_atomic` that of all payers; `balance_atomic` is what the chain
    says it has, or None when nobody asked. `withdrawn_count` tells how often its money went away after work had begun.
    """

    settled_count: int
    outstanding_atomic: int
    exposure_atomic: int
    total_outstanding_atomic: int
    balance_atomic: int | None
    withdrawn_count: int = 0


def choose_mode(
    setting: Literal["auto", "before", "after", "async"],
    standing: Standing,
    caps: Caps,
    price_atomic: int,
    life_s: int,
    *,
    metered: bool = False,
    contract_payer: bool = False,
) -> Mode:
    """Return how a payment of `price_atomic`, valid for another `life_s`, is settled.

    `auto` gives credit to a payer who has paid here before, inside the caps and its balance; everybody else settles at
    the first byte. `async` never falls back. A contract can take its signature back at any time, so it gets no credit.
    Whoever's money went away after work had begun settles first for ever, and so does everybody while the work that is
    under way would pass the total cap. What is `metered` has its price after the work: in place of an earlier
    settlement its answer is held until it is settled. Raises `InsufficientFunds` or `ExposureExceeded` (429) where work
    would begin for money that is not there, or that other payments will take first; `SettlementFailed` where what is
    metered cannot be settled first.
    """
    if standing.withdrawn_count and metered:
        raise SettlementFailed("a payment of this payer failed after the work; only a price per call is left to it")
    if setting == "before" or contract_payer or standing.withdrawn_count:
        if not metered:
            return Mode.BEFORE
        setting = "after"
    short = _why_not_covered(standing, price_atomic)
    if short is not None:
        raise short
    crowded = _why_no_room(standing, caps, price_atomic)
    if crowded is not None and setting != "async":
        if metered:
            raise crowded
        return Mode.BEFORE
    if setting == "after":
        return Mode.AFTER
    refusal = crowded or _why_no_credit(standing, caps, price_atomic)
    if setting == "async":
        if refusal is not None:
            raise refusal
        return Mode.ASYNC
    trusted = standing.settled_count > 0 and refusal is None and life_s >= QUEUED_LIFE_S
    if trusted:
        return Mode.ASYNC
    return Mode.AFTER if metered else Mode.FIRST_BYTE


def _why_not_covered(standing: Standing, price_atomic: int) -> InsufficientFunds | ExposureExceeded | None:
    """Each of many payments at once may be good, and all of them together not."""
    balance_atomic = standing.balance_atomic
    if balance_atomic is None:
        return None
    if balance_atomic < price_atomic:
        return InsufficientFunds(f"the payer has {balance_atomic} atomic units, the price is {price_atomic}")
    if balance_atomic < standing.outstanding_atomic + price_atomic:
        return ExposureExceeded(f"the payer's balance is taken by {standing.outstanding_atomic} unsettled atomic units")
    return None


def _why_no_credit(standing: Standing, caps: Caps, price_atomic: int) -> InsufficientFunds | ExposureExceeded | None:
    if standing.balance_atomic is None:
        return InsufficientFunds("nobody knows what the payer has")
    if standing.exposure_atomic + price_atomic > caps.per_payer_atomic:
        return ExposureExceeded(f"{standing.exposure_atomic} atomic units of this payer are unsettled")
    return None


def _why_no_room(standing: Standing, caps: Caps, price_atomic: int) -> ExposureExceeded | None:
    """Work that begins before its money has moved may be lost, for strangers as for known payers."""
    if standing.total_outstanding_atomic + price_atomic > caps.total_atomic:
        return ExposureExceeded("too much is unsettled with all payers together")
    return None

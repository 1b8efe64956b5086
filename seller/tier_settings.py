"""`capacity:` and `tiers:` of seller.yaml: how many calls are worked on at once, who goes first, at what price."""

from __future__ import annotations

from typing import Self

import pydantic

from contracts.settings import SettingInvalid, StrictModel
from contracts.tiers import FULL_BP, TIERS
from seller.limits import LOAD_BP_MAX, LOAD_STEPS_MAX, QUEUE_MAX, QUOTE_VALID_S_MAX, SLOTS_MAX, TIER_BP_MAX

__all__ = ["CapacitySettings", "LoadPriceSettings", "TierSettings", "check_tiers"]


class LoadPriceSettings(StrictModel):
    """How prices move with load: from the list price up to `max_bp` of it (basis points), in so many equal `steps`.

    The first step is taken when the calls that work and wait are `from_percent` of the slots, the last at
    `full_percent`. What a 402 quoted is honoured for `quote_valid_s` after the price has risen.
    """

    max_bp: int = pydantic.Field(gt=FULL_BP, le=LOAD_BP_MAX)
    steps: int = pydantic.Field(default=4, ge=1, le=LOAD_STEPS_MAX)
    from_percent: int = pydantic.Field(default=100, ge=1, le=10_000)
    full_percent: int = pydantic.Field(default=300, ge=1, le=10_000)
    quote_valid_s: int = pydantic.Field(default=60, ge=1, le=QUOTE_VALID_S_MAX)

    @pydantic.model_validator(mode="after")
    def _rises(self) -> Self:
        if self.full_percent <= self.from_percent:
            raise SettingInvalid(("full_percent",), f"expected more than from_percent, which is {self.from_percent}")
        return self


class CapacitySettings(StrictModel):
    """What the server behind can do: `slots` calls at once, and `queue` that wait, of each tier that says nothing."""

    slots: int = pydantic.Field(ge=1, le=SLOTS_MAX)
    queue: int = pydantic.Field(default=16, ge=0, le=QUEUE_MAX)
    load_price: LoadPriceSettings | None = None


class TierSettings(StrictModel):
    """One service class: its price in basis points of the list price, and its own bounds on slots and queue."""

    price_bp: int = pydantic.Field(default=FULL_BP, ge=1, le=TIER_BP_MAX)
    slots: int | None = pydantic.Field(default=None, ge=1, le=SLOTS_MAX)
    queue: int | None = pydantic.Field(default=None, ge=0, le=QUEUE_MAX)


def check_tiers(tiers: dict[str, TierSettings] | None, capacity: CapacitySettings | None) -> None:
    """Raise `SettingInvalid` for tiers that do not hold together."""
    if tiers is None:
        return
    for name in tiers:
        if name not in TIERS:
            raise SettingInvalid(("tiers", name), f"expected one of {', '.join(TIERS)}")
    if not tiers:
        raise SettingInvalid(("tiers",), f"expected at least one of {', '.join(TIERS)}")
    if capacity is None:
        raise SettingInvalid(
            ("tiers",), "expected `capacity: {slots: N}` beside them: how many calls your server works on at once"
        )

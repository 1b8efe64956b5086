"""The `routing:` section of gateway.yaml, one entry a model."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from buyer.budgets import parse_units
from contracts.errors import FareboxError
from contracts.settings import StrictModel
from gateway.limits import DEADLINE_MS_MAX

__all__ = ["RoutingSettings"]

_DEADLINE_S = 60.0


def _amount(text: str) -> str:
    try:
        parse_units(text, "")
    except FareboxError as error:
        raise ValueError(error.message.removeprefix(": ")) from None
    return text


Seconds = Annotated[float, pydantic.Field(gt=0, le=DEADLINE_MS_MAX / 1000, allow_inf_nan=False)]
Amount = Annotated[str, pydantic.AfterValidator(_amount)]


class RoutingSettings(StrictModel):
    """How calls for one model are placed, where several purchases could answer them.

    `deadline_s` and `value` (whole tokens) are what a call without headers of its own is taken to want. `explore`:
    whether a call in fifty goes to another seller to learn from it. `networks` and `sellers` (origins), where given,
    are the only ones that are considered.
    """

    policy: Literal["auto", "rule", "linucb", "ewma", "cheapest", "fastest", "inverse_square"] = "auto"
    deadline_s: Seconds = _DEADLINE_S
    value: Amount | None = None
    explore: bool = True
    networks: list[str] | None = None
    sellers: list[str] | None = None

"""A price as `seller.yaml` writes it: a text is a price per call, and a mapping may price tokens."""

from __future__ import annotations

from typing import Any, Self

import pydantic
from pydantic_core import PydanticCustomError

from contracts.money import Asset, parse_amount
from contracts.settings import SettingInvalid, StrictModel
from seller.limits import PRICED_TOKENS_MAX
from seller.pricing import UsagePrice

__all__ = ["PriceSettings"]

_AMOUNTS = ("per_call", "per_million_input_tokens", "per_million_output_tokens", "minimum")
# What a price for tokens needs beside it, so that the most a call can cost is known.
_BOUNDS = {"per_million_input_tokens": "max_input_tokens", "per_million_output_tokens": "max_output_tokens"}

_Tokens = pydantic.Field(default=None, ge=1, le=PRICED_TOKENS_MAX)


class PriceSettings(StrictModel):
    """What a call costs, in the asset's units; amounts are text, as "0.15"."""

    per_call: str | None = None
    per_million_input_tokens: str | None = None
    per_million_output_tokens: str | None = None
    minimum: str | None = None
    max_input_tokens: int | None = _Tokens
    max_output_tokens: int | None = _Tokens

    @property
    def by_usage(self) -> bool:
        """Whether the price depends on what a call uses."""
        return any(getattr(self, name) is not None for name in _BOUNDS)

    def amounts(self) -> dict[str, str]:
        """Return the amounts that are set, by their key."""
        return {name: text for name in _AMOUNTS if (text := getattr(self, name)) is not None}

    def per_call_atomic(self, asset: Asset) -> int:
        """Return the price of a call before any token is counted, in atomic units."""
        return 0 if self.per_call is None else parse_amount(self.per_call, asset, "per_call")

    def usage_price(self, asset: Asset) -> UsagePrice | None:
        """Return the price by usage, or None for a plain price per call."""
        if not self.by_usage:
            return None
        atomic = {name: parse_amount(text, asset, name) for name, text in self.amounts().items()}
        return UsagePrice(
            per_call_atomic=atomic.get("per_call", 0),
            per_million_input_atomic=atomic.get("per_million_input_tokens", 0),
            per_million_output_atomic=atomic.get("per_million_output_tokens", 0),
            minimum_atomic=atomic.get("minimum", 0),
            max_input_tokens=self.max_input_tokens or 0,
            max_output_tokens=self.max_output_tokens or 0,
        )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"per_call": given}
        if not isinstance(given, dict | cls):
            raise PydanticCustomError("string_type", 'Input should be a string, as "0.01", or a mapping')
        return given

    @pydantic.model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.by_usage:
            if self.per_call is None:
                raise ValueError("needs a `per_call`, or a price per million tokens")
            for name in ("minimum", *_BOUNDS.values()):
                if getattr(self, name) is not None:
                    raise SettingInvalid((name,), "only goes with a price per million tokens")
        for price, bound in _BOUNDS.items():
            if getattr(self, price) is not None and getattr(self, bound) is None:
                raise SettingInvalid((price,), f"needs `{bound}` beside it: what is signed is the most a call can cost")
            if getattr(self, price) is None and getattr(self, bound) is not None:
                raise SettingInvalid((bound,), f"only goes with `{price}`")
        return self

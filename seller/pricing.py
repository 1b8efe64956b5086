"""Prices by usage: what tokens cost, and the most that one request can come to. Pure, in integers.

A price per million tokens is a whole number of atomic units, so an amount is a fraction over a million; it is rounded
up once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

__all__ = ["Usage", "UsagePrice"]

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call as the model server reports them; None where it does not."""

    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class UsagePrice:
    """What a model charges by usage, in atomic units of the offer's asset.

    `max_input_tokens` and `max_output_tokens` are not limits of their own: together they make the ceiling, which is
    what a buyer signs, and inside which a request may have more of one and less of the other.
    """

    per_call_atomic: int
    per_million_input_atomic: int
    per_million_output_atomic: int
    minimum_atomic: int
    max_input_tokens: int
    max_output_tokens: int

    @property
    def ceiling_atomic(self) -> int:
        """The most that any call can cost."""
        return max(self.minimum_atomic, self.cost_atomic(self.max_input_tokens, self.max_output_tokens))

    def cost_atomic(self, input_tokens: int, output_tokens: int) -> int:
        """Return what so many tokens cost by the list, rounded up, whatever minimum and ceiling say."""
        millionths = input_tokens * self.per_million_input_atomic + output_tokens * self.per_million_output_atomic
        return self.per_call_atomic + -(-millionths // _MILLION)

    def charge_atomic(self, input_tokens: int, output_tokens: int) -> int:
        """Return what a call with so many tokens is charged: its cost, from the minimum up to the ceiling."""
        return min(self.ceiling_atomic, max(self.minimum_atomic, self.cost_atomic(input_tokens, output_tokens)))

    def times(self, factor: Fraction) -> UsagePrice:
        """Return the price at a factor of it, every amount rounded up."""
        return replace(
            self,
            per_call_atomic=ceil(self.per_call_atomic * factor),
            per_million_input_atomic=ceil(self.per_million_input_atomic * factor),
            per_million_output_atomic=ceil(self.per_million_output_atomic * factor),
            minimum_atomic=ceil(self.minimum_atomic * factor),
        )

    def output_that_fits(self, input_tokens: int) -> int | None:
        """Return how many output tokens the ceiling has room for beside so many input tokens; None where not even
        those fit. Where output costs nothing, it is not counted: 0.
        """
        room_atomic = self.ceiling_atomic - self.per_call_atomic
        millionths = room_atomic * _MILLION - input_tokens * self.per_million_input_atomic
        if millionths < 0:
            return None
        if self.per_million_output_atomic == 0:
            return 0
        return millionths // self.per_million_output_atomic

"""A price that moves with load: a ladder of factors, climbed one step at a time. Pure, in integers.

The load is what works and waits, in percent of the slots. A step up is taken when the load has asked for it through
`LOAD_STEP_S`, a step down when it has stayed half a step below that for as long, so a price does not flicker with every
call. What was quoted before a rise is honoured for a while; a payment of more than today's price always is.
"""

from __future__ import annotations

from contracts.tiers import FULL_BP
from seller.limits import LOAD_STEP_S
from seller.tier_settings import LoadPriceSettings

__all__ = ["LoadPrice"]


class LoadPrice:
    """Where on its ladder a price stands. Times are seconds of one clock that does not go back."""

    def __init__(self, settings: LoadPriceSettings) -> None:
        steps = settings.steps
        rise_bp = settings.max_bp - FULL_BP
        self.factors_bp = tuple(FULL_BP + rise_bp * step // steps for step in range(steps + 1))
        self._from, self._span = settings.from_percent, settings.full_percent - settings.from_percent
        self._slack = min(self._span // max(steps - 1, 1), self._from) // 2
        self._valid_s = settings.quote_valid_s
        self._honoured_until_s = [0.0] * (steps + 1)
        self._step = 0
        self._load_percent = 0
        self._calm_s = 0.0

    def step(self, now_s: float) -> int:
        """Return the step whose price is asked now."""
        self._move(now_s)
        return self._step

    def honours(self, step: int, now_s: float) -> bool:
        """Tell whether a payment of the price at `step` is taken."""
        return step >= self.step(now_s) or self._honoured_until_s[step] > now_s

    def least(self, now_s: float) -> int:
        """Return the cheapest step that is honoured."""
        return next(step for step in range(len(self.factors_bp)) if self.honours(step, now_s))

    def note(self, load_percent: int, now_s: float) -> None:
        """Take the load as it is from now on."""
        self._move(now_s)
        self._load_percent = load_percent

    def _move(self, now_s: float) -> None:
        """Take the steps that the load since the last look has brought."""
        wanted = self._wanted()
        if wanted == self._step:
            self._calm_s = now_s
            return
        due = int((now_s - self._calm_s) // LOAD_STEP_S)
        if due <= 0:
            return
        distance = wanted - self._step
        taken = min(abs(distance), due)
        if distance > 0:
            for left in range(self._step, self._step + taken):
                self._honoured_until_s[left] = now_s + self._valid_s
        self._step += taken if distance > 0 else -taken
        self._calm_s = now_s

    def _wanted(self) -> int:
        up, down = self._at(self._load_percent), self._at(self._load_percent + self._slack)
        return up if up > self._step else min(self._step, down)

    def _at(self, load_percent: int) -> int:
        top = len(self.factors_bp) - 1
        above = load_percent - self._from
        return 0 if above < 0 else min(top, 1 + above * (top - 1) // self._span)

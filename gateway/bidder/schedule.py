"""When a new model is made, and from which outcomes. Pure."""

from __future__ import annotations

from gateway.bidder.limits import (
    TRAIN_EARLY_UNTIL,
    TRAIN_EVERY,
    TRAIN_EVERY_EARLY,
    TRAIN_EVERY_S,
    TRAIN_FIRST,
)

__all__ = ["Training"]


class Training:
    """Counts outcomes. Few are enough for a first model, since it starts from the rule and can hardly be worse."""

    def __init__(self) -> None:
        self.first = TRAIN_FIRST
        self._next = self.first
        self._trained_s: float | None = None
        self._trained_at = 0

    def is_due(self, outcomes: int, now_s: float) -> bool:
        """Tell whether enough outcomes, or enough time with some of them, passed since the last training."""
        if outcomes >= self._next:
            return True
        if self._trained_s is None or outcomes <= self._trained_at:
            return False
        return now_s - self._trained_s >= TRAIN_EVERY_S

    def begun(self, outcomes: int, now_s: float) -> None:
        """Note that a training on `outcomes` began."""
        every = TRAIN_EVERY if outcomes >= TRAIN_EARLY_UNTIL else TRAIN_EVERY_EARLY
        self._next, self._trained_s, self._trained_at = outcomes + every, now_s, outcomes

"""Page-Hinkley: whether something that was steady has become worse. Pure."""

from __future__ import annotations

from gateway.bidder.limits import DRIFT_OUTCOMES_MIN

__all__ = ["Drift"]

# A rise smaller than this is noise; a summed rise above the threshold is not.
_TOLERANCE = 0.2
_THRESHOLD = 15.0


class Drift:
    """Watches one series, for example the log-loss of a seller's answers."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._sum = self._lowest = 0.0

    def add(self, value: float) -> bool:
        """Take one value and tell whether the series has risen for good; after an alarm it starts anew."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum += value - self._mean - _TOLERANCE
        self._lowest = min(self._lowest, self._sum)
        if self._count < DRIFT_OUTCOMES_MIN or self._sum - self._lowest < _THRESHOLD:
            return False
        self._count = 0
        self._mean = self._sum = self._lowest = 0.0
        return True

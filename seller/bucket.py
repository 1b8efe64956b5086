"""A bound on what strangers may cause: so many at once, and then so many a second (a token bucket)."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Bucket"]


class Bucket:
    """Holds up to `most`, and gets `per_s` back each second by `clock`."""

    def __init__(self, most: int, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_s, self._clock = most, per_s, clock
        self._left = float(most)
        self._filled = clock()

    def take(self) -> bool:
        """Take one out, and tell whether there was one."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._filled) * self._per_s)
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

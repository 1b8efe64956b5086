"""Leaves a seller alone that fails time after time, and lets one call try it again after a while. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.limits import BREAKER_FAILURES, BREAKER_PAUSE_S, BREAKERS_MAX

__all__ = ["Breakers"]


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    open_until_s: float = 0.0
    resting_until_s: float = 0.0


class Breakers:
    """One breaker for each tier of a seller. It opens for `BREAKER_PAUSE_S` after `BREAKER_FAILURES` in a row."""

    def __init__(self) -> None:
        self._breakers: dict[str, _Breaker] = {}

    def is_open(self, seller: str, now_s: float) -> bool:
        """Tell whether a seller should be left alone now."""
        breaker = self._breakers.get(seller)
        if breaker is None:
            return False
        is_broken = breaker.failures >= BREAKER_FAILURES and now_s < breaker.open_until_s
        return is_broken or now_s < breaker.resting_until_s

    def rest(self, seller: str, until_s: float) -> None:
        """Leave a seller alone for as long as it asked for; that alone is no failure."""
        breaker = self._of(seller)
        breaker.resting_until_s = max(breaker.resting_until_s, until_s)

    def trying(self, seller: str, now_s: float) -> None:
        """Note that a call goes to a seller: while it is on trial, others are held back."""
        breaker = self._breakers.get(seller)
        if breaker is not None and breaker.failures >= BREAKER_FAILURES:
            breaker.open_until_s = now_s + BREAKER_PAUSE_S

    def failed(self, seller: str, now_s: float) -> None:
        """Note a failure."""
        breaker = self._of(seller)
        breaker.failures += 1
        breaker.open_until_s = now_s + BREAKER_PAUSE_S

    def succeeded(self, seller: str) -> None:
        """Note that a seller answered."""
        self._breakers.pop(seller, None)

    def _of(self, seller: str) -> _Breaker:
        if seller not in self._breakers and len(self._breakers) >= BREAKERS_MAX:
            del self._breakers[next(iter(self._breakers))]
        return self._breakers.setdefault(seller, _Breaker())

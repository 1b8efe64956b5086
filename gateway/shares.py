"""Of what a gateway does at once, no client key takes more than its share, so that the others find a place."""

from __future__ import annotations

from gateway.envelope import Problem, Refused
from gateway.limits import BUSY_RETRY_AFTER_S

__all__ = ["Shares"]


class Shares:
    """Places of one kind, of which each client key may hold `each_max`. `what` names what a place is for, in plural."""

    def __init__(self, each_max: int, what: str) -> None:
        self._each_max, self._what = each_max, what
        # Only keys that hold a place are in it, so it is never larger than the places there are.
        self._held: dict[str, int] = {}

    def take(self, key: str) -> None:
        """Take a place for the key of that name. Raises `Refused` (429) where it holds its whole share."""
        held = self._held.get(key, 0)
        if held >= self._each_max:
            text = f"this client key has {held} {self._what} in flight, which is its share"
            raise Refused(Problem(429, "key_share_exceeded", text, BUSY_RETRY_AFTER_S))
        self._held[key] = held + 1

    def give_back(self, key: str) -> None:
        """Free a place that `take` gave to a key."""
        held = self._held.pop(key) - 1
        if held:
            self._held[key] = held

"""One budget, cut into slices: reserved before a call, spent or returned after it. Pure, and never above the budget."""

from __future__ import annotations

from contracts.errors import BudgetExceeded

__all__ = ["Ledger"]


class Ledger:
    """Reserved and spent amounts of one run, in units. `reserved + spent <= budget` holds after every call."""

    def __init__(self, budget_units: int) -> None:
        self.budget_units = budget_units
        self.spent_units = 0
        self._reserved: dict[str, int] = {}

    @property
    def reserved_units(self) -> int:
        """What running calls may still cost."""
        return sum(self._reserved.values())

    @property
    def free_units(self) -> int:
        """What may be reserved."""
        return self.budget_units - self.spent_units - self.reserved_units

    def reserve(self, key: str, units: int) -> None:
        """Take `units` for a call under `key`. Raises `BudgetExceeded`, and then nothing is taken."""
        assert units >= 0
        assert key not in self._reserved, "a call is reserved for once"
        if units > self.free_units:
            raise BudgetExceeded(
                f"a call may cost {units} units, {self.free_units} are left of the run's {self.budget_units}"
            )
        self._reserved[key] = units

    def settle(self, key: str, paid_units: int) -> None:
        """End a call that cost `paid_units` of its reservation; the rest is free again."""
        reserved = self._reserved.pop(key)
        assert 0 <= paid_units <= reserved, f"{key} paid {paid_units} of {reserved} reserved units"
        self.spent_units += paid_units

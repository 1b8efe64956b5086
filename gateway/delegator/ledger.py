"""One budget, cut into slices: reserved before a call, spent or returned after it. Pure, and never above the budget.

A node's slice is what its call is planned to cost. It is the node's alone until the node is done, so that no repetition
elsewhere can take it away; what is not planned for anybody is free for whoever needs more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from buyer.budgets import shown_units
from contracts.errors import BudgetExceeded

__all__ = ["Ledger"]


@dataclass(frozen=True, slots=True)
class _Reservation:
    units: int
    slice_name: str | None
    from_slice_units: int


class Ledger:
    """Sliced, reserved and spent amounts of one run, in units.

    `reserved + spent + what the slices still hold <= budget` holds after every call.
    """

    def __init__(self, budget_units: int) -> None:
        self.budget_units = budget_units
        self.spent_units = 0
        self._reserved: dict[str, _Reservation] = {}
        self._slices: dict[str, int] = {}

    @property
    def reserved_units(self) -> int:
        """What running calls may still cost."""
        return sum(reservation.units for reservation in self._reserved.values())

    @property
    def sliced_units(self) -> int:
        """What is set aside for calls that are yet to be made."""
        return sum(self._slices.values())

    @property
    def free_units(self) -> int:
        """What is left for anybody."""
        return self.budget_units - self.spent_units - self.reserved_units - self.sliced_units

    def room_units(self, name: str | None = None) -> int:
        """Return what may be reserved for a node: what is left of its slice, and all that is free."""
        return self.free_units + self._slices.get(name or "", 0)

    def cut(self, planned: Iterable[tuple[str, int]]) -> None:
        """Set a slice aside for each (name, units), the first first; where the money ends, slices are smaller."""
        self._slices.clear()
        for name, units in planned:
            self._slices[name] = min(units, self.free_units)

    def close(self, name: str) -> None:
        """End a node: what is left of its slice is free."""
        self._slices.pop(name, None)

    def reserve(self, key: str, units: int, name: str | None = None) -> None:
        """Take `units` for a call under `key`, out of the slice `name` first.

        Raises `BudgetExceeded`, and then nothing is taken.
        """
        assert units >= 0
        assert key not in self._reserved, "a call is reserved for once"
        room = self.room_units(name)
        if units > room:
            shown = [shown_units(each) for each in (units, room, self.budget_units)]
            raise BudgetExceeded("a call may cost {}, {} is left of the run's {}".format(*shown))
        out_of_slice = min(units, self._slices.get(name, 0)) if name is not None else 0
        if name is not None and out_of_slice:
            self._slices[name] -= out_of_slice
        self._reserved[key] = _Reservation(units, name, out_of_slice)

    def settle(self, key: str, paid_units: int) -> None:
        """End a call that cost `paid_units` of its reservation; the rest goes back to where it came from."""
        reserved = self._reserved.pop(key)
        assert 0 <= paid_units <= reserved.units, f"{key} paid {paid_units} of {reserved.units} reserved units"
        self.spent_units += paid_units
        if reserved.slice_name in self._slices:
            self._slices[reserved.slice_name] += min(reserved.units - paid_units, reserved.from_slice_units)

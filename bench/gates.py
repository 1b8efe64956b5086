"""A promise beside what was measured, for benches whose figures are shares and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Gate", "gate_lines", "gates_met"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One promise: `measured` must be at least, or at most, `limit`."""

    promise: str
    bound: Literal["at least", "at most"]
    limit: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.measured >= self.limit if self.bound == "at least" else self.measured <= self.limit

    def document(self) -> dict[str, Any]:
        """Return the gate as members of a JSON document."""
        return {**asdict(self), "met": self.met}


def gates_met(gates: Sequence[Gate]) -> bool:
    """Tell whether every promise is kept."""
    return all(gate.met for gate in gates)


def gate_lines(gates: Sequence[Gate]) -> list[str]:
    """Return the gates as lines of plain text."""
    return [
        f"{'hit   ' if gate.met else 'missed'}  {gate.promise}: {gate.bound} {gate.limit:g}, "
        f"measured {gate.measured:.3f}"
        for gate in gates
    ]

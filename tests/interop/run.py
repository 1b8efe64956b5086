"""Runs cells and says what came of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contracts.evm.devnet import Devnet
from tests.interop.buyers import Buyers
from tests.interop.cells import Cell, Server, Stall, impossible
from tests.interop.meeting import check_unpaid, meet, streams_live
from tests.interop.sellers import open_stall
from tests.interop.street import Street

__all__ = ["Matrix", "Result", "run"]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one cell: `problem` is None where all was right; `reason` says why it could not be run."""

    cell: Cell
    problem: str | None = None
    reason: str | None = None


@dataclass(slots=True)
class Matrix:
    """What came of all that was wanted.

    `live` tells of each server that was met whether it passes a paid stream on as it is made; `faults` are what went
    wrong at a seller besides its cells.
    """

    wanted: Sequence[Cell]
    results: dict[Cell, Result] = field(default_factory=dict)
    live: dict[Server, bool] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def red(self) -> list[str]:
        """What was not right, or never came to a result, one line each."""
        wrong = [f"{result.cell.name}: {result.problem}" for result in self.results.values() if result.problem]
        missing = [f"{cell.name}: no result" for cell in self.wanted if cell not in self.results]
        return wrong + missing + self.faults


def run(folder: Path, chain: Devnet, wanted: Sequence[Cell], tell: Callable[[Result], None]) -> Matrix:
    """Run `wanted`, seller by seller, and `tell` each result as it comes. Leaves no process and no port behind."""
    matrix = Matrix(wanted)

    def note(result: Result) -> None:
        matrix.results[result.cell] = result
        tell(result)

    with Street(folder, chain) as street, Buyers(street) as buyers:
        for stall, group in itertools.groupby(wanted, key=lambda cell: cell.stall):
            reason = impossible(stall)
            if reason is None:
                _run_at(street, buyers, stall, list(group), matrix, note)
            else:
                for cell in group:
                    note(Result(cell, reason=reason))
    return matrix


def _run_at(
    street: Street, buyers: Buyers, stall: Stall, wanted: list[Cell], matrix: Matrix, note: Callable[[Result], None]
) -> None:
    left = list(wanted)
    try:
        with open_stall(street, stall) as opened:
            check_unpaid(street, opened)
            while left:
                problem = None
                try:
                    meet(street, buyers, left[0].client, opened)
                except Exception as error:  # noqa: BLE001 - whatever goes wrong is the result of this cell
                    problem = _told(error)
                note(Result(left.pop(0), problem))
            if stall.server not in matrix.live:
                # Every cell of ours demands it; to ask again would depend on speed.
                matrix.live[stall.server] = stall.server.is_ours or streams_live(street, buyers, opened)
    except Exception as error:  # noqa: BLE001 - as above, for every client of this seller
        if not left:
            matrix.faults.append(f"{stall.slug}: {_told(error)}")
        for cell in left:
            note(Result(cell, _told(error)))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

"""Runs cells and says what came of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.evm.devnet import Devnet
from tests.interop.buyers import Buyers
from tests.interop.cells import Cell, Stall, impossible
from tests.interop.meeting import check_unpaid, meet
from tests.interop.sellers import open_stall
from tests.interop.street import Street

__all__ = ["Result", "run"]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one cell: `problem` is None where all was right; `reason` says why it could not be run."""

    cell: Cell
    problem: str | None = None
    reason: str | None = None


def run(folder: Path, chain: Devnet, wanted: Sequence[Cell]) -> Iterator[Result]:
    """Yield a result for each of `wanted`, seller by seller. Leaves no process and no port behind."""
    with Street(folder, chain) as street, Buyers(street) as buyers:
        for stall, group in itertools.groupby(wanted, key=lambda cell: cell.stall):
            reason = impossible(stall)
            if reason is not None:
                yield from (Result(cell, reason=reason) for cell in group)
            else:
                yield from _at(street, buyers, stall, list(group))


def _at(street: Street, buyers: Buyers, stall: Stall, wanted: list[Cell]) -> Iterator[Result]:
    done = 0
    try:
        with open_stall(street, stall) as opened:
            check_unpaid(street, opened)
            for cell in wanted:
                problem = None
                try:
                    meet(street, buyers, cell.client, opened)
                except Exception as error:  # noqa: BLE001 - whatever goes wrong is the result of this cell
                    problem = _told(error)
                done += 1
                yield Result(cell, problem)
    except Exception as error:  # noqa: BLE001 - as above, for every client of this seller
        yield from (Result(cell, _told(error)) for cell in wanted[done:])


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

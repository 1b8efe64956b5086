"""Buy with every client at every seller, on one chain, and print the matrix.

Exit code 1 when a cell is red or has no result.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from enum import StrEnum
from pathlib import Path

from contracts.evm.devnet import Devnet
from tests.interop.cells import Cell, Client, Rail, Server, Settlement, cells
from tests.interop.run import Result, run
from tests.interop.table import PAGE, keep, section

_AXES: dict[str, type[StrEnum]] = {"client": Client, "server": Server, "settlement": Settlement, "rail": Rail}


def main() -> int:
    """Run what the command line asks for, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    for name, axis in _AXES.items():
        named = ", ".join(f'"{each}"' for each in axis)
        parser.add_argument(f"--{name}", action="append", choices=list(axis), metavar="NAME", help=f"only: {named}")
    parser.add_argument("--write", action="store_true", help=f"keep the matrix in {PAGE.name}; takes all of it")
    asked = parser.parse_args()
    wanted = [cell for cell in cells() if _is_wanted(cell, asked)]
    if asked.write and wanted != cells():
        parser.error("--write keeps the whole matrix; leave the other options out")
    # The official clients follow a proxy of the environment, even to loopback.
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    with tempfile.TemporaryDirectory(prefix="farebox-interop-") as folder, Devnet() as chain:
        matrix = run(Path(folder), chain, wanted, _tell)
    text = section(matrix)
    sys.stdout.write(text + "\n")
    if asked.write:
        keep(text)
    for line in matrix.red:
        sys.stderr.write(f"red: {line}\n")
    return 1 if matrix.red else 0


def _is_wanted(cell: Cell, asked: argparse.Namespace) -> bool:
    stall = cell.stall
    where: dict[str, StrEnum] = {
        "client": cell.client,
        "server": stall.server,
        "settlement": stall.settlement,
        "rail": stall.rail,
    }
    return all(getattr(asked, axis) is None or at in getattr(asked, axis) for axis, at in where.items())


def _tell(result: Result) -> None:
    mark = "red" if result.problem else "n/a" if result.reason else "ok"
    sys.stderr.write(f"{mark:>4}  {result.cell.name}\n")


if __name__ == "__main__":
    sys.exit(main())

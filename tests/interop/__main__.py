"""`python -m tests.interop`: every client at every seller, as a table; `--write` keeps it in docs/interop.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from contracts.evm.devnet import Devnet
from tests.interop.cells import Client, Rail, Server, Settlement, cells
from tests.interop.run import Result, run


def main() -> int:
    """Run what is asked for and return the exit code: 1 when a cell is red."""
    parser = argparse.ArgumentParser(prog="python -m tests.interop", description=__doc__)
    kinds = {"client": Client, "server": Server, "settlement": Settlement, "rail": Rail}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", action="append", type=kind, choices=list(kind), help="only this one")
    parser.add_argument(
        "--write", action="store_true", help="keep the table in docs/interop.md; needs the whole matrix"
    )
    asked = parser.parse_args()
    wanted = [
        cell
        for cell in cells()
        if (not asked.client or cell.client in asked.client)
        and (not asked.server or cell.stall.server in asked.server)
        and (not asked.settlement or cell.stall.settlement in asked.settlement)
        and (not asked.rail or cell.stall.rail in asked.rail)
    ]
    os.environ["NO_PROXY"] = "127.0.0.1,localhost"
    results: list[Result] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="farebox-interop-") as folder, Devnet() as chain:
        for result in run(Path(folder), chain, wanted):
            results.append(result)
            mark = "red " if result.problem else "n/a " if result.reason else "ok  "
            sys.stdout.write(f"{time.monotonic() - started:6.1f} {mark} {result.cell.name} {result.problem or ''}\n")
    return 1 if any(result.problem for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

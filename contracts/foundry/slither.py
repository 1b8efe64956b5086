"""Read the wallet's Solidity with slither and hold each finding against its answer in slither.md: `make slither`.

A finding without an answer fails the run, and so does an answer to what is no longer found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.errors import LocalError
from contracts.evm.toolchain import forge_binary
from contracts.foundry.project import lay_out
from contracts.limits import FORGE_TIMEOUT_S

__all__ = ["Finding", "main"]

# The factory imports the wallet, and that all the rest.
_SOURCE = "src/AgentWalletFactory.sol"
_ANSWERS = Path(__file__).with_name("slither.md")
_ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (.+?) \| .+ \|$", re.MULTILINE)

# A detector, and the function or variable it points at.
Finding = tuple[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the path of slither's program, print what is not answered, and return the exit code."""
    (program,) = sys.argv[1:] if arguments is None else arguments
    try:
        found = _run(Path(program).absolute())
    except LocalError as error:
        print(f"{error.message}\n{error.advice}", file=sys.stderr)
        return error.exit_code
    answered = _answers()
    for detector, where in sorted(found - answered):
        print(f"slither: {detector} in {where} has no answer in {_ANSWERS.name}", file=sys.stderr)
    for detector, where in sorted(answered - found):
        print(f"slither: {detector} in {where} is answered and no longer found", file=sys.stderr)
    if found == answered:
        print(f"slither: {len(found)} findings, each answered in {_ANSWERS.name}")
    return int(found != answered)


def _answers() -> set[Finding]:
    rows = _ROW.findall(_ANSWERS.read_text())
    return {(detector, where) for detector, places in rows for where in re.findall(r"`([^`]+)`", places)}


def _run(program: Path) -> set[Finding]:
    command = [str(program), _SOURCE, "--filter-paths", "node_modules|test/", "--json", "-"]
    path = f"{program.parent}{os.pathsep}{forge_binary().parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=lay_out(),
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=FORGE_TIMEOUT_S,
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
        return {(finding["check"], _place(finding["elements"][0])) for finding in answer["results"]["detectors"]}
    except (ValueError, KeyError, IndexError):
        raise LocalError(f"slither did not finish:\n{done.stderr[-2000:]}", remedy="run `make clean slither`") from None


def _place(element: dict[str, Any]) -> str:
    """Return `Contract.function`, or `Contract.function.variable`."""
    names = [element["name"]]
    while parent := element.get("type_specific_fields", {}).get("parent"):
        if parent["type"] not in ("contract", "function"):
            break
        names.append(parent["name"])
        element = parent
    return ".".join(reversed(names))


if __name__ == "__main__":
    sys.exit(main())

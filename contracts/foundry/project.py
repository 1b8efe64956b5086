"""Lay out a forge project from our sources and npm's packages, and test in it: `python -m contracts.foundry.project`.

Forge wants the libraries inside the project and a `solc` on the disk; both are put there, and nothing is downloaded.
Arguments are handed to `forge test`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from contracts.errors import LocalError
from contracts.evm.artifact import SOLIDITY
from contracts.evm.preinstalls import permit2_code
from contracts.evm.toolchain import forge_binary, npm_modules
from contracts.limits import FORGE_TIMEOUT_S

__all__ = ["PROJECT", "forge", "lay_out", "main"]

PROJECT = Path(__file__).resolve().parents[2] / "build" / "foundry"

_HERE = Path(__file__).parent
# The chain id of forge's own chain, which Permit2's code carries in itself.
_CHAIN_ID = 31337


def lay_out(folder: Path = PROJECT) -> Path:
    """Put a forge project into `folder`, keeping what forge compiled there before. Raises `ToolMissing`."""
    for name, source in (("src", SOLIDITY), ("test", _HERE / "test")):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(source, folder / name)
    library = Path("node_modules") / "@openzeppelin" / "contracts"
    if not (folder / library).exists():
        shutil.copytree(npm_modules().parent / library, folder / library, ignore=shutil.ignore_patterns("build"))
    shutil.copy(_HERE / "foundry.toml", folder)
    compiler = folder / "solc"
    compiler.write_text(f'#!/bin/sh\nexec node "{_HERE / "solc.cjs"}" "{npm_modules()}" "$@"\n')
    compiler.chmod(0o755)
    (folder / "permit2.hex").write_text("0x" + permit2_code(_CHAIN_ID).hex())
    return folder


def forge(folder: Path, arguments: Sequence[str], *, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run forge in a laid out project; `quiet` keeps what it says for the caller. Raises `ToolMissing`."""
    return subprocess.run(
        [str(forge_binary()), *arguments],
        cwd=folder,
        capture_output=quiet,
        text=True,
        timeout=FORGE_TIMEOUT_S,
        check=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `forge test` on our sources and return its exit code."""
    try:
        return forge(lay_out(), ["test", *(sys.argv[1:] if arguments is None else arguments)]).returncode
    except LocalError as error:
        print(f"{error.message}\n{error.advice}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

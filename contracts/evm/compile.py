"""Compile the Solidity into the committed artifacts: `python -m contracts.evm.compile [--check]`.

Deterministic: a pinned compiler, no metadata hash in the code, sorted JSON. `--check` writes nothing and fails when a
committed artifact is not byte for byte what the sources give.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from contracts.errors import LocalError
from contracts.evm.artifact import ARTIFACTS, SOLIDITY
from contracts.evm.toolchain import npm_modules, npm_package
from contracts.keccak import keccak
from contracts.limits import COMPILE_TIMEOUT_S

__all__ = ["CompileFailed", "compile_all", "main", "source_hash"]

_DRIVER = Path(__file__).parent / "solc.cjs"
_LIBRARY = "@openzeppelin/contracts"
_SETTINGS: dict[str, Any] = {
    "evmVersion": "prague",
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
    "optimizer": {"enabled": True, "runs": 200},
}


class CompileFailed(LocalError):
    """The Solidity does not compile, or the compiler could not run."""

    code = "compile_failed"
    remedy = "read the compiler's message; `make setup` installs the compiler"


def source_hash(name: str) -> str:
    """Return the Keccak-256 of `solidity/<name>` as the compiler reports it: 0x and 64 hex digits."""
    return "0x" + keccak((SOLIDITY / name).read_bytes()).hex()


def compile_all() -> dict[str, bytes]:
    """Return file name → bytes of every artifact. Raises `CompileFailed` or `ToolMissing`."""
    files = sorted(SOLIDITY.rglob("*.sol"))
    sources = {path.relative_to(SOLIDITY).as_posix(): {"content": path.read_text()} for path in files}
    wanted = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "metadata"]
    output = _run_compiler(
        {
            "language": "Solidity",
            "sources": sources,
            "settings": _SETTINGS | {"outputSelection": {"*": {"*": wanted}}},
        }
    )
    problems = [entry["formattedMessage"] for entry in output.get("errors", [])]
    if problems:
        raise CompileFailed("\n".join(problems))
    version = json.loads((npm_package(_LIBRARY) / "package.json").read_text())["version"]
    return {
        f"{contract}.json": _artifact(contract, built, output["compiler"], version, sources.keys())
        for source in sources
        if "/" not in source
        for contract, built in output["contracts"][source].items()
        if built["evm"]["bytecode"]["object"]
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the artifacts, or with `--check` compare them. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m contracts.evm.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on any difference")
    check = parser.parse_args(arguments).check
    try:
        built = compile_all()
    except LocalError as error:
        print(f"{error.message}\n{error.advice}", file=sys.stderr)
        return error.exit_code
    committed = {path.name: path.read_bytes() for path in ARTIFACTS.glob("*.json")}
    changed = sorted(name for name in built.keys() | committed.keys() if built.get(name) != committed.get(name))
    if check:
        for name in changed:
            print(f"contracts: artifacts/{name} is not what the sources compile to", file=sys.stderr)
        if changed:
            print("contracts: run `python -m contracts.evm.compile` and commit the result", file=sys.stderr)
            return 1
        print(f"contracts: {len(built)} artifacts are what the sources compile to, byte for byte")
        return 0
    ARTIFACTS.mkdir(exist_ok=True)
    for name in changed:
        if name in built:
            (ARTIFACTS / name).write_bytes(built[name])
        else:
            (ARTIFACTS / name).unlink()
        print(f"contracts: {'wrote' if name in built else 'removed'} artifacts/{name}")
    return 0


def _run_compiler(standard_json: dict[str, Any]) -> dict[str, Any]:
    command = ["node", str(_DRIVER), str(npm_modules())]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(standard_json).encode(),
            capture_output=True,
            timeout=COMPILE_TIMEOUT_S,
            check=True,
        )
    except FileNotFoundError:
        raise CompileFailed("node is not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise CompileFailed(f"the compiler did not finish in {COMPILE_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise CompileFailed(error.stderr.decode(errors="replace").strip()) from None
    output: dict[str, Any] = json.loads(done.stdout)
    return output


def _artifact(
    contract: str, built: dict[str, Any], compiler: str, library_version: str, ours: Collection[str]
) -> bytes:
    known = json.loads(built["metadata"])["sources"]
    document = {
        "abi": built["abi"],
        "bytecode": "0x" + built["evm"]["bytecode"]["object"],
        "compiler": compiler,
        "contractName": contract,
        "deployedBytecode": "0x" + built["evm"]["deployedBytecode"]["object"],
        "packages": {_LIBRARY: library_version},
        "settings": _SETTINGS,
        "sources": {name: entry["keccak256"] for name, entry in known.items() if name in ours},
    }
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


if __name__ == "__main__":
    sys.exit(main())

"""Compiled contracts as committed files, so that nobody needs a compiler to deploy one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from contracts.errors import UsageError

__all__ = ["ARTIFACTS", "SOLIDITY", "Artifact", "artifact_names", "load_artifact"]

SOLIDITY = Path(__file__).parent / "solidity"
ARTIFACTS = Path(__file__).parent / "artifacts"


class Artifact(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One compiled contract. `sources` maps our own files to their Keccak-256; `packages` pins the imported ones."""

    contract_name: str
    compiler: str
    settings: dict[str, Any]
    packages: dict[str, str]
    sources: dict[str, str]
    abi: list[dict[str, Any]]
    bytecode: str
    deployed_bytecode: str


def artifact_names() -> list[str]:
    """Return the names of all committed artifacts, sorted."""
    return sorted(path.stem for path in ARTIFACTS.glob("*.json"))


def load_artifact(name: str) -> Artifact:
    """Return the committed artifact of contract `name`. Raises `UsageError` for an unknown name."""
    names = artifact_names()
    if name not in names:
        raise UsageError(f"artifact: no contract {name!r}", remedy=f"one of: {', '.join(names)}")
    return msgspec.json.decode((ARTIFACTS / f"{name}.json").read_bytes(), type=Artifact)

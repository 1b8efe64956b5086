"""The matrix as a reader sees it, and its place in docs/interop.md."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

from tests.interop.cells import Cell, Client, Rail, Server, Settlement, Stall
from tests.interop.run import Matrix, Result

__all__ = ["PAGE", "keep", "kept", "section"]

_REPO = Path(__file__).parents[2]
PAGE = _REPO / "docs" / "interop.md"
_BEGIN, _END = "<!-- the matrix, written by `make test-interop ARGS=--write` -->", "<!-- the end of the matrix -->"
_SECTION = re.compile(rf"(?<={re.escape(_BEGIN)}\n).*?(?=\n{re.escape(_END)})", re.DOTALL)
_NOTES = "¹²³⁴⁵⁶⁷⁸⁹"


def section(matrix: Matrix) -> str:
    """Return the matrix as Markdown: a table a rail, why some cells cannot be, and how streams come."""
    reasons = list(dict.fromkeys(result.reason for result in matrix.results.values() if result.reason))
    ran = sum(result.reason is None for result in matrix.results.values())
    versions = f"Official SDKs: Python {importlib.metadata.version('x402')}, TypeScript {_typescript_version()}."
    parts = [f"{ran} cells run, {len(matrix.results) - ran} cannot be. {versions}"]
    wanted = {cell.stall.rail for cell in matrix.wanted}
    parts += [_rail_table(matrix, rail, reasons) for rail in Rail if rail in wanted]
    parts += [f"{_NOTES[number]} {reason}" for number, reason in enumerate(reasons)]
    parts.append(_streams(matrix))
    return "\n\n".join(parts)


def kept() -> str:
    """Return the matrix that docs/interop.md holds."""
    found = _SECTION.search(PAGE.read_text())
    assert found is not None, f"{PAGE} has no place for the matrix"
    return found[0]


def keep(text: str) -> None:
    """Put a matrix into docs/interop.md."""
    kept()
    PAGE.write_text(_SECTION.sub(lambda _: text, PAGE.read_text()))


def _rail_table(matrix: Matrix, rail: Rail, reasons: list[str]) -> str:
    lines = [
        f"| {rail} | settled by | {' | '.join(Client)} |",
        f"|---|---|{':-:|' * len(Client)}",
    ]
    for server in Server:
        for settlement in Settlement:
            results = [matrix.results.get(Cell(client, Stall(server, settlement, rail))) for client in Client]
            marks = " | ".join(_mark(result, reasons) for result in results)
            lines.append(f"| {server} | {settlement} | {marks} |")
    return "\n".join(lines)


def _mark(result: Result | None, reasons: list[str]) -> str:
    if result is None:
        return "?"
    if result.reason is not None:
        return "n/a" + _NOTES[reasons.index(result.reason)]
    return "✓" if result.problem is None else "✗"


def _streams(matrix: Matrix) -> str:
    lines = ["| Seller | A paid stream comes |", "|---|---|"]
    words = {True: "piece by piece, as it is made", False: "whole, when it is over and settled", None: "?"}
    lines += [f"| {server} | {words[matrix.live.get(server)]} |" for server in Server]
    return "\n".join(lines)


def _typescript_version() -> str:
    packages = json.loads((_REPO / "config" / "interop" / "package.json").read_text())["dependencies"]
    return str(packages["@x402/core"])

"""`docs/security.md` names every threat and fault once, and every test it names exists."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

REPO = Path(__file__).parents[2]
TABLE = REPO / "docs" / "security.md"
ROWS = {
    **{f"S{number}": 0 for number in range(1, 21)},
    **{f"B{number}": 0 for number in range(1, 11)},
    **{f"G{number}": 0 for number in range(1, 9)},
    **{f"T{number}": 0 for number in range(1, 5)},
    **{f"R{number}": 0 for number in range(1, 5)},
    **{f"K{number}": 0 for number in range(1, 3)},
    "D1": 0,
    **{f"W{number}": 0 for number in range(1, 8)},
    **{f"C{number}": 0 for number in range(1, 12)},
    **{f"F{number}": 0 for number in range(1, 27)},
}
NAMED = re.compile(r"`([a-z0-9_/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """Return the cells of every row that is no heading."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if re.match(r"\| [A-Z]\d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@lru_cache
def names_in(path: Path) -> frozenset[str]:
    """Return what a test module defines at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return frozenset(names)


def test_every_row_is_there_once_and_is_held_by_a_test_or_says_that_it_is_not() -> None:
    found = [row[0] for row in rows()]
    assert sorted(found) == sorted(ROWS)
    for row in rows():
        assert len(row) == 4, row[0]
        assert NAMED.search(row[3]) or "**not covered**" in row[2], row[0]


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(TABLE.read_text("utf-8"))
    assert len(named) > 100
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (REPO / "tests" / file).is_file() or name not in names_in(REPO / "tests" / file)
    ]
    assert missing == []


def test_what_is_not_covered_is_also_told_in_one_place() -> None:
    listed = TABLE.read_text("utf-8").partition("## Not covered")[2]
    listed = listed.replace("R1 to R3", "R1 R2 R3")
    for row in rows():
        if "**not covered**" in row[2]:
            assert re.search(rf"\b{row[0]}\b", listed), row[0]


def test_the_security_policy_leads_there() -> None:
    assert "docs/security.md" in (REPO / "SECURITY.md").read_text("utf-8")

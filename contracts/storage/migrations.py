"""Numbered SQL files of a room: found, ordered, split into statements."""

from __future__ import annotations

import re
import sqlite3
from importlib import resources

from contracts.errors import StoreUnavailable

__all__ = ["Script", "due_scripts", "read_scripts"]

_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")

Script = tuple[int, list[str]]


def read_scripts(package: str) -> list[Script]:
    """Return (number, statements) of every `0001_name.sql` in `package`, in order."""
    scripts = sorted(
        (int(match[1]), _split_statements(entry.read_text("utf-8")))
        for entry in resources.files(package).iterdir()
        if (match := _NAME.fullmatch(entry.name))
    )
    numbers = [number for number, _ in scripts]
    assert numbers == list(range(1, len(numbers) + 1)), f"{package}: migrations {numbers} skip or repeat a number"
    return scripts


def due_scripts(scripts: list[Script], done: int, name: str) -> list[Script]:
    """Return those after version `done`. Raises `StoreUnavailable` when the store is ahead of this Farebox."""
    if scripts and done > scripts[-1][0]:
        raise StoreUnavailable(f"{name} was written by a newer Farebox (version {done})", remedy="upgrade farebox")
    return [script for script in scripts if script[0] > done]


def _split_statements(text: str) -> list[str]:
    """Return the statements of a script, each with the comments before it."""
    statements, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    # What is left is a comment, or a last statement without its semicolon.
    return [*statements, current] if current.strip() else statements

"""Prints the scoreboard after the tests of this folder."""

from __future__ import annotations

from typing import Any

from tests.attacks.score import SCORE, lines


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what all attacks of this run came to."""
    if SCORE.attacks:
        terminalreporter.section("scoreboard: the first six rows must be 0")
        for line in lines(SCORE):
            terminalreporter.write_line(line)

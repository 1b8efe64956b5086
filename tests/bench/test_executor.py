"""Runs that are killed again and again pay for each node once and lose no answer that was paid for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]


def executor(*options: str) -> dict[str, Any]:
    """Return what `python -m bench executor` prints; it exits with 1 where a gate is missed."""
    command = [sys.executable, "-m", "bench", "executor", "--json", *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_run_that_is_killed_again_and_again_pays_once_and_loses_nothing() -> None:
    document = executor("--kill", "25")
    missed = [gate for gate in document["gates"] if not gate["met"] and "CPU" not in gate["promise"]]
    assert missed == []
    assert document["books"]["payments"] > 0

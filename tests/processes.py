"""Runs `farebox` as a user does: a process of its own, that says when it is ready and ends when it is asked to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

__all__ = ["farebox_process"]

_LOG_TAIL_CHARS = 600


@contextmanager
def farebox_process(folder: Path, *words: str) -> Iterator[dict[str, Any]]:
    """Run `farebox WORDS --json` in `folder` for the time of the context; yield what it prints when it is ready.

    Its home is `folder/home`, its log `folder/log.txt`. It must end with exit code 0 on SIGTERM.
    """
    log_file = folder / "log.txt"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", *words, "--json"],
            cwd=folder,
            env={**environment, "FAREBOX_HOME": str(folder / "home")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        else:
            said = log_file.read_text(errors="replace")[-_LOG_TAIL_CHARS:]
            raise AssertionError(f"farebox {' '.join(words)}: ended before it was ready: {said}")
        yield json.loads(text)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, f"farebox {' '.join(words)}: exit code {process.returncode}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

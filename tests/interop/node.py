"""The TypeScript peers: one Node process, spoken to in lines of JSON, whose packages are those of config/interop."""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import PATIENCE_S

__all__ = ["Node", "PeerFailed", "interop_packages"]

_SCRIPT = Path(__file__).parent / "peers" / "peers.mjs"
_PACKAGES = Path(__file__).parents[2] / "config" / "interop" / "package.json"
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_CHARS = 2000


class PeerFailed(AssertionError):
    """A peer gave no answer, or said what went wrong inside it."""


def interop_packages() -> Path:
    """Return the package.json whose packages the peers are. Raises `PeerFailed` where they are not installed."""
    if not (_PACKAGES.parent / "node_modules" / "@x402").is_dir() or shutil.which("node") is None:
        raise PeerFailed("the official TypeScript packages are not installed: run `make setup-interop`")
    return _PACKAGES


class Node:
    """A running Node process; calls of one thread at a time."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._answers: queue.Queue[str] = queue.Queue()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process that writes it
        self._process = subprocess.Popen(
            ["node", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "FAREBOX_INTEROP_PACKAGES": str(interop_packages()), "NODE_ENV": "production"},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def call(self, operation: str, **options: Any) -> Any:
        """Return what an operation of `peers.mjs` resolves to. Raises `PeerFailed` with the peer's own words."""
        assert self._process.stdin is not None
        request = {"id": next(self._ids), "op": operation, **options}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._answers.get(timeout=PATIENCE_S))
        except (OSError, queue.Empty, json.JSONDecodeError) as error:
            raise PeerFailed(f"{operation}: {type(error).__name__}; node said:\n{self._last_words()}") from None
        assert answer["id"] == request["id"], "an answer to another question"
        if "error" in answer:
            raise PeerFailed(f"{operation}: {answer['error']}")
        return answer["result"]

    def stop(self) -> None:
        """End the process. What it serves ends with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_STOP_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-_LOG_TAIL_CHARS:]

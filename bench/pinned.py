"""A process on a core of its own that does one job after another, so that load is not measured with what it loads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

__all__ = ["PinnedProcess"]

_STARTED_S, _STOP_TIMEOUT_S = 120.0, 10.0


class PinnedProcess:
    """The process, running. Use as a context manager; `ready` is what it said when it could begin.

    `main` takes the core and its end of a pipe. It says that it is ready, then answers every job with what the job
    brought, or a text where it failed, until the pipe ends.
    """

    def __init__(self, main: Callable[[int, Connection], None], core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(core, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._ours.poll(_STARTED_S), "the load generator did not start"
        self.ready: Any = self._ours.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join(_STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()

    def do(self, job: object) -> Any:
        """Return what a job brought. Raises `RuntimeError` where it failed."""
        self._ours.send(job)
        brought = self._ours.recv()
        if isinstance(brought, str):
            raise RuntimeError(brought)  # noqa: TRY004 - what the other process says
        return brought

"""Processes of the benches, each with a pipe; with a core of its own where load is measured beside its server."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

__all__ = ["PinnedProcess", "SpawnedProcess"]

_STARTED_S, _STOP_TIMEOUT_S = 120.0, 10.0


class SpawnedProcess:
    """A process that runs `main` with its arguments and its end of a pipe. Use as a context manager."""

    def __init__(self, main: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join(_STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()


class PinnedProcess(SpawnedProcess):
    """A process on a core of its own that does one job after another; `ready` is what it said when it could begin.

    `main` takes the core and its end of a pipe. It says that it is ready, then answers every job with what the job
    brought, or a text where it failed, until the pipe ends.
    """

    def __init__(self, main: Callable[[int, Connection], None], core: int) -> None:
        super().__init__(main, core)
        assert self._ours.poll(_STARTED_S), "the load generator did not start"
        self.ready: Any = self._ours.recv()

    def do(self, job: object) -> Any:
        """Return what a job brought. Raises `RuntimeError` where it failed."""
        self._ours.send(job)
        brought = self._ours.recv()
        if isinstance(brought, str):
            raise RuntimeError(brought)  # noqa: TRY004 - what the other process says
        return brought

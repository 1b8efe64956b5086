"""A crew of real processes as the demo has one, whose commands are forked from a warm process."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self, cast

from contracts.interrupts import held_back
from gateway.demo.processes import Crew
from tests.patience import PATIENCE_S
from tests.warm import PROGRAMS, Started, Warm

__all__ = ["Forked", "WarmCrew"]


class WarmCrew(Crew):
    """A crew whose commands of ours start warm; every other program starts as it is."""

    def __init__(self, folder: Path, environment: Mapping[str, str], warm: Warm) -> None:
        super().__init__(folder, environment)
        self._warm = warm
        self._count = itertools.count(1)

    def _spawn(
        self, command: Sequence[str], stdout: int | IO[bytes], stderr: int, variables: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        program = _program_of(command)
        if program is None:
            return super()._spawn(command, stdout, stderr, variables)
        out = self._logs / f"out-{next(self._count)}" if isinstance(stdout, int) else Path(stdout.name)
        err = out.with_suffix(".err") if stderr == subprocess.PIPE else out
        environment = {**self.environment, **variables}
        with held_back():
            started = self._warm.start(
                command[3:], self.folder, out, errors=err, program=program, environment=environment
            )
            process = cast("subprocess.Popen[bytes]", Forked(self._warm, started, err))
            self._running.append(process)
        return process


class Forked:
    """What one asks of `subprocess.Popen`, for a process that is the warm one's child."""

    stdout = stderr = None

    def __init__(self, warm: Warm, started: Started, errors: Path | None = None) -> None:
        self._warm, self._started, self._errors = warm, started, errors or started.log
        self.pid = started.pid
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def poll(self) -> int | None:
        if self.returncode is None and self._warm.has_ended(self._started):
            self.wait()
        return self.returncode

    def wait(self, timeout: float = PATIENCE_S) -> int:
        self.returncode = self._warm.wait(self._started, timeout)
        return self.returncode

    def communicate(self, timeout: float = PATIENCE_S) -> tuple[bytes, bytes]:
        self.wait(timeout)
        return self._started.log.read_bytes(), self._errors.read_bytes()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _program_of(command: Sequence[str]) -> str | None:
    if list(command[:2]) != [sys.executable, "-m"]:
        return None
    return next((name for name, module in PROGRAMS.items() if module == command[2]), None)

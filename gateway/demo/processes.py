"""The processes of a demo: each with a log file, ready when it answers, and none outliving the demo."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from contracts.errors import LocalError
from contracts.interrupts import INTERRUPTS, held_back
from contracts.tls import tls_context

__all__ = [
    "Child",
    "Crew",
    "DemoFailed",
    "demo_folder",
    "farebox_command",
    "interrupt_on_termination",
    "wait_until",
]

# A command of ours takes about a second; a busy machine may need a hundred times that.
_COMMAND_TIMEOUT_S = 120.0
_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 8.0
_POLL_S = 0.02
_LOG_TAIL_LINES = 15
_LOG_TAIL_BYTES = 16 * 1024


class DemoFailed(LocalError):
    """A part of the demo did not start, ended early or gave a wrong answer; the message carries its last words."""

    code = "demo_failed"
    remedy = "read the part's last words above"


@dataclass(frozen=True, slots=True)
class Child:
    """A running process and where its log goes."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def last_words(self) -> str:
        """Return the end of the log."""
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - _LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:]) or "  (it said nothing)"

    def failed(self, what: str) -> DemoFailed:
        """Return the error that says `what` happened, with the end of the log."""
        return DemoFailed(f"{self.name}: {what}. The end of {self.log_file}:\n{self.last_words()}")

    def kill(self) -> None:
        """`kill -9`, with everything it started; returns when it is gone."""
        _kill(self.process)


class Crew:
    """Starts processes in `folder`, and ends all of them when the context ends, however and whenever it ends.

    An interrupt takes effect only when what was started is written down, and never while children are being ended.
    `environment` is added to this process's own, out of which every FAREBOX_ variable and proxy is dropped: a demo
    talks to its own parts only.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = {**_neutral_environment(), **environment}
        self._logs = folder / "logs"
        self._children: list[Child] = []
        self._running: list[subprocess.Popen[bytes]] = []
        # An interrupt can strike between the context's last line and `__exit__`'s first: then Python's end is theirs.
        weakref.finalize(self, _end, self._running)

    def __enter__(self) -> Self:
        self._logs.mkdir(exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], *, variables: Mapping[str, str] | None = None) -> Child:
        """Start a process whose output goes to `logs/NAME.log`; a second start of a name goes on in the same log."""
        log_file = self._logs / f"{name}.log"
        with log_file.open("ab") as log:
            process = self._spawn(command, log, subprocess.STDOUT, variables or {})
        child = Child(name, process, log_file)
        self._children.append(child)
        return child

    def run(self, name: str, command: Sequence[str], *, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Run a command to its end and return what it wrote to stdout. Raises `DemoFailed` unless it exits with 0."""
        with self._spawn(command, subprocess.PIPE, subprocess.PIPE, {}) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                _end([process])
                raise DemoFailed(f"{name}: not done after {timeout_s:.0f} s") from None
        self._running.remove(process)
        if process.returncode != 0:
            said = (err or out).decode(errors="replace").strip()
            raise DemoFailed(f"{name}: exit code {process.returncode}\n{said}")
        return out.decode()

    def wait_ready(self, child: Child, url: str, *, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Return when `url` answers 200. Raises `DemoFailed` when the child ends before, or the time is over."""
        wait_until(lambda: _answers(url), child, f"{url} did not answer 200", timeout_s=timeout_s)

    def check_alive(self) -> None:
        """Raise `DemoFailed` naming a child that ended by itself."""
        for child in self._children:
            if (code := child.process.poll()) is not None:
                raise child.failed(f"ended with code {code}")

    def stop(self) -> None:
        """End every child, youngest first; what does not end in time is killed with all it started."""
        _end(self._running)
        self._children.clear()

    def _spawn(
        self, command: Sequence[str], stdout: int | IO[bytes], stderr: int, variables: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with held_back():
            # In a session of its own, so that Ctrl-C reaches us alone and we end the children in order.
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            self._running.append(process)
        return process


def wait_until(
    condition: Callable[[], bool], child: Child, problem: str, *, timeout_s: float = _READY_TIMEOUT_S
) -> None:
    """Return when `condition` holds. Raises `DemoFailed` with the child's last words when it ends or time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if (code := child.process.poll()) is not None:
            raise child.failed(f"ended with code {code}")
        if time.monotonic() > deadline:
            raise child.failed(f"{problem} within {timeout_s:.0f} s")
        time.sleep(_POLL_S)


def farebox_command(*arguments: str) -> list[str]:
    """Return the command line of `farebox ARGUMENTS` under this interpreter."""
    return [sys.executable, "-m", "gateway.cli", *arguments]


@contextlib.contextmanager
def demo_folder() -> Iterator[Path]:
    """Give a folder that only the user can read; it is removed at the end, unless a part failed: its log explains."""
    folder = Path(tempfile.mkdtemp(prefix="farebox-demo-"))
    try:
        yield folder
    except DemoFailed:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def interrupt_on_termination() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C for the time of the context, so that clean-up runs for them too.

    Only the first of them interrupts: clean-up ends by itself, and an impatient second Ctrl-C must not cut it short.
    """
    interrupted = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in zip(INTERRUPTS, before, strict=True):
            signal.signal(number, handler)


def _end(running: list[subprocess.Popen[bytes]]) -> None:
    with held_back():
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in reversed(running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _kill(process)
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()
        running.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False, verify=tls_context()).status_code == 200
    except httpx.HTTPError:
        return False


def _neutral_environment() -> dict[str, str]:
    dropped = ("FAREBOX_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    # The local chain's own folder and binary stay what the user chose.
    tools = {name: os.environ[name] for name in ("FAREBOX_DEVNET_HOME", "FAREBOX_ANVIL") if name in os.environ}
    return {**kept, **tools, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}

"""Starts `farebox` processes quickly: a warm process that has imported everything forks one for each start.

What runs is the whole command in a process of its own, with its own session, environment, folder and log, and a
`kill -9` ends it like any other. Only the second of importing is saved, which is what lets a thousand kills fit into
minutes. That a cold start works is shown elsewhere: by the demo, the commands of the docs, and the tests of packaging.

Run as a module it is the warm process: one JSON request a line on stdin, one JSON answer a line on stdout. When its
stdin ends, it kills everything it started.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from contracts.nesting import recursion_limit_kept
from contracts.tls import tls_context
from tests.patience import PATIENCE_S

__all__ = ["PROGRAMS", "Done", "Started", "Warm", "clean_environment"]

PROGRAMS = {"farebox": "gateway.cli", "model-server": "gateway.demo.model_server"}
# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
# Imported by the commands when they run; a process that was killed shall not pay for them again. Nothing that starts
# threads, as numpy does, which a fork would not have.
_LAZY = (
    "anyio._backends._asyncio",
    "buyer.audit",
    "buyer.discovery",
    "buyer.documents",
    "buyer.funds",
    "buyer.orders",
    "buyer.reconcile",
    "buyer.refill",
    "buyer.signers",
    "contracts.evm.evidence",
    "encodings.idna",
    "eth_account",
    "gateway.admin",
    "gateway.app",
    "gateway.desk",
    "gateway.doctor",
    "gateway.selfcheck",
    "gateway.serve",
    "httptools",
    "rich.table",
    "seller.advice",
    "seller.audit",
    "seller.run",
    "seller.service",
    "seller.settlement.key",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "uvloop",
)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that would steer Farebox or its connections."""
    dropped = ("FAREBOX_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    tools = {name: os.environ[name] for name in ("FAREBOX_DEVNET_HOME", "FAREBOX_ANVIL") if name in os.environ}
    return {**kept, **tools, "NO_COLOR": "1", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Started:
    """One process forked from the warm one. `log` has all it writes, unless its errors have a file of their own."""

    name: str
    pid: int
    log: Path

    def kill(self) -> None:
        """`kill -9`, with everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a command: its exit code, or minus the signal that ended it, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed with `--json`."""
        return json.loads(self.out)


class Warm:
    """The warm process. Use as a context manager; nothing it started outlives it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,
        )
        self._say({"do": "hello"})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE_S)
        self._process.stdout.close()

    def start(
        self,
        words: Sequence[str],
        folder: Path,
        log: Path,
        *,
        errors: Path | None = None,
        program: str = "farebox",
        environment: Mapping[str, str] | None = None,
        clock_offset_s: float = 0,
    ) -> Started:
        """Start `program WORDS` in `folder`; what it writes is appended to `log`, its stderr to `errors` if given.

        With `clock_offset_s` its clock is wrong by as much (`tests.faults.skewed`), and it starts cold.
        """
        log.parent.mkdir(exist_ok=True)
        answer = self._say(
            {
                "do": "start",
                "program": program,
                "words": list(words),
                "folder": str(folder),
                "log": str(log),
                "errors": str(errors or log),
                "environment": dict(environment or {}),
                "clock_offset_s": clock_offset_s,
            }
        )
        return Started(log.stem, answer["pid"], log)

    def wait(self, started: Started, timeout_s: float = PATIENCE_S) -> int:
        """Wait until a process has ended; return its exit code, or minus the signal that ended it.

        Others can be started meanwhile. Raises `subprocess.TimeoutExpired`.
        """
        # One that has ended is reaped, and its number may be another's by now.
        if not self.has_ended(started):
            _wait_for_end(started, timeout_s)
        code: int = self._say({"do": "wait", "pid": started.pid})["code"]
        return code

    def has_ended(self, started: Started) -> bool:
        """Tell whether a process has ended."""
        ended: bool = self._say({"do": "poll", "pid": started.pid})["ended"]
        return ended

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        clock_offset_s: float = 0,
    ) -> Done:
        """Run `farebox WORDS` to its end. One command of a name runs in a folder at a time."""
        log = folder / "logs" / f"farebox {words[0]}.log"
        errors = log.with_suffix(".err")
        for file in (log, errors):
            file.unlink(missing_ok=True)
        started = self.start(words, folder, log, errors=errors, environment=environment, clock_offset_s=clock_offset_s)
        code = self.wait(started)
        return Done(code, log.read_text(errors="replace"), errors.read_text(errors="replace"))

    def _say(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, "the warm process has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def _wait_for_end(started: Started, timeout_s: float) -> None:
    try:
        handle = os.pidfd_open(started.pid)
    except (AttributeError, OSError):
        # This system has no such handles: the warm process waits, and nothing can be started meanwhile.
        return
    try:
        if not select.select([handle], [], [], timeout_s)[0]:
            raise subprocess.TimeoutExpired(started.name, timeout_s)
    finally:
        os.close(handle)


class _Parent:
    """The warm process itself."""

    def __init__(self) -> None:
        self._codes: dict[int, int | None] = {}

    def serve(self) -> None:
        with recursion_limit_kept():
            for module in (*PROGRAMS.values(), *_LAZY):
                # A command that is not there yet is reported by the one who asks for it.
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(module)
        tls_context()
        gc.collect()
        gc.freeze()
        for line in sys.stdin:
            request = json.loads(line)
            answer = getattr(self, "_" + request.pop("do"))(**request)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        for pid in [pid for pid, code in self._codes.items() if code is None]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _hello(self) -> dict[str, Any]:
        return {}

    def _start(self, **order: Any) -> dict[str, Any]:
        ready_read, ready_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ready_read)
            _become(ready_write, **order)
        os.close(ready_write)
        # Only a leader of its own group can be killed with all it starts; and its log is there from now on.
        os.read(ready_read, 1)
        os.close(ready_read)
        self._codes[pid] = None
        return {"pid": pid}

    def _wait(self, pid: int) -> dict[str, Any]:
        if self._codes[pid] is None:
            self._codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return {"code": self._codes[pid]}

    def _poll(self, pid: int) -> dict[str, Any]:
        if self._codes[pid] is None:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._codes[pid] = os.waitstatus_to_exitcode(status)
        return {"ended": self._codes[pid] is not None}


def _become(
    ready: int,
    program: str,
    words: list[str],
    folder: str,
    log: str,
    errors: str,
    environment: dict[str, str],
    clock_offset_s: float,
) -> None:
    """Turn the fork into a command. Never returns."""
    code = 1
    try:
        os.setsid()
        _die_with_parent()
        _redirect(log, errors)
        os.close(ready)
        os.chdir(folder)
        os.environ.update(environment)
        if clock_offset_s:
            _exec_skewed(clock_offset_s, PROGRAMS[program], words)
        from contracts import crash

        crash.arm(os.environ.get(crash.VARIABLE))
        sys.argv = [program, *words]
        sys.orig_argv[:] = [sys.executable, "-m", PROGRAMS[program], *words]
        importlib.import_module(PROGRAMS[program]).main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # noqa: BLE001 - the log is all that remains of it
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _exec_skewed(offset_s: float, module: str, words: list[str]) -> None:
    """What was imported with the right clock may have kept it: start over."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "tests.faults.skewed", str(offset_s), module, *words]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": root})


def _die_with_parent() -> None:
    """Ask the kernel to end us with the warm process, also when that is killed itself. Linux only; else no harm."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _redirect(log: str, errors: str) -> None:
    for number, path in ((1, log), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    _Parent().serve()

"""A process with everything it started: its CPU time and memory. Linux, through /proc and the process clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Tree", "cores", "on_core"]


class Tree:
    """Processes by their ids, with their descendants as they are at each question."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = tuple(roots)

    def cpu_s(self) -> float:
        """Return the CPU seconds that all threads of the living have used, kernel time included."""
        # A process clock counts nanoseconds, where /proc/PID/stat counts ticks of ten milliseconds.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self._pids())

    def memory_bytes(self) -> int:
        """Return the resident memory, what is shared between the processes divided among them."""
        return sum(_proportional_bytes(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        found, waiting = [], list(self._roots)
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += _children(pid)
        return found


def cores() -> tuple[int, int]:
    """Return the core for what is measured and the one for everything else; one and the same where there is one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[0]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep what is started inside the block on one core, for as long as it runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text("ascii").split()
    ]


def _proportional_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup without a Pss")

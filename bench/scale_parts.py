"""What the measurements of `bench scale` have in common: a process of its own for each, its memory, its times."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.processes import in_processes

__all__ = ["cpu_us", "looked", "memory_mb", "timed_ms", "wall_ms"]


Job = TypeVar("Job")
Found = TypeVar("Found")


def looked(work: Callable[[Job], Found], job: Job, *, apart: bool) -> Found:
    """Return what `work` finds, in a process of its own where `apart`: only there its memory is its own."""
    return in_processes(work, [job])[0] if apart else work(job)


def cpu_us(step: Callable[[int], object], count: int) -> float:
    """Return CPU microseconds of this process, its threads included, for each of `count` steps."""
    cpu_s = time.process_time()
    for index in range(count):
        step(index)
    return (time.process_time() - cpu_s) / count * 1e6


def wall_ms(work: Callable[[], object], times: int = 5) -> float:
    """Return the median wall time of some repetitions in milliseconds."""
    return timed_ms(work, times)[0]


def timed_ms(work: Callable[[], object], times: int = 5) -> tuple[float, float]:
    """Return the medians of wall time and of this process's CPU time in milliseconds."""
    walls, cpus = [], []
    for _ in range(times):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        work()
        walls.append((time.perf_counter() - wall_s) * 1000)
        cpus.append((time.process_time() - cpu_s) * 1000)
    return statistics.median(walls), statistics.median(cpus)


def memory_mb() -> float:
    """Return the most memory this process has had at once."""
    if sys.platform == "linux":
        # Unlike getrusage, this does not remember the process that this one was forked from.
        text = Path("/proc/self/status").read_text("ascii")
        return int(text.partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

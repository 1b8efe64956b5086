"""Runs one job a seed in processes of their own, one thread each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["in_processes"]

Job = TypeVar("Job")
Found = TypeVar("Found")

PROCESSES_MAX = 2


def in_processes(work: Callable[[Job], Found], jobs: Sequence[Job]) -> list[Found]:
    """Return what `work`, a function of a module, found for each job, in order."""
    # Trees and matrices are small here: more threads than one only wait for each other.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    count = min(PROCESSES_MAX, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, jobs))

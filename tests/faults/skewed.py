"""Runs a command in a process of its own whose clock is wrong: `python -m tests.faults.skewed SECONDS MODULE WORDS…`.

A stand-in for a machine with a wrong clock: `time.time` and `time.time_ns` are changed before anything of Farebox is
imported, so that everything in the process, from the first line on, sees the wrong time. The chain does not.
"""

from __future__ import annotations

import importlib
import sys
import time


def skew(offset_s: float) -> None:
    """Move this process's clock."""
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() + offset_s
    time.time_ns = lambda: true_time_ns() + int(offset_s * 10**9)


if __name__ == "__main__":
    skew(float(sys.argv[1]))
    module, words = sys.argv[2], sys.argv[3:]
    sys.argv = ["farebox", *words]
    importlib.import_module(module).main()

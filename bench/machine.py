"""What a figure was measured on: processor, system, and the versions of everything compared."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["pin_to_one_core", "this_machine"]

_PACKAGES = (
    "coincurve",
    "safe-pysha3",
    "msgspec",
    "pybase64",
    "eth-account",
    "x402",
    "httpx",
    "fastapi",
    "starlette",
    "uvloop",
)


def this_machine() -> dict[str, Any]:
    """Return the machine and the versions, as members of a JSON document."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def pin_to_one_core() -> None:
    """Keep this process, and the threads it starts, on its last core, where the system can do that."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Ports of 127.0.0.1 for processes that start later."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import socket
import tempfile
from pathlib import Path

from gateway.demo.processes import DemoFailed

__all__ = ["free_ports"]

# Below those that systems hand out to connections in the meantime.
_PORTS = range(10_000, 32_000)
_kept: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Return `count` free ports of 127.0.0.1 that nobody else who asks here gets before this process ends.

    A port looks free until its listener is there, and again between that one's end and its next start: what another
    process took in the meantime would be a false answer here, and a failed start there. Raises `DemoFailed`.
    """
    found: list[int] = []
    first = secrets.randbelow(len(_PORTS))
    for number in range(len(_PORTS)):
        if len(found) == count:
            return found
        port = _PORTS[(first + number) % len(_PORTS)]
        if port not in _kept and _is_free(port) and _keep(port):
            found.append(port)
    raise DemoFailed(f"fewer than {count} free ports from {_PORTS.start} to {_PORTS.stop - 1}")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _keep(port: int) -> bool:
    """Lock the byte of this port, which the system unlocks when this process ends, however it ends."""
    if (register := _register()) is not None:
        try:
            fcntl.lockf(register, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
    _kept.add(port)
    return True


@functools.cache
def _register() -> int | None:
    """Open the user's file of locks; where it cannot be used, ports are chosen as if nobody else chose any."""
    file = Path(tempfile.gettempdir()) / f"farebox-ports-{os.getuid()}"
    with contextlib.suppress(OSError):
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return None

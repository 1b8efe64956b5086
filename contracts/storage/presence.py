"""Who is at work on a store: a sign of life that ends with the process, however it dies.

Rows say which process has what in hand; its presence says whether that process still lives. A stored process id would
not: ids are used again, and another container's mean nothing here.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from contracts.errors import RequestInProgress, StoreUnavailable

__all__ = ["FilePresence", "Life", "Presence", "boot_id", "life_by_lock", "lock_file", "locked_file"]


class Life(enum.Enum):
    """What is known of another process."""

    ALIVE = "alive"
    ENDED = "ended"
    # The store came here without the signs of life that belong to it, as a restored copy does.
    UNTRACEABLE = "untraceable"


class Presence(Protocol):
    """This process, shown to the others. `id` is 16 hex digits, new for each presence."""

    id: str

    def hold(self) -> None:
        """Make sure that the others can see this process. Raises `StoreUnavailable` when they cannot."""

    def close(self) -> None:
        """Stop being seen."""


class FilePresence:
    """Presence on one machine: an operating-system lock on a file of its own, which the kernel releases."""

    def __init__(self, folder: Path) -> None:
        """Take a new lock in `folder`. Raises `StoreUnavailable`."""
        self.id = secrets.token_hex(8)
        self._path = lock_file(folder, self.id)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreUnavailable(f"cannot lock a file in {folder.name}: {error.strerror}") from None

    def hold(self) -> None:
        """A kernel's lock is never lost while its process lives."""

    def close(self) -> None:
        """See `Presence.close`."""
        with contextlib.suppress(OSError):
            os.close(self._lock)
        self._path.unlink(missing_ok=True)


def lock_file(folder: Path, presence_id: str) -> Path:
    """Return where the process that shows itself as `presence_id` holds its lock."""
    return folder / f"{presence_id}.lock"


def life_by_lock(path: Path) -> Life:
    """Tell by its lock file whether a process lives. Raises `StoreUnavailable`."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Life.UNTRACEABLE
    except OSError as error:
        raise StoreUnavailable(f"{path.name}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return Life.ALIVE
    finally:
        os.close(lock)
    return Life.ENDED


@contextlib.contextmanager
def locked_file(path: Path, name: str) -> Iterator[None]:
    """Hold an operating-system lock on `path` while the block runs. Raises `RequestInProgress` when it is held."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"{path.name}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestInProgress(
                f"{name}: another farebox process is at work on it", remedy="wait until it is done"
            ) from None
        yield
    finally:
        os.close(lock)


def boot_id() -> str:
    """Return what differs after every start of this machine; unique where the system tells nothing, which is safe."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            return subprocess.run(command, capture_output=True, check=True, timeout=5, text=True).stdout.strip()
    return secrets.token_hex(16)

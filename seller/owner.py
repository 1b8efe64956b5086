"""A process's claim to its half-done payments, which ends with the process.

Each process holds an operating-system lock on a file of its own beside the store. The kernel releases it when the
process dies, however it dies, so a lock that can be taken proves that its owner is gone; a stored process id would not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from contracts.errors import StoreUnavailable

__all__ = ["Owner"]


class Owner:
    """This process, as owner of the payments it works on."""

    def __init__(self, store: Path) -> None:
        """Take a new lock beside `store`. Raises `StoreUnavailable`."""
        self._folder = store.with_name(store.name + ".owners")
        self.id = secrets.token_hex(8)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._folder / self.id, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreUnavailable(f"cannot lock a file in {self._folder}: {error.strerror}") from None

    def is_gone(self, owner_id: str) -> bool:
        """Tell whether the process that calls itself `owner_id` has ended."""
        if owner_id == self.id:
            return False
        try:
            lock = os.open(self._folder / owner_id, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(lock)
        return True

    def forget(self, owner_id: str) -> None:
        """Remove what a process that is gone left behind."""
        (self._folder / owner_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the claim."""
        with contextlib.suppress(OSError):
            os.close(self._lock)
        self.forget(self.id)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

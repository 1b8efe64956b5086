"""FAREBOX_HOME: the folder of one buyer. It holds the pool, locks and references to signers, never a key."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConfigInvalid, RequestInProgress, StoreUnavailable

__all__ = ["Home"]


@dataclass(frozen=True, slots=True)
class Home:
    """The folder at `path`, mode 0700."""

    path: Path

    @classmethod
    def open(cls, path: Path | None = None) -> Home:
        """Open `path`, else `$FAREBOX_HOME`, else `~/.farebox`; made when missing, and closed to other users.

        Raises `ConfigInvalid` when it is not a folder of ours, `StoreUnavailable` when it cannot be made.
        """
        folder = path or Path(os.environ.get("FAREBOX_HOME") or "~/.farebox")
        folder = folder.expanduser().absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
        except FileExistsError:
            raise ConfigInvalid(f"FAREBOX_HOME: {folder} is not a folder") from None
        except OSError as error:
            raise StoreUnavailable(f"FAREBOX_HOME: {folder}: {error.strerror}") from None
        if status.st_uid != os.getuid():
            raise ConfigInvalid(f"FAREBOX_HOME: {folder} belongs to another user", remedy="name a folder of your own")
        if stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)
        return cls(folder)

    @property
    def database_url(self) -> str:
        """The store of the pool."""
        return f"sqlite:///{self.path / 'buyer.db'}"

    @property
    def has_pool(self) -> bool:
        """Whether there is a pool, which opening it would otherwise make."""
        return not self.database_url.startswith("sqlite:") or (self.path / "buyer.db").exists()

    def folder(self, name: str) -> Path:
        """Return a private folder inside, made when missing."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextmanager
    def exclusively(self, name: str) -> Iterator[None]:
        """Hold the lock `name` while the block runs; the kernel frees it when the process dies.

        Raises `RequestInProgress` when another process holds it.
        """
        path = self.folder("locks") / f"{name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RequestInProgress(
                    f"{name}: another farebox process is at work on it", remedy="wait until it is done"
                ) from None
            yield
        finally:
            os.close(descriptor)

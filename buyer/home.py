"""FAREBOX_HOME: the folder of one buyer. It holds the pool, locks and references to signers, never a key."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from contracts.environment import Environment
from contracts.errors import ConfigInvalid
from contracts.private_folder import make_private_folder
from contracts.storage import check_store_url

__all__ = ["STORE_VARIABLE", "Home"]

STORE_VARIABLE = "FAREBOX_STORE"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder at `path`, mode 0700. `store` is the URL of the pool where it is not in the folder."""

    path: Path
    store: str | None = None

    @classmethod
    def open(cls, path: Path | None = None, *, store: str | None = None) -> Home:
        """Open `path`, else `$FAREBOX_HOME`, else `~/.farebox`; made when missing, and closed to other users.

        The pool is in `store`, else in `$FAREBOX_STORE`, else in a SQLite file of the folder. Raises
        `ConfigInvalid` when it is not a folder of ours or no such store exists, `StoreUnavailable` when the folder
        cannot be made.
        """
        environment = Environment()
        store = store or environment.store
        if store is not None:
            check_store_url(store)
        folder = path.expanduser().absolute() if path else environment.home_folder
        make_private_folder(folder)
        return cls(folder, store)

    @property
    def database_url(self) -> str:
        """The store of the pool."""
        return self.store or f"sqlite:///{self.path / 'buyer.db'}"

    @property
    def has_pool(self) -> bool:
        """Whether there is a pool, which opening it would otherwise make."""
        return self.store is not None or (self.path / "buyer.db").exists()

    def check_private(self) -> None:
        """Refuse, with `ConfigInvalid`, a pool whose file other users can open: its signatures are as good as coins."""
        path = self.path / "buyer.db"
        if self.store is not None or not path.exists():
            return
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigInvalid(
                f"{path}: mode {mode:04o} lets other users open it",
                remedy=f"run `chmod 600 {path}`, and take what was readable for known to them",
            )

    def folder(self, name: str) -> Path:
        """Return a private folder inside, made when missing."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

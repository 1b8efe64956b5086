"""The folder of one buyer on disk: made when missing, and closed to other users."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from contracts.errors import ConfigInvalid, StoreUnavailable

__all__ = ["make_private_folder"]

_REMEDY = "name a folder that you can make and write in FAREBOX_HOME, or as `home` in gateway.yaml"


def make_private_folder(folder: Path) -> None:
    """Make `folder` with mode 0700, or take rights on it from others.

    Raises `ConfigInvalid` when it is not a folder of ours, `StoreUnavailable` when it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except FileExistsError:
        raise ConfigInvalid(f"FAREBOX_HOME: {folder} is not a folder", remedy=_REMEDY) from None
    except OSError as error:
        raise StoreUnavailable(f"FAREBOX_HOME: {folder}: {error.strerror}", remedy=_REMEDY) from None
    if status.st_uid != os.getuid():
        raise ConfigInvalid(f"FAREBOX_HOME: {folder} belongs to another user", remedy=_REMEDY)
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)

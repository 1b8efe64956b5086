"""Which kind of file system a file is on. SQLite's log and our notes and locks need one that a single machine owns.

Over a network, locks and shared memory of one machine are not seen by the next, and appended bytes may overwrite each
other: two machines would then spend the same authorization. Linux tells what is mounted where; elsewhere nobody asks.
"""

from __future__ import annotations

import re
from pathlib import Path

from contracts.errors import ConfigInvalid

__all__ = ["OVERRIDE", "check_disk", "filesystem_of", "may_be_shared"]

OVERRIDE = "FAREBOX_ALLOW_NETWORK_DISK"

_MOUNTS = Path("/proc/self/mounts")
_OVER_A_NETWORK = frozenset(
    [
        "afs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    ]
)
# How virtual machines and containers lend their host's folders, which one machine alone may well own.
_LENT = frozenset(("9p", "virtiofs", "vboxsf", "fuse.grpcfuse", "fuse.vmhgfs-fuse"))
# The kernel writes blanks and backslashes of a path as \040 and the like.
_ESCAPED = re.compile(r"\\([0-7]{3})")


def check_disk(folder: Path) -> None:
    """Refuse a folder that is on a network file system, unless the override is set. Raises `ConfigInvalid`."""
    kind = filesystem_of(folder)
    if kind not in _OVER_A_NETWORK:
        return
    # Imported here because nobody else in this room reads the environment.
    from contracts.environment import Environment

    if not Environment().allow_network_disk:
        raise ConfigInvalid(
            f"{folder} is on a network file system ({kind}), where a second machine spoils books, or spends from them",
            remedy="put it on a disk of this machine; what several machines share belongs into PostgreSQL (`store`); "
            f"{OVERRIDE}=1 goes on where one machine alone will ever use it",
        )


def may_be_shared(kind: str | None) -> bool:
    """Tell whether another machine could have the same folder open, on a file system of this kind."""
    return kind in _OVER_A_NETWORK or kind in _LENT


def filesystem_of(folder: Path) -> str | None:
    """Return the kind of file system that a folder is on, as `ext4` or `nfs4`; None where nobody tells."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    folder = folder.resolve()
    found: tuple[int, str | None] = (0, None)
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        path = Path(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), point))
        # What is mounted last on the same point hides what was there.
        if folder.is_relative_to(path) and len(path.parts) >= found[0]:
            found = len(path.parts), kind
    return found[1]

"""What the registry's commands share: the index of the home, and where files on IPFS are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from registry.index import Index
    from registry.retrieve import Gateways

__all__ = ["gateways", "the_index"]


def _index_path(given: Path | None = None) -> Path:
    """Return the index file: given, else `$FAREBOX_INDEX`, else `registry.db` in `$FAREBOX_HOME` (`~/.farebox`).

    Raises as `make_private_folder`.
    """
    from contracts.environment import Environment
    from contracts.private_folder import make_private_folder

    environment = Environment()
    if named := given or environment.index:
        return Path(named).expanduser().absolute()
    home = environment.home_folder
    make_private_folder(home)
    return home / "registry.db"


@contextmanager
def the_index(given: Path | None = None, *, must_exist: bool = False) -> Iterator[Index]:
    """Open the index for one command. Raises `UsageError` when it must be there and is not."""
    from contracts.errors import UsageError
    from registry.index import open_index

    path = _index_path(given)
    if must_exist and not path.exists():
        raise UsageError(
            f"{path}: there is no index yet",
            remedy="run `farebox discover sync --chain base-sepolia --rpc URL`, or `farebox discover import FILE`",
        )
    with open_index(path) as index:
        yield index


def gateways(ipfs: str | None, *, allow_private: bool) -> Gateways:
    """Return where files on IPFS are asked for: given, else `$FAREBOX_IPFS_GATEWAY`, else a public gateway.

    Raises `UsageError` for one that the network guard would not reach.
    """
    from contracts.environment import Environment
    from contracts.errors import UsageError
    from registry.guard import NetworkPolicy, Refused
    from registry.retrieve import IPFS_GATEWAY, Gateways

    url = (ipfs or Environment().ipfs_gateway or IPFS_GATEWAY).rstrip("/")
    try:
        NetworkPolicy(allow_private=allow_private).check_url(url)
    except Refused:
        raise UsageError(
            f"--ipfs-gateway: expected https:// and a host, got {url[:80]!r}",
            remedy="a gateway of your own network needs --allow-private, too",
        ) from None
    return Gateways(ipfs=url)

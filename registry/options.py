"""Options that several commands of the registry take, and how strangers are reached under them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from registry.fetch import Fetcher

__all__ = ["Agent", "AllowPrivate", "Chain", "IndexFile", "IpfsGateway", "Json", "RpcOption", "stranger_fetcher"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Agent = Annotated[str, typer.Argument(metavar="AGENT", help="eip155:84532:0x…/42, or 84532:42.")]
IndexFile = Annotated[
    Path | None, typer.Option("--index", metavar="FILE", help="The index; else FAREBOX_INDEX, else in FAREBOX_HOME.")
]
RpcOption = Annotated[
    list[str] | None,
    typer.Option("--rpc", metavar="URL", help="An endpoint of the chain; repeatable. Also FAREBOX_RPC."),
]
AllowPrivate = Annotated[
    bool,
    typer.Option(
        "--allow-private", help="Reach private addresses and plain http: for tests and a chain of your own only."
    ),
]
Chain = Annotated[str, typer.Option("--chain", metavar="NETWORK", help="base-sepolia, eip155:8453, …")]
IpfsGateway = Annotated[
    str | None,
    typer.Option(
        "--ipfs-gateway",
        metavar="URL",
        help="Instead of https://ipfs.io; also FAREBOX_IPFS_GATEWAY. What it answers is checked against the id.",
    ),
]


def stranger_fetcher(*, allow_private: bool) -> Fetcher:
    """Return a fetcher under the network guard."""
    from registry.fetch import Fetcher
    from registry.guard import NetworkPolicy

    return Fetcher(NetworkPolicy(allow_private=allow_private))

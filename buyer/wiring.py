"""What commands share: the pool of the home, the wallet and endpoints meant, questions, and the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from contracts.console import given_rpc_urls, progress

if TYPE_CHECKING:
    from buyer.flow import Outgoing
    from buyer.pool import Pool
    from buyer.purchase import Purchase
    from buyer.signers import Signer

__all__ = [
    "absolute_spec",
    "all_purchases",
    "closing",
    "confirm",
    "given_signer",
    "request_from",
    "rpc_urls_for",
    "signer_spec",
    "the_pool",
]


@contextmanager
def the_pool() -> Iterator[Pool]:
    """Open the pool of FAREBOX_HOME for one command."""
    from buyer.home import Home
    from buyer.pool import Pool

    with Pool.open(Home.open()) as pool:
        yield pool


@contextmanager
def closing(signer: Signer) -> Iterator[Signer]:
    """Close a signer when the block ends, so that its key lives no longer than needed."""
    try:
        yield signer
    finally:
        signer.close()


def all_purchases(pool: Pool) -> list[Purchase]:
    """Return what is for spending, then removed and one-shot ones that are still unsettled."""
    live = pool.purchases()
    known = {purchase.id for purchase in live}
    return live + [purchase for purchase in pool.unsettled() if purchase.id not in known]


def signer_spec(given: str | None, pool: Pool, name: str | None) -> str:
    """Return the signer given, else the one noted for the purchase. Raises `UsageError`."""
    from buyer.signers import recall_signer
    from contracts.errors import NameUnknown

    if given is not None:
        return given
    if name is not None:
        try:
            return recall_signer(pool.home, name)
        except NameUnknown:
            pass
    return given_signer(None)


def given_signer(given: str | None) -> str:
    """Return the signer given. Raises `UsageError` when none is."""
    from contracts.errors import UsageError

    if given is None:
        raise UsageError(
            "--signer: is required", remedy="name the wallet: --signer keyfile:PATH, keystore:PATH or remote:URL"
        )
    return given


def absolute_spec(spec: str) -> str:
    """Return a signer whose path does not depend on the folder a later command is run in."""
    kind, _, place = spec.partition(":")
    return f"{kind}:{Path(place).expanduser().absolute()}" if kind in ("keyfile", "keystore") else spec


def rpc_urls_for(given: list[str] | None, pool: Pool, name: str | None) -> list[str]:
    """Return the endpoints given, else those of the purchase, else all that the home knows."""
    urls = given_rpc_urls(given)
    if urls:
        return urls
    purchases = pool.purchases()
    own = [url for purchase in purchases if purchase.name == name for url in purchase.rpc_urls]
    return own or list(dict.fromkeys(url for purchase in purchases for url in purchase.rpc_urls))


def confirm(question: str, *, yes: bool) -> None:
    """Ask on stderr. Raises `UsageError` where nobody can be asked, `typer.Exit` when the answer is no."""
    from contracts.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here", remedy="pass --yes to agree beforehand")
    if not typer.confirm(question, err=True):
        progress("nothing was signed")
        raise typer.Exit(1)


def request_from(url: str, method: str | None, data: str | None, content_type: str) -> Outgoing:
    """Return the request that `farebox pay` was told to make. Raises `UsageError`."""
    from buyer.flow import Outgoing
    from contracts.errors import UsageError

    verb = (method or ("GET" if data is None else "POST")).upper()
    if not verb.isalpha() or not verb.isascii():
        raise UsageError(f"--method: expected a word such as GET or POST, got {verb[:20]!r}")
    if data is None:
        return Outgoing(verb, url)
    body = data.encode()
    try:
        if data == "@-":
            body = sys.stdin.buffer.read()
        elif data.startswith("@"):
            body = Path(data[1:]).read_bytes()
    except OSError as error:
        raise UsageError(f"--data: {data[1:]}: {error.strerror}") from None
    return Outgoing(verb, url, [("content-type", content_type)], body)

"""`farebox selfcheck`: books against themselves and against the chain, each difference in words.

Nothing is spent and nothing is signed. What the chain is merely ahead with (a settlement under way, an outcome that is
not booked yet) is told as a note and is no failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.console import exit_on_error, out, print_document, printable
from gateway.options import ConfigFile, Json

if TYPE_CHECKING:
    from buyer.home import Home
    from contracts.audit import Finding

__all__ = ["check_books", "selfcheck"]

# Blocks that must hold a transfer before a seller's books are compared with it; 1 is the block it is in.
_DEPTH = 1


def selfcheck(
    rpc: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Endpoint for purchases that name none; repeatable.")
    ] = None,
    seller: Annotated[
        Path | None, typer.Option(metavar="SELLER.YAML", help="Also check the books of this seller.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Blocks that must hold a transfer to the seller.")] = _DEPTH,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Compare all books with themselves and with the chain. Exit code 1 when something differs."""
    with exit_on_error(as_json=as_json):
        from gateway.config import load_config

        settings = load_config(config)
        findings = asyncio.run(
            check_books(settings.open_home(), [*(rpc or []), *settings.rpc], seller=seller, depth=depth)
        )
        document: dict[str, Any] = {
            "ok": all(finding.ok for finding in findings),
            "findings": [
                {
                    "check": finding.check,
                    "ok": finding.ok,
                    "found": finding.found,
                    "differences": finding.differences,
                    "notes": finding.notes,
                }
                for finding in findings
            ],
        }
        print_document(document, as_json=as_json, human=lambda: _print(findings))
    raise typer.Exit(0 if document["ok"] else 1)


async def check_books(
    home: Home, rpc_urls: Sequence[str], *, seller: Path | None = None, depth: int = _DEPTH
) -> list[Finding]:
    """Return what was compared and what differs: the pool of `home`, and the books of the seller in `seller`.

    `rpc_urls` serve purchases and sellers that name no endpoint; without any, books are compared with themselves only.
    Raises `ConfigInvalid` or `StoreUnavailable` when there is nothing to read.
    """
    findings = await _check_buyer(home, rpc_urls)
    if seller is not None:
        findings += await _check_seller(seller, rpc_urls, depth)
    return findings


async def _check_buyer(home: Home, rpc_urls: Sequence[str]) -> list[Finding]:
    from buyer.audit import audit_chain, audit_pool
    from buyer.pool import Pool
    from contracts.audit import Finding

    if not home.has_pool:
        return [Finding("pool", f"none in {home.path}")]
    with Pool.open(home) as pool:
        return [*audit_pool(pool), *await audit_chain(pool, rpc_urls)]


async def _check_seller(path: Path, rpc_urls: Sequence[str], depth: int) -> list[Finding]:
    from contracts.audit import Finding
    from contracts.errors import ChainUnavailable
    from contracts.evm.rpc import Rpc
    from contracts.storage import open_database
    from seller.audit import audit_accounts, audit_books, audit_chain
    from seller.config import read_config

    config = read_config(path)
    chain_id, asset = config.chain.chain_id, config.token
    database = open_database(config.store, "seller.migrations")
    try:
        findings = audit_books(database, chain_id, asset)
        urls = list(config.rpc) or list(rpc_urls)
        if not urls:
            return [*findings, Finding("seller against the chain", "not compared: no endpoint is known")]
        try:
            async with Rpc(urls) as rpc:
                findings.append(await audit_chain(database, chain_id, asset, rpc, depth=depth))
                findings += await audit_accounts(database, chain_id, rpc)
        except ChainUnavailable as error:
            findings.append(
                Finding("seller against the chain", differences=[f"could not be compared: {error.message}"])
            )
        return findings
    finally:
        database.close()


def _print(findings: Sequence[Finding]) -> None:
    for finding in findings:
        out.print("[green]ok[/]  " if finding.ok else "[bold red]FAIL[/]", end=" ")
        out.print(printable(f"{finding.check}: {finding.found}"), markup=False)
        for difference in finding.differences:
            out.print(printable(f"       {difference}"), markup=False)
        for note in finding.notes:
            out.print(printable(f"       note: {note}"), markup=False, style="dim")

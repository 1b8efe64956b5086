"""`farebox discover verify` and `reputation`: what is proven about one agent, and what others make of it."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

import typer

from contracts.console import exit_on_error, given_rpc_urls, out, print_document
from registry.cli_discover import commands
from registry.experience import own_calls
from registry.options import Agent, AllowPrivate, IndexFile, IpfsGateway, Json, RpcOption, stranger_fetcher
from registry.wiring import gateways, the_index

__all__ = ["commands"]


@commands.command()
def verify(
    agent: Agent,
    *,
    rpc: RpcOption = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="The model to ask the price of.")
    ] = None,
    pin: Annotated[
        str | None, typer.Option("--pin", metavar="ADDRESS", help="Trust this payee for the agent from now on.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Accept the file as it is; any later change is a mismatch.")
    ] = False,
    ipfs_gateway: IpfsGateway = None,
    allow_private: AllowPrivate = False,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Check one agent now: chain, file, domain, content and payee, each by name. A mismatch is exit code 3."""
    blocked = False
    with exit_on_error(as_json=as_json), the_index(index, must_exist=True) as opened:
        from registry.shown import finding_document, print_findings
        from registry.verify import Check, verify_agent

        through = gateways(ipfs_gateway, allow_private=allow_private)
        check = Check(agent=agent, model=model, pin=pin, accept=accept, gateways=through)

        async def run() -> Any:
            async with stranger_fetcher(allow_private=allow_private) as fetcher:
                urls = given_rpc_urls(rpc)
                return await verify_agent(opened.database, fetcher, check, urls, int(time.time()))

        checked = asyncio.run(run())
        candidate, findings, is_live = checked.candidate, checked.findings, checked.is_live
        blocked = any(finding.verdict.state == "blocked" for finding in findings)
        document = {
            "ok": not blocked,
            "agent": str(candidate.agent),
            "chain_read": "live" if is_live else "index",
            "endpoints": [finding_document(finding) for finding in findings],
        }

        def human() -> None:
            out.print(f"{candidate.agent}, the chain read {'live' if is_live else 'from the index'}", markup=False)
            print_findings(findings)
            if not findings:
                out.print("its file names no endpoint that may be for sale over HTTP")

        print_document(document, as_json=as_json, human=human)
    raise typer.Exit(3 if blocked else 0)


@commands.command()
def reputation(
    agent: Agent,
    *,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", metavar="ADDRESS", help="Count this reviewer from now on."),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Look for proofs of payment in feedback files and on chain (needs --rpc).")
    ] = False,
    rpc: RpcOption = None,
    ipfs_gateway: IpfsGateway = None,
    allow_private: AllowPrivate = False,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Show who rated an agent, whose word counts, and what your own paid calls say."""
    with exit_on_error(as_json=as_json), the_index(index, must_exist=True) as opened:
        from contracts.address import parse_address
        from registry.candidates import find_candidate
        from registry.ratings import read_reputation
        from registry.ratings import trust as trust_reviewer
        from registry.shown import print_reputation, reputation_document

        now_s = int(time.time())
        candidate = opened.database.read(lambda connection: find_candidate(connection, agent))
        for text in trust or []:
            reviewer = parse_address(text, "--trust")
            opened.database.transact(partial(trust_reviewer, reviewer=reviewer, note="", now_s=now_s))
        if prove:
            from registry.proofs import prove_payments

            through = gateways(ipfs_gateway, allow_private=allow_private)

            async def run() -> None:
                async with stranger_fetcher(allow_private=allow_private) as fetcher:
                    urls = given_rpc_urls(rpc)
                    await prove_payments(opened.database, fetcher, candidate, urls, now_s, gateways=through)

            asyncio.run(run())
        calls = own_calls()
        found = opened.database.read(lambda connection: read_reputation(connection, candidate.agent, calls, now_s))
        document = {"ok": True, "agent": str(candidate.agent), **reputation_document(found)}
        print_document(document, as_json=as_json, human=lambda: print_reputation(found))

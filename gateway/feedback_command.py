"""`farebox feedback`: rate a seller after a paid call, with proof of the payment."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from buyer.options import Json, RpcOption, SignerOption, Yes
from contracts.console import exit_on_error, out, print_document

__all__ = ["feedback"]


def feedback(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="eip155:84532:0x…/42, or 84532:42.")],
    *,
    value: Annotated[str, typer.Option("--value", metavar="NUMBER", help="The rating; for stars 0 to 100.")],
    tag: Annotated[
        str, typer.Option("--tag", metavar="TAG", help="What it measures: starred, uptime, successRate, …")
    ] = "starred",
    tag2: Annotated[str, typer.Option("--tag2", metavar="TAG", help="A second tag, as the period of an uptime.")] = "",
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="A sentence, for everybody to read.")] = "",
    receipt: Annotated[
        str | None, typer.Option("--receipt", metavar="ID", help="This call; else the newest that paid the agent.")
    ] = None,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    index: Annotated[Path | None, typer.Option("--index", metavar="FILE", help="The local index to use.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the rating and its cost; post nothing.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Post a rating of a seller that you paid, with proof of the payment. Public and for good; costs gas."""
    with exit_on_error(as_json=as_json):
        from buyer.limits import RECEIPTS_MAX
        from buyer.signers import open_signer
        from buyer.wiring import closing, confirm, rpc_urls_for, signer_spec, the_pool
        from contracts.errors import NameUnknown
        from contracts.networks import Network
        from gateway.rating import post_feedback
        from gateway.sending import Sending
        from registry.agent_id import parse_agent_id
        from registry.chains import chain_of
        from registry.feedback import parse_verdict
        from registry.wiring import the_index

        chain_id, _, number = parse_agent_id(agent)
        chain = chain_of(Network(chain_id))
        verdict = parse_verdict(value, tag1=tag, tag2=tag2, note=note)
        with the_pool() as pool, the_index(index) as books:
            calls = pool.receipts(limit=RECEIPTS_MAX)
            if receipt is not None:
                calls = [call for call in calls if call.receipt_id == receipt]
                if not calls:
                    raise NameUnknown(f"--receipt: there is no {receipt[:40]!r}", remedy="run `farebox receipts`")
            with closing(open_signer(signer_spec(signer, pool, calls[0].purchase if calls else None))) as wallet:
                sending = Sending(chain.network, wallet, dry_run, lambda question: confirm(question, yes=yes))
                urls = rpc_urls_for(rpc, pool, None)
                posted = asyncio.run(
                    post_feedback(books, chain, number, verdict, receipts=calls, sending=sending, rpc_urls=urls)
                )
        document = posted.document(dry_run=dry_run)

        def human() -> None:
            if not posted.changed:
                out.print("this call was rated with this already; nothing was sent")
                return
            out.print(f"proven by the payment {posted.payment}")
            for line in posted.sent.lines(dry_run=dry_run):
                out.print(line)

        print_document(document, as_json=as_json, human=human)

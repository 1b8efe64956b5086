"""The buyer's commands that may send transactions of the wallet's own, and cost gas: approve, remove."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from buyer.options import DryRun, Json, MaybeName, Name, RpcOption, SignerOption, Yes
from buyer.wiring import closing, confirm, rpc_urls_for, signer_spec, the_pool
from contracts.console import exit_on_error, print_document

__all__ = ["approve", "remove"]


def approve(
    name: MaybeName = None,
    *,
    amount: Annotated[str, typer.Option("--amount", metavar="AMOUNT", help="Most that Permit2 may move; 0 ends it.")],
    token: Annotated[
        str | None, typer.Option("--token", metavar="ADDRESS", help="Instead of NAME: which token.")
    ] = None,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Let Permit2 move a bounded amount of one token: for sellers whose token has no EIP-3009. Costs gas."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer import approval
        from buyer.signers import open_signer
        from contracts.errors import UsageError

        if (name is None) == (token is None):
            raise UsageError("name a purchase, or a token with --token")
        purchase = None if name is None else pool.purchase(name)
        urls = rpc_urls_for(rpc, pool, name)
        with closing(open_signer(signer_spec(signer, pool, name))) as wallet:
            plan = asyncio.run(approval.plan_approval(pool, wallet, purchase or token or "", amount, urls))
            sent = None
            if not dry_run:
                confirm(approval.question(plan), yes=yes)
                sent = asyncio.run(approval.carry_out_approval(plan, wallet))
        document = approval.approval_document(plan, sent)
        print_document(document, as_json=as_json, human=lambda: approval.print_approval(document))


def remove(
    name: Name,
    *,
    drain: Annotated[bool, typer.Option("--drain", help="Spend what is left, sign no more. The default.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Stop spending at once.")] = False,
    cancel_onchain: Annotated[
        bool, typer.Option("--cancel-onchain", help="Also revoke what is left on chain; costs gas.")
    ] = False,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """End a purchase."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.removal import print_removal, removal_document, revoke
        from buyer.signers import open_signer
        from contracts.errors import UsageError

        if drain + now + cancel_onchain > 1:
            raise UsageError("--drain, --now and --cancel-onchain: give one of them")
        purchase = pool.purchase(name)
        if cancel_onchain:
            with (
                pool.exclusively(f"sign-{name}"),
                closing(open_signer(signer_spec(signer, pool, name))) as wallet,
            ):

                def agree(question: str) -> None:
                    confirm(question, yes=yes)

                asyncio.run(revoke(pool, purchase, wallet, rpc_urls_for(rpc, pool, name), agree))
        elif now:
            pool.remove(purchase)
        else:
            pool.drain(purchase)
            pool.finish_drained(purchase)
        document = removal_document(pool, purchase)
        print_document(document, as_json=as_json, human=lambda: print_removal(document))

"""The buyer's commands: probe, buy, process, list, status, balance, receipts, refill, pay, approve, remove.

Texts are parsed here and in `buyer.orders`; everything else is a call. Whatever signs, or is slow to import, is
imported inside the command that needs it. The commands with a module of their own are added where help lists them.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from buyer.buy_command import buy
from buyer.chain_commands import approve, remove
from buyer.options import (
    AllowHttp,
    AllowV1,
    Assets,
    Json,
    MaybeName,
    Model,
    Name,
    Networks,
    RpcOption,
    Schemes,
    SignerOption,
)
from buyer.wiring import (
    all_purchases,
    closing,
    request_from,
    rpc_urls_for,
    signer_spec,
    the_pool,
)
from contracts.console import exit_on_error, given_rpc_urls, print_document, progress_bar

if TYPE_CHECKING:
    from buyer.purchase import Purchase
    from buyer.signers import Signer

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="A base URL, or any URL that asks for payment.")],
    model: Model = None,
    allow_http: AllowHttp = False,
    as_json: Json = False,
) -> None:
    """Ask a seller what it wants, without paying. A free or dead endpoint is exit code 5."""
    with exit_on_error(as_json=as_json):
        from buyer.documents import print_probe, probe_document, rejections
        from buyer.endpoint import parse_url
        from buyer.probe import probe_url

        parse_url(url, allow_http=allow_http, field="URL")
        found = probe_url(url, model)
        rejected = rejections(found)
        print_document(probe_document(found, rejected), as_json=as_json, human=lambda: print_probe(found, rejected))


commands.command()(buy)


def _process(
    name: MaybeName = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every purchase, and whatever is still unsettled.")] = False,
    signer: SignerOption = None,
    rpc: RpcOption = None,
    trust_unused: Annotated[
        bool,
        typer.Option(
            "--trust-unused", help="After a restored backup: spend what the chain shows unused, though it may be sent."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Refill by policy, and ask the chain about open outcomes. Made for cron: safe to run twice at once."""
    failed = 0
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.documents import print_processed, processed_document
        from buyer.refill import Processed, process
        from buyer.signers import open_signer
        from contracts.errors import RequestInProgress, UsageError

        if (name is None) != every:
            raise UsageError("name a purchase, or say --all")
        purchases = all_purchases(pool) if name is None else [pool.purchase(name)]
        results = []
        for purchase in purchases:

            def open_wallet(purchase: Purchase = purchase) -> Signer:
                return open_signer(signer_spec(signer, pool, purchase.name))

            try:
                with progress_bar(f"signing for {purchase.name}") as advance:
                    urls = rpc_urls_for(rpc, pool, purchase.name) if rpc or not purchase.rpc_urls else []
                    done = asyncio.run(
                        process(pool, purchase, open_wallet, rpc_urls=urls, progress=advance, trust_unused=trust_unused)
                    )
            except RequestInProgress as error:
                done = Processed(purchase.name, "skipped", error.message)
            results.append(done)
        documents = [processed_document(done) for done in results]
        codes = {done.error.exit_code for done in results if done.error is not None}
        failed = codes.pop() if len(codes) == 1 else int(bool(codes))
        print_document(
            {"ok": not failed, "processed": documents}, as_json=as_json, human=lambda: print_processed(documents)
        )
    raise typer.Exit(failed)


commands.command("process")(_process)
commands.command("maintain", hidden=True)(_process)


@commands.command("list")
def list_purchases(as_json: Json = False) -> None:
    """List all purchases, and what they could cost together."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.documents import print_purchases, purchases_document

        document = purchases_document(pool, int(time.time()))
        print_document(document, as_json=as_json, human=lambda: print_purchases(document))


@commands.command()
def status(name: MaybeName = None, as_json: Json = False) -> None:
    """Show one purchase, or each: what is left, spent, open, and the worst-case loss."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.documents import print_each_purchase, print_purchase, purchase_document, purchases_document

        now_s = int(time.time())
        if name is None:
            document, show = purchases_document(pool, now_s), print_each_purchase
        else:
            document, show = {"ok": True, **purchase_document(pool, pool.purchase(name), now_s)}, print_purchase
        print_document(document, as_json=as_json, human=lambda: show(document))


@commands.command()
def balance(signer: SignerOption = None, rpc: RpcOption = None, as_json: Json = False) -> None:
    """Show what the wallets hold, what of it is promised by live authorizations, and what is free."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.balances import print_balances, read_balances
        from buyer.signers import open_signer

        wallet = None
        if signer is not None:
            with closing(open_signer(signer)) as opened:
                wallet = opened.address
        documents = asyncio.run(read_balances(pool, wallet, given_rpc_urls(rpc)))
        print_document({"ok": True, "balances": documents}, as_json=as_json, human=lambda: print_balances(documents))


@commands.command()
def receipts(
    name: MaybeName = None,
    limit: Annotated[int, typer.Option("--limit", help="How many, the newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was paid for, the newest first."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.documents import print_receipts, receipt_document

        assets = pool.assets()
        found = pool.receipts(name=name, limit=limit)
        if name is not None and not found:
            # A removed purchase keeps its receipts.
            pool.purchase(name)
        documents = [receipt_document(receipt, assets.get((receipt.network, receipt.asset))) for receipt in found]
        print_document({"ok": True, "receipts": documents}, as_json=as_json, human=lambda: print_receipts(documents))


@commands.command()
def refill(
    name: Name,
    count: Annotated[int, typer.Option("--count", min=1, help="How many more calls to sign for.")],
    signer: SignerOption = None,
    rpc: RpcOption = None,
    as_json: Json = False,
) -> None:
    """Sign more for a purchase now, at the seller's price of today if that is within the cap."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.documents import print_purchase, purchase_document
        from buyer.refill import top_up
        from buyer.signers import open_signer
        from contracts.errors import UsageError

        spec = signer_spec(signer, pool, name)
        with pool.exclusively(f"sign-{name}"), closing(open_signer(spec)) as wallet:
            purchase = pool.purchase(name)
            if purchase.state != "active":
                raise UsageError(f"{name}: is {purchase.state}", remedy="buy under another name")
            with progress_bar("signing") as advance:
                urls = rpc_urls_for(rpc, pool, name)
                signed = asyncio.run(top_up(pool, purchase, count, wallet, rpc_urls=urls, progress=advance))
        now = purchase_document(pool, pool.purchase(name), int(time.time()))
        document = {"ok": True, "newly_signed": signed, **now}
        print_document(document, as_json=as_json, human=lambda: print_purchase(document))


@commands.command()
def pay(
    url: Annotated[str, typer.Argument(metavar="URL", help="What to pay for.")],
    *,
    max_price: Annotated[str, typer.Option("--max-price", metavar="AMOUNT", help='Most it may cost, as "0.01".')],
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The body; @FILE reads it, @- from stdin. Makes it a POST.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", "-X", help="GET, or POST with --data.")] = None,
    content_type: Annotated[str, typer.Option("--content-type", help="Of the body.")] = "application/json",
    signer: SignerOption = None,
    rpc: RpcOption = None,
    network: Networks = None,
    asset: Assets = None,
    scheme: Schemes = None,
    allow_http: AllowHttp = False,
    allow_v1: AllowV1 = False,
    as_json: Json = False,
) -> None:
    """Pay for one request and print its answer. Repeating it after a lost answer presents the same payment."""
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.endpoint import parse_url
        from buyer.orders import PayOrder, pay_once
        from buyer.paid import answer_document, print_announcement, write_answer
        from buyer.signers import open_signer
        from contracts.errors import OutcomeUnknown

        parse_url(url, allow_http=allow_http, field="URL")
        order = PayOrder(
            request=request_from(url, method, data, content_type),
            max_price=max_price,
            networks=network or [],
            assets=asset or [],
            schemes=scheme or [],
            rpc_urls=rpc_urls_for(rpc, pool, None),
            allow_v1=allow_v1,
        )

        def open_wallet() -> Signer:
            return open_signer(signer_spec(signer, pool, None), allow_http=allow_http)

        outcome, purchase = asyncio.run(pay_once(pool, order, open_wallet, print_announcement, time.time))
        if outcome.kind != "served" or outcome.claim is None:
            raise outcome.error or OutcomeUnknown("the payment ended without an answer")
        document = answer_document(outcome, outcome.claim, purchase)
        print_document(document, as_json=as_json, human=lambda: write_answer(outcome))


commands.command()(approve)
commands.command()(remove)

"""`farebox buy`: its options, in the groups that its help shows, and the command."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from buyer.options import (
    AllowHttp,
    AllowV1,
    Assets,
    DryRun,
    Json,
    MaxPrice,
    Model,
    Networks,
    RpcOption,
    Schemes,
    SignerOption,
    Tier,
    Yes,
)
from buyer.wiring import absolute_spec, closing, confirm, rpc_urls_for, signer_spec, the_pool
from contracts.console import exit_on_error, print_document, progress_bar
from registry.options import AllowPrivate

if TYPE_CHECKING:
    from buyer.discovery import Seller
    from buyer.orders import BuyOrder
    from buyer.pool import Pool

__all__ = ["buy"]

_REFILL, _SIGNING = "Refill", "Signing"

_Purchase = Annotated[str, typer.Argument(metavar="NAME", help="What to call it; an existing name is topped up.")]
_Endpoint = Annotated[str | None, typer.Option("--endpoint", metavar="URL", help="The seller's base URL.")]
_Agent = Annotated[
    str | None, typer.Option("--agent", metavar="ID", help="A seller of the registry: eip155:84532:0x…/42.")
]
_Query = Annotated[
    str | None, typer.Option("--from", metavar="QUERY", help='The best seller of the index for "code model".')
]
_Count = Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="How many calls to sign for.")]
_Budget = Annotated[str | None, typer.Option("--budget", metavar="AMOUNT", help="Sign for as many calls as this buys.")]
_AcceptQuote = Annotated[
    bool, typer.Option("--accept-quote", help="Take the seller's price as the cap, whatever it is.")
]
_Ttl = Annotated[
    str | None, typer.Option("--ttl", metavar="TIME", help="How long the signatures live, as 12h or 7d. \\[7d]")
]
_AutoRefill = Annotated[
    bool | None,
    typer.Option(
        "--auto-refill/--no-auto-refill",
        help="Let `process` sign more.",
        show_default=False,
        rich_help_panel=_REFILL,
    ),
]
_RefillThreshold = Annotated[
    int | None,
    typer.Option(
        "--refill-threshold",
        metavar="N",
        min=0,
        help="Refill when this many are left, or fewer.",
        rich_help_panel=_REFILL,
    ),
]
_RefillCount = Annotated[
    int | None,
    typer.Option("--refill-count", metavar="N", min=1, help="How many more.", rich_help_panel=_REFILL),
]
_MaxTotal = Annotated[
    str | None,
    typer.Option("--max-total", metavar="AMOUNT", help="Most this purchase may ever cost.", rich_help_panel=_REFILL),
]
_MaxPerDay = Annotated[
    str | None,
    typer.Option(
        "--max-per-day", metavar="AMOUNT", help="Most that is signed in one UTC day.", rich_help_panel=_REFILL
    ),
]
_Wallet = Annotated[
    str | None,
    typer.Option(
        "--wallet",
        metavar="ADDRESS",
        help="Pay out of this AgentWallet, whose agent is --signer. --count is for each day, two days ahead.",
        rich_help_panel=_SIGNING,
    ),
]
_EncryptWith = Annotated[
    str | None,
    typer.Option(
        "--encrypt-with",
        metavar="KEY",
        help="Encrypt this home's signatures with keyfile:PATH, or with keyring. The key is made when missing; it "
        "opens them and cannot sign.",
        rich_help_panel=_SIGNING,
    ),
]


def buy(
    name: _Purchase,
    *,
    endpoint: _Endpoint = None,
    agent: _Agent = None,
    query: _Query = None,
    model: Model = None,
    count: _Count = None,
    budget: _Budget = None,
    max_price: MaxPrice = None,
    accept_quote: _AcceptQuote = False,
    ttl: _Ttl = None,
    signer: SignerOption = None,
    wallet: _Wallet = None,
    encrypt_with: _EncryptWith = None,
    rpc: RpcOption = None,
    auto_refill: _AutoRefill = None,
    refill_threshold: _RefillThreshold = None,
    refill_count: _RefillCount = None,
    max_total: _MaxTotal = None,
    max_per_day: _MaxPerDay = None,
    network: Networks = None,
    asset: Assets = None,
    scheme: Schemes = None,
    tier: Tier = None,
    allow_http: AllowHttp = False,
    allow_v1: AllowV1 = False,
    allow_private: AllowPrivate = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Sign a pool of payments for one model of one seller.

    Probes the seller, chooses one of its options, checks the chain, prints the worst-case loss, then signs and stores.
    With --agent or --from the seller comes from the registry, and is verified before: chain, file, domain and payee.
    """
    with exit_on_error(as_json=as_json), the_pool() as pool:
        from buyer.discovery import Wanted, choose_seller
        from buyer.documents import print_purchase
        from buyer.orders import BuyOrder, RefillOrder, parse_ttl
        from buyer.purchase import check_name

        urls = rpc_urls_for(rpc, pool, name)
        wanted = Wanted(
            endpoint=endpoint,
            query=query,
            agent=agent,
            model=model,
            max_price=max_price,
            networks=network or [],
            rpc_urls=urls,
            allow_private=allow_private,
        )
        seller = choose_seller(pool, check_name(name), wanted, quiet=as_json)
        order = BuyOrder(
            name=name,
            endpoint=endpoint or (seller.endpoint if seller is not None else ""),
            model=model or (seller.model if seller is not None else ""),
            count=count,
            budget=budget,
            max_price=max_price,
            accept_quote=accept_quote,
            ttl_s=None if ttl is None else parse_ttl(ttl),
            refill=RefillOrder(
                auto=auto_refill,
                threshold=refill_threshold,
                count=refill_count,
                max_total=max_total,
                max_per_day=max_per_day,
            ),
            networks=[seller.agent.network.caip2] if seller is not None else network or [],
            assets=asset or [],
            schemes=scheme or [],
            rpc_urls=urls,
            allow_http=allow_http,
            allow_v1=allow_v1,
            wallet=wallet,
            tier=tier,
        )
        spec = signer_spec(signer, pool, name)
        with pool.exclusively(f"sign-{name}"):
            document = _plan_and_sign(
                pool, order, seller, spec, encrypt_with=encrypt_with, dry_run=dry_run, yes=yes, as_json=as_json
            )
        print_document(document, as_json=as_json, human=lambda: None if dry_run else print_purchase(document))


def _plan_and_sign(
    pool: Pool,
    order: BuyOrder,
    seller: Seller | None,
    spec: str,
    *,
    encrypt_with: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> dict[str, Any]:
    """Show what would be signed; unless `dry_run`, ask, sign and store it. Return the document of it all."""
    from buyer.discovery import note_seller, seller_document
    from buyer.documents import plan_document, print_plan, purchase_document
    from buyer.orders import plan_buy
    from buyer.presign import carry_out
    from buyer.signers import open_signer, remember_signer

    with closing(open_signer(spec, allow_http=order.allow_http)) as key:
        plan, choice = asyncio.run(plan_buy(pool, order, key, int(time.time())))
        document: dict[str, Any] = {"ok": True, "dry_run": dry_run, "plan": plan_document(plan, choice)}
        if seller is not None:
            seller.check(plan.draft.terms.offer)
            document["seller"] = seller_document(seller)
        if not as_json:
            print_plan(plan, choice)
        if dry_run:
            return document
        confirm("Sign?", yes=yes)
        if encrypt_with is not None:
            pool.begin_sealing(encrypt_with)
        note_seller(pool.home, seller, plan)
        with progress_bar("signing") as advance:
            purchase = carry_out(pool, plan, key, progress=advance)
        remember_signer(pool.home, order.name, absolute_spec(spec))
        return document | purchase_document(pool, purchase, int(time.time()))

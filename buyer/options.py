"""The options that several of the buyer's commands take, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

from buyer.wiring import the_pool
from contracts.errors import FareboxError
from registry.options import Json, RpcOption

__all__ = [
    "AllowHttp",
    "AllowV1",
    "Assets",
    "DryRun",
    "Json",
    "MaxPrice",
    "MaybeName",
    "Model",
    "Name",
    "Networks",
    "RpcOption",
    "Schemes",
    "SignerOption",
    "Tier",
    "Yes",
    "complete_name",
]


def complete_name(incomplete: str) -> list[str]:
    """Complete the name of a purchase; a home that cannot be read has none, and the command itself says why."""
    try:
        with the_pool() as pool:
            return [purchase.name for purchase in pool.purchases() if purchase.name.startswith(incomplete)]
    except FareboxError:
        return []


DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what it would do and cost, and leave all as it is.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A purchase.", autocompletion=complete_name)]
MaybeName = Annotated[str | None, typer.Argument(metavar="NAME", help="A purchase.", autocompletion=complete_name)]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The seller's model id.")]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Pay over plain http beyond this machine.")]
SignerOption = Annotated[
    str | None,
    typer.Option(
        "--signer",
        envvar="FAREBOX_SIGNER",
        metavar="KIND:PLACE",
        help="keyfile:PATH, keystore:PATH or remote:URL.",
        show_envvar=False,
    ),
]
MaxPrice = Annotated[str | None, typer.Option("--max-price", metavar="AMOUNT", help='Most for one call, as "0.01".')]

_PAYMENT = "Payment"

Networks = Annotated[
    list[str] | None,
    typer.Option(
        "--network",
        metavar="NETWORK",
        help="Pay only on this network (eip155:8453, base); repeatable.",
        rich_help_panel=_PAYMENT,
    ),
]
Assets = Annotated[
    list[str] | None,
    typer.Option(
        "--asset",
        metavar="ADDRESS",
        help="Pay only in this token; also allows an unknown one. Repeatable.",
        rich_help_panel=_PAYMENT,
    ),
]
Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        metavar="SCHEME",
        help="exact, or upto: charged by usage, up to the price. Repeatable. \\[exact]",
        rich_help_panel=_PAYMENT,
    ),
]
Tier = Annotated[
    str | None,
    typer.Option(
        "--tier",
        metavar="TIER",
        help="urgent, normal or background, where the seller has tiers. \\[normal]",
        rich_help_panel=_PAYMENT,
    ),
]
AllowV1 = Annotated[
    bool,
    typer.Option(
        "--allow-v1",
        help="Also pay a seller that asks in x402 version 1 (in its body alone).",
        rich_help_panel=_PAYMENT,
    ),
]

"""`farebox sell`, `farebox settle` and `farebox facilitator`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from contracts.redaction import log_to_stderr

__all__ = ["commands"]

commands = typer.Typer()

_Config = Annotated[Path, typer.Option("--config", "-c", help="The seller's settings.", metavar="SELLER.YAML")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a text.")]


@commands.command("sell", rich_help_panel="Sell")
def sell(
    config: _Config = Path("seller.yaml"),
    settle: Annotated[
        bool, typer.Option("--settle/--no-settle", help="Settle here, or leave it to `farebox settle`.")
    ] = True,
    admin_listen: Annotated[
        str,
        typer.Option(
            "--admin-listen",
            envvar="FAREBOX_SELL_ADMIN_LISTEN",
            help="Where health, metrics and books are shown.",
            metavar="HOST:PORT",
        ),
    ] = "127.0.0.1:9402",
    as_json: _Json = False,
) -> None:
    """Sell a server's answers: every listed route has a price, and nothing else gets through."""
    import asyncio

    from contracts.console import exit_on_error
    from seller.config import read_config
    from seller.run import sell as run
    from seller.service import Seller

    with exit_on_error(as_json=as_json):
        log_to_stderr(logging.WARNING)
        seller = Seller(read_config(config), settles=settle)
        asyncio.run(run(seller, admin_listen, lambda port, admin: _announce(seller, port, admin, as_json=as_json)))


@commands.command("settle", rich_help_panel="Sell")
def settle(
    config: _Config = Path("seller.yaml"),
    admin_listen: Annotated[
        str | None,
        typer.Option("--admin-listen", help="Where health, metrics and books are shown.", metavar="HOST:PORT"),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Settle what sellers put into the store: for servers that mount the middleware and hold no gas key."""
    import asyncio

    from contracts.console import exit_on_error
    from seller.config import read_config
    from seller.run import settle as run
    from seller.service import Seller

    with exit_on_error(as_json=as_json):
        log_to_stderr(logging.WARNING)
        seller = Seller(read_config(config), settles=True)
        asyncio.run(run(seller, admin_listen, lambda port, admin: _announce(seller, port, admin, as_json=as_json)))


@commands.command("facilitator", rich_help_panel="Sell")
def facilitator(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The facilitator's settings.", metavar="FACILITATOR.YAML")
    ] = Path("facilitator.yaml"),
    as_json: _Json = False,
) -> None:
    """Verify and settle payments for other people's sellers: /verify, /settle and /supported."""
    import asyncio

    from contracts.console import exit_on_error, out, print_document
    from seller.facilitate.config import read_facilitator_config
    from seller.facilitate.service import Facilitator
    from seller.run import facilitate

    with exit_on_error(as_json=as_json):
        log_to_stderr(logging.WARNING)
        service = Facilitator(read_facilitator_config(config))

        def announce(port: str, _: str) -> None:
            document = {
                "listening": port,
                "network": service.config.chain.caip2,
                "asset": service.config.token.address_text,
                "minimum_atomic": service.config.minimum_atomic,
                "gas_account": service.gas_account,
            }

            def human() -> None:
                out.print(f"settling for others on [bold]{port}[/], {service.config.token.symbol} from "
                          f"{service.config.minimum} on {service.config.chain.label}")  # fmt: skip
                out.print(f"with gas account {service.gas_account}")

            print_document(document, as_json=as_json, human=human)

        asyncio.run(facilitate(service, announce))


def _announce(seller: Any, port: str, admin: str, *, as_json: bool) -> None:
    from rich.table import Table

    from contracts.console import out, print_document
    from contracts.networks import Network
    from seller.admin import price_list

    network: Network = seller.config.chain
    document = {
        "listening": port or None,
        "admin": admin or None,
        "network": network.caip2,
        "pay_to": seller.config.pay_to,
        "gas_account": seller.gas_account,
        "prices": price_list(seller),
    }

    def human() -> None:
        if port:
            table = Table("route", "model", "price", box=None, header_style="dim", pad_edge=False)
            for row in document["prices"]:
                table.add_row(row["match"], row["model"] or "", row["price"])
            out.print(table)
            out.print(f"selling on [bold]{port}[/]")
        out.print(f"money goes to {seller.config.pay_to} on {network.label}")
        if admin:
            out.print(f"books on {admin}/status")
        if seller.gas_account:
            out.print(f"settling with gas account {seller.gas_account}")

    print_document(document, as_json=as_json, human=human)

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
    from contracts.console import exit_on_error
    from contracts.event_loop import fast_runner
    from seller.config import read_config
    from seller.run import sell as run
    from seller.service import Seller

    with exit_on_error(as_json=as_json):
        log_to_stderr(logging.WARNING)
        seller = Seller(read_config(config), settles=settle)
        with fast_runner() as runner:
            runner.run(run(seller, admin_listen, lambda port, admin: _announce(seller, port, admin, as_json=as_json)))


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
    from contracts.console import exit_on_error
    from contracts.event_loop import fast_runner
    from seller.config import read_config
    from seller.run import settle as run
    from seller.service import Seller

    with exit_on_error(as_json=as_json):
        log_to_stderr(logging.WARNING)
        seller = Seller(read_config(config), settles=True)
        with fast_runner() as runner:
            runner.run(run(seller, admin_listen, lambda port, admin: _announce(seller, port, admin, as_json=as_json)))


@commands.command("payers", rich_help_panel="Sell")
def payers(
    config: _Config = Path("seller.yaml"),
    lift: Annotated[
        list[str] | None, typer.Option("--lift", metavar="ADDRESS", help="Trust this payer again; repeatable.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Show the payers that settle before any work, because their money once went away after it; or trust one again."""
    from contracts.address import address_text, parse_address
    from contracts.console import exit_on_error, out, print_document
    from contracts.errors import NameUnknown
    from contracts.money import format_amount
    from contracts.storage import open_database
    from seller.config import read_config
    from seller.limits import PAYERS_SHOWN_MAX
    from seller.marks import lift_mark, marked

    with exit_on_error(as_json=as_json):
        settings = read_config(config)
        chain_id, token = settings.chain.chain_id, settings.token
        trusted = [parse_address(text, "--lift") for text in lift or []]
        database = open_database(settings.store, "seller.migrations")
        try:
            for payer in trusted:
                key = (chain_id, token.address, payer)
                if not database.transact(lambda connection: lift_mark(connection, key)):  # noqa: B023 - runs at once
                    raise NameUnknown(
                        f"--lift: {address_text(payer)} is not marked", remedy="run `farebox payers` to see who is"
                    )
            found = database.read(lambda connection: marked(connection, chain_id, token.address, PAYERS_SHOWN_MAX))
        finally:
            database.close()
        rows = [
            {
                "payer": address_text(each.payer),
                "withdrawn": each.withdrawn_count,
                "settled": format_amount(each.settled_atomic, token),
            }
            for each in found
        ]

        def human() -> None:
            for payer in trusted:
                out.print(f"{address_text(payer)} is trusted again, as any payer with its history is")
            for row in rows:
                out.print(f"{row['payer']}  withdrew {row['withdrawn']} times, paid {row['settled']}: settles first")
            if not rows:
                out.print("no payer is marked")

        document = {"lifted": [address_text(payer) for payer in trusted], "settle_first": rows}
        print_document(document, as_json=as_json, human=human)


@commands.command("facilitator", rich_help_panel="Sell")
def facilitator(
    config: Annotated[
        Path, typer.Option("--config", "-c", help="The facilitator's settings.", metavar="FACILITATOR.YAML")
    ] = Path("facilitator.yaml"),
    as_json: _Json = False,
) -> None:
    """Verify and settle payments for other people's sellers: /verify, /settle and /supported."""
    from contracts.console import exit_on_error, out, print_document
    from contracts.event_loop import fast_runner
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

        with fast_runner() as runner:
            runner.run(facilitate(service, announce))


def _announce(seller: Any, port: str, admin: str, *, as_json: bool) -> None:
    from rich.table import Table

    from contracts.console import out, print_document
    from contracts.networks import Network
    from seller.admin import price_list
    from seller.advice import advice

    network: Network = seller.config.chain
    document = {
        "listening": port or None,
        "admin": admin or None,
        "network": network.caip2,
        "pay_to": seller.config.pay_to,
        "gas_account": seller.gas_account,
        "prices": price_list(seller),
        "advice": advice(seller.config),
    }

    def human() -> None:
        if port:
            tier = ["tier"] if seller.config.tiers else []
            table = Table("route", "model", *tier, "price", box=None, header_style="dim", pad_edge=False)
            for row in document["prices"]:
                table.add_row(row["match"], row["model"] or "", *(row.get(name, "") for name in tier), row["price"])
            out.print(table)
            out.print(f"selling on [bold]{port}[/]")
        out.print(f"money goes to {seller.config.pay_to} on {network.label}")
        if admin:
            out.print(f"books on {admin}/status")
        if seller.gas_account:
            out.print(f"settling with gas account {seller.gas_account}")
        for line in document["advice"]:
            out.print(line, style="yellow", markup=False)

    print_document(document, as_json=as_json, human=human)

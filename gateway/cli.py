"""`farebox`: the root of the command line.

Every room brings its own commands; heavy libraries are imported inside the commands that need them, so that
`farebox --help` answers at once.
"""

from __future__ import annotations

import inspect
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

import buyer.cli
import gateway.demo.cli
import gateway.litellm.cli
import registry.cli_check
import seller.cli
from buyer.wallet_commands import wallet_commands
from contracts.console import exit_on_error, out, print_document, progress
from contracts.redaction import log_to_stderr
from gateway.background.commands import background_commands
from gateway.bidder.commands import bid_commands
from gateway.delegator.commands import delegate_commands
from gateway.devnet import devnet
from gateway.feedback_command import feedback
from gateway.key_commands import budget_commands, key_commands
from gateway.options import ConfigFile, Json
from gateway.register_commands import register_commands
from gateway.selfcheck import selfcheck
from registry.experience import PaidCalls, tell_own_calls

__all__ = ["app", "main"]

_START, _BUY, _SERVE, _SELL, _LOOK = "Start here", "Buy", "Serve agents", "Sell", "Look after it"

app = typer.Typer(
    name="farebox",
    help="Buy and sell inference one call at a time, over HTTP 402 (x402).",
    epilog="FAREBOX_HOME names the folder of the pool (default ~/.farebox). --json on any command prints one document.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
config_commands = typer.Typer(no_args_is_help=True, help="Read settings as Farebox reads them.")


def _version(wanted: bool) -> None:
    if wanted:
        _print_version(as_json=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Hold the options of `farebox` itself."""


def _print_version(*, as_json: bool) -> None:
    from importlib.metadata import version as installed

    document = {"ok": True, "version": installed("farebox"), "python": sys.version.split()[0]}
    print_document(document, as_json=as_json, human=lambda: out.print(f"farebox {document['version']}"))


def version(as_json: Json = False) -> None:
    """Print the version."""
    _print_version(as_json=as_json)


def serve(
    config: ConfigFile = None,
    listen: Annotated[
        str | None,
        typer.Option(envvar="FAREBOX_SERVE_LISTEN", metavar="HOST:PORT", help="Where agents call; overrides the file."),
    ] = None,
    admin_listen: Annotated[
        str | None,
        typer.Option(envvar="FAREBOX_SERVE_ADMIN_LISTEN", metavar="HOST:PORT", help="Where /status and /metrics are."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve paid models to anything that speaks OpenAI: `paid/<model>` on 127.0.0.1:8403.

    Spends what `farebox buy` signed. This process holds no key and cannot sign. Ctrl-C or SIGTERM ends it when the
    calls in flight have their answers.
    """
    with exit_on_error(as_json=as_json):
        from gateway import serve as serving
        from gateway.config import load_config, override

        serving.shed_wallet_environment()
        log_to_stderr(logging.INFO)
        for chatty in ("uvicorn", "httpx"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        settings = override(load_config(config), listen=listen, admin_listen=admin_listen)

        def announce(addresses: serving.Addresses) -> None:
            agents, admin = (f"http://{address.text}" for address in addresses)
            print_document(
                {"ok": True, "url": f"{agents}/v1", "admin_url": admin},
                as_json=as_json,
                human=lambda: out.print(
                    f"[bold]OpenAI endpoint[/]  {agents}/v1   (model: paid/<model>)\n"
                    f"[bold]status[/]           {admin}/status   {admin}/metrics"
                ),
            )

        serving.run(settings, announce)


def doctor(
    rpc: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Chain endpoint to check besides those of the purchases; repeatable."),
    ] = None,
    seller: Annotated[
        Path | None, typer.Option(metavar="SELLER.YAML", help="Also check the settings of this seller.")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Check everything a paid call depends on; each problem comes with its fix. Exit code 1 when there is one."""
    with exit_on_error(as_json=as_json):
        import asyncio

        from gateway.config import load_config
        from gateway.doctor import examine

        checks = asyncio.run(examine(load_config(config), rpc or [], seller))
        document = {
            "ok": all(check.ok for check in checks),
            "checks": [
                {
                    "check": check.name,
                    "ok": check.ok,
                    "found": check.found,
                    "fix": check.fix,
                    "advice": check.advice,
                }
                for check in checks
            ],
        }

        def human() -> None:
            for check in checks:
                mark = "[green]ok[/]  " if check.ok else "[bold red]FAIL[/]"
                out.print(mark, end=" ")
                out.print(f"{check.name}: {check.found}", markup=False)
                if check.fix:
                    out.print(f"       fix: {check.fix}", markup=False)
                if check.advice:
                    out.print(f"       {check.advice}", style="yellow", markup=False)

        print_document(document, as_json=as_json, human=human)
    raise typer.Exit(0 if document["ok"] else 1)


@config_commands.command("show")
def config_show(config: ConfigFile = None, as_json: Json = False) -> None:
    """Show the gateway's settings as they take effect, and where each comes from. Secrets are masked."""
    with exit_on_error(as_json=as_json):
        from gateway.config import load_config, shown

        rows = shown(load_config(config), config)
        document = {"ok": True, "settings": {row.name: {"value": row.value, "from": row.origin} for row in rows}}

        def human() -> None:
            for row in rows:
                value = "not set" if row.value in (None, [], {}) else str(row.value)
                out.print(f"{row.name:17} {value:34} {row.origin}", markup=False)

        print_document(document, as_json=as_json, human=human)


def _own_calls() -> PaidCalls:
    """Let the registry weigh sellers by what this home's calls came to; without a pool it still finds them."""
    from buyer.discovery import own_calls
    from contracts.errors import FareboxError

    try:
        return own_calls()
    except FareboxError as error:
        progress(f"your own paid calls are left out: {error.message}")
        return []


def _add(command: typer.Typer, panel: str) -> None:
    """Put the commands of another room beside ours, under a heading."""
    for registered in command.registered_commands:
        registered.rich_help_panel = panel
        app.registered_commands.append(registered)


def _let_help_wrap(commands: typer.Typer) -> None:
    """Join the lines of each paragraph of a help text, so that they break where the terminal does."""
    for command in commands.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _let_help_wrap(group.typer_instance)


app.command(rich_help_panel=_START)(gateway.demo.cli.demo)
app.command(rich_help_panel=_START)(devnet)
_add(buyer.cli.commands, _BUY)
app.add_typer(wallet_commands, name="wallet", rich_help_panel=_BUY)
app.add_typer(registry.cli_check.commands, name="discover", rich_help_panel=_BUY)
tell_own_calls(_own_calls)
app.command(rich_help_panel=_BUY)(feedback)
app.command(rich_help_panel=_SERVE)(serve)
app.add_typer(key_commands, name="key", rich_help_panel=_SERVE)
app.add_typer(budget_commands, name="budget", rich_help_panel=_SERVE)
app.add_typer(gateway.litellm.cli.commands, name="litellm", rich_help_panel=_SERVE)
app.add_typer(bid_commands, name="bid", rich_help_panel=_SERVE)
app.add_typer(delegate_commands, name="delegate", rich_help_panel=_BUY)
app.add_typer(background_commands, name="background", rich_help_panel=_BUY)
_add(seller.cli.commands, _SELL)
app.add_typer(register_commands, name="register", rich_help_panel=_SELL)
app.command(rich_help_panel=_LOOK)(doctor)
app.command(rich_help_panel=_LOOK)(selfcheck)
app.add_typer(config_commands, name="config", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(version)
_let_help_wrap(app)


def main() -> None:
    """Run the command line."""
    app(prog_name="farebox")


if __name__ == "__main__":
    main()

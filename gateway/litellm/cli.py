"""`farebox litellm …`: put the gateway behind a LiteLLM proxy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.options import Json

__all__ = ["commands"]

commands = typer.Typer(no_args_is_help=True, help="Put `paid/<model>` behind a LiteLLM proxy.")


@commands.callback()
def _group() -> None:
    """Keep `config` a command of its own while it is the only one."""


@commands.command()
def config(
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the YAML here, and farebox_callback.py beside it; else to stdout."),
    ] = None,
    gateway: Annotated[
        str, typer.Option(metavar="URL", help="Base address of `farebox serve`.")
    ] = "http://127.0.0.1:8403",
    master_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that will hold the proxy's own key.")
    ] = "LITELLM_MASTER_KEY",
    fallback: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Free model to answer when a paid call fails or the pool is empty."),
    ] = None,
    fallback_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible server of the fallback model; else the gateway."),
    ] = None,
    display_price: Annotated[
        str,
        typer.Option(
            metavar="USD", help="USD per token that LiteLLM shows as cost. Display only: Farebox pays per call."
        ),
    ] = "0",
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
    as_json: Json = False,
) -> None:
    """Write the proxy's configuration: one attempt per paid call, payment headers passed on.

    LiteLLM runs in an environment of its own (`make setup-litellm`); Farebox never imports it.
    """
    from contracts.console import exit_on_error, print_document
    from contracts.console import out as screen
    from gateway.litellm.config import CALLBACK_FILE, ProxyConfig, callback_source

    with exit_on_error(as_json=as_json):
        yaml = ProxyConfig(gateway, master_key_env, fallback, fallback_url, display_price).yaml()
        if out is None:
            document = {"ok": True, "config": yaml, "callback": callback_source()}
            print_document(document, as_json=as_json, human=lambda: _to_stdout(yaml))
            return
        callback = out.parent / CALLBACK_FILE
        _write({out: yaml, callback: callback_source()}, replace=force)
        command = f"litellm --config {out} --host 127.0.0.1 --port 4000"
        print_document(
            {"ok": True, "config_file": str(out), "callback_file": str(callback), "command": command},
            as_json=as_json,
            human=lambda: screen.print(f"wrote {out} and {callback}\nstart with: {command}", markup=False),
        )


def _to_stdout(yaml: str) -> None:
    from contracts.console import progress

    sys.stdout.write(yaml)
    progress("this configuration needs farebox_callback.py beside it; --out FILE writes both")


def _write(files: dict[Path, str], *, replace: bool) -> None:
    """Write every file, or none when one exists with other content and `replace` is false."""
    from contracts.errors import UsageError

    try:
        changed = {path: text for path, text in files.items() if not path.exists() or path.read_text("utf-8") != text}
        if not replace:
            for path in changed:
                if path.exists():
                    raise UsageError(
                        f"{path} exists and differs", remedy="choose another --out, or replace it with --force"
                    )
        for path, text in changed.items():
            path.write_text(text, "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise UsageError(f"--out: {found}", remedy="name a file in a folder that exists and can be written") from None

"""`farebox demo`: the whole product in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.demo.story import Stage
    from gateway.demo.teller import Teller

__all__ = ["demo"]


def demo(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document; steps go to stderr.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    upstream: Annotated[
        str | None, typer.Option(help="Sell this OpenAI-compatible server instead of the stand-in.", metavar="URL")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="`minilm`: sell real embeddings. With --upstream: the model to sell."),
    ] = None,
    litellm: Annotated[bool, typer.Option("--litellm", help="Put the real LiteLLM proxy in front.")] = False,
) -> None:
    """Watch a paid inference call: a local chain, a seller, a buyer without a key, five calls, and the books.

    Ends with exit code 0 only when the seller's balance on chain grew by exactly what the buyer spent.
    """
    from contracts.console import exit_on_error

    with exit_on_error(as_json=as_json):
        from gateway.demo.processes import demo_folder, interrupt_on_termination
        from gateway.demo.story import DemoOptions, perform
        from gateway.demo.teller import Teller

        teller = Teller(silent=as_json)
        options = DemoOptions(upstream=upstream, model=model, litellm=litellm)
        with interrupt_on_termination(), demo_folder() as folder, perform(options, folder, teller) as stage:
            _end(stage, teller, as_json=as_json, keep=keep)
        raise typer.Exit(0 if stage.books.agree else 1)


def _end(stage: Stage, teller: Teller, *, as_json: bool, keep: bool) -> None:
    from contracts.console import print_document

    print_document(stage.document(), as_json=as_json, human=lambda: None)
    if keep:
        from gateway.demo.keep import keep_running

        keep_running(stage, teller)

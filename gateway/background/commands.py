"""`farebox background`: requests that can wait, bought at the background price of sellers that are idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.console import exit_on_error, out, print_document, printable, progress
from gateway.background.limits import LISTED_MAX, LIVES_HOURS_MAX, TOKENS_MAX
from gateway.options import ConfigFile, Json

if TYPE_CHECKING:
    from gateway.background.backlog import Backlog, Task
    from gateway.config import GatewayConfig

__all__ = ["background_commands"]

background_commands = typer.Typer(
    no_args_is_help=True, help="Work that can wait: bought when sellers are idle, at their background price."
)

_TaskId = Annotated[str, typer.Argument(metavar="TASK", help="As `farebox background list` shows it.")]


@background_commands.command("add")
def add(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What is asked; "-" reads it from stdin.')],
    *,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="As it was bought.")],
    max_price: Annotated[str, typer.Option("--max-price", metavar="AMOUNT", help='Most for the answer, as "0.0005".')],
    within_hours: Annotated[
        int, typer.Option("--within-hours", min=1, max=LIVES_HOURS_MAX, help="Dropped if not bought by then.")
    ] = 24,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, max=TOKENS_MAX, help="Length of the answer.")] = 400,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Keep PROMPT until a seller is idle; nothing is paid now. `farebox background run` buys it."""
    with exit_on_error(as_json=as_json):
        import json
        import sys
        import time

        from buyer.budgets import parse_units
        from contracts.errors import UsageError
        from gateway.background.limits import MODEL_LENGTH_MAX, REQUEST_BYTES_MAX

        text = sys.stdin.read(REQUEST_BYTES_MAX + 1) if prompt == "-" else prompt
        request = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}).encode()
        if not text.strip() or len(request) > REQUEST_BYTES_MAX:
            raise UsageError(f"PROMPT: expected some text, and at most {REQUEST_BYTES_MAX} bytes as a request")
        if not 0 < len(model) <= MODEL_LENGTH_MAX:
            raise UsageError(f"--model: expected 1 to {MODEL_LENGTH_MAX} characters")
        now_ms = time.time_ns() // 1_000_000
        with _backlog(_settings(config)) as backlog:
            task = backlog.add(
                model,
                request,
                max_price_units=parse_units(max_price, "--max-price") or 0,
                now_ms=now_ms,
                expires_ms=now_ms + within_hours * 3_600_000,
            )
        print_document(_document(task), as_json=as_json, human=lambda: out.print(f"{task.id} waits for an idle seller"))


@background_commands.command("run")
def run(
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left to do, instead of waiting.")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Buy what waits, whenever a seller with a background tier has room. Ctrl-C ends it; nothing is lost.

    It spends only purchases made with `farebox buy --tier background`, and no more for an answer than the task allows.
    """
    with exit_on_error(as_json=as_json):
        import asyncio
        import contextlib

        from gateway.serve import shed_wallet_environment

        # This process spends what was signed, like the gateway, and must not be able to sign either.
        shed_wallet_environment()
        settings = _settings(config)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(settings, once=once))
        with _backlog(settings) as backlog:
            counts = dict(backlog.counts())
        said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nothing waits"
        print_document({"ok": True, "tasks": counts}, as_json=as_json, human=lambda: out.print(said))


@background_commands.command("list")
def list_tasks(
    last: Annotated[int, typer.Option("--last", min=1, max=LISTED_MAX, help="How many.")] = 20,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """List the latest tasks and what became of them."""
    with exit_on_error(as_json=as_json):
        with _backlog(_settings(config)) as backlog:
            documents = [_document(task) for task in backlog.recent(last)]

        def human() -> None:
            for each in documents:
                price = each["paid"] if each["paid"] is not None else f"up to {each['max_price']}"
                reason = printable(each["reason"] or "")
                out.print(f"{each['task']}  {each['state']:<9}  {each['model']}  {price}  {reason}", markup=False)
            if not documents:
                out.print("no tasks yet; `farebox background add` keeps one")

        print_document({"ok": True, "tasks": documents}, as_json=as_json, human=human)


@background_commands.command("show")
def show(task_id: _TaskId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Show a task and its answer."""
    with exit_on_error(as_json=as_json):
        with _backlog(_settings(config)) as backlog:
            task = backlog.find(task_id)
        document = {**_document(task), "answer": task.result}
        print_document(
            document,
            as_json=as_json,
            human=lambda: out.print(printable(task.result or f"{task.state}: {task.reason or ''}"), markup=False),
        )


@background_commands.command("cancel")
def cancel(task_id: _TaskId, config: ConfigFile = None, as_json: Json = False) -> None:
    """Drop a task that waits. What may be paid for already is not dropped."""
    with exit_on_error(as_json=as_json):
        import time

        with _backlog(_settings(config)) as backlog:
            backlog.cancel(task_id, time.time_ns() // 1_000_000)
            task = backlog.find(task_id)
        print_document(_document(task), as_json=as_json, human=lambda: out.print(f"{task.id} is cancelled"))


async def _run(settings: GatewayConfig, *, once: bool) -> None:
    from gateway.background.filler import Filler
    from gateway.serve import open_desk

    async with open_desk(settings) as desk:
        with _backlog(settings) as backlog:
            counts = backlog.counts()
            waiting = counts.get("waiting", 0) + counts.get("buying", 0)
            progress(f"{waiting} waiting for idle sellers; Ctrl-C ends this, and nothing is lost")
            await Filler(desk, backlog).run(until_empty=once)


@contextmanager
def _backlog(settings: GatewayConfig) -> Iterator[Backlog]:
    """Open the backlog: in the pool's PostgreSQL, else in a SQLite file of its own."""
    from gateway.background.backlog import Backlog

    home = settings.open_home()
    backlog = Backlog.open(home.store or f"sqlite:///{home.path / 'background.db'}")
    try:
        yield backlog
    finally:
        backlog.close()


def _settings(config: Path | None) -> GatewayConfig:
    from gateway.config import load_config

    return load_config(config)


def _document(task: Task) -> dict[str, Any]:
    from buyer.budgets import shown_units

    return {
        "ok": True,
        "task": task.id,
        "state": task.state,
        "model": task.model,
        "max_price": shown_units(task.max_price_units),
        "paid": None if task.paid_units is None else shown_units(task.paid_units),
        "seller": task.purchase,
        "put_off": task.put_off,
        "reason": task.reason,
        "key": task.key,
    }

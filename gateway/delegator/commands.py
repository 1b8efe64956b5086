"""`farebox delegate`: have a task done by several paid workers within one budget, and look at what came of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.console import exit_on_error, out, print_document, printable
from gateway.options import Json

if TYPE_CHECKING:
    from buyer.home import Home
    from gateway.delegator.delegation import Delegation
    from gateway.delegator.journal import Journal, Run
    from gateway.delegator.order import Order
    from gateway.delegator.progress import Planned
    from gateway.delegator.run import NodeEvent

__all__ = ["delegate_commands"]

delegate_commands = typer.Typer(no_args_is_help=True, help="One task, many paid workers, one budget that holds.")

_Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="gateway.yaml; its `delegate` section says which model can do what."
    ),
]
_RunId = Annotated[str, typer.Argument(metavar="RUN", help="As `farebox delegate list` shows it.")]
_PlanFile = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="A plan of your own; no planner is paid.")
]


@delegate_commands.command("run")
def run(
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help='What is to be done; "-" reads it from stdin.')
    ] = None,
    *,
    budget: Annotated[str, typer.Option("--budget", metavar="AMOUNT", help='Most for everything, as "0.50".')],
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="As 90s or 5m; else as gateway.yaml has it."),
    ] = None,
    plan: _PlanFile = None,
    planner_model: Annotated[
        str | None, typer.Option("--planner-model", metavar="MODEL", help="Who plans; else as gateway.yaml has it.")
    ] = None,
    soonest: Annotated[
        bool, typer.Option("--soonest", help="Spend the budget to be done as soon as can be, not only by the deadline.")
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate/--no-gate", help="Make one call of it where a planner's plan would not be faster.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show who would do what, for how much; pay nothing, not even a planner.")
    ] = False,
    config: _Config = None,
    as_json: Json = False,
) -> None:
    """Plan TASK, buy its parts from the sellers in your pool, and print the answer.

    Independent parts run at once; cheap work goes to cheap sellers. Planning included, nothing is paid beyond the
    budget. Without a planner or a plan, one call does it all. The answer is on stdout, what happens on stderr.
    """
    with exit_on_error(as_json=as_json):
        from buyer.budgets import parse_units
        from gateway.delegator.order import Order
        from gateway.delegator.settings import DelegateSettings

        settings = _settings(config)
        limits = settings.delegate or DelegateSettings()
        order = Order(
            _task(task, plan),
            parse_units(budget, "--budget") or 0,
            limits.deadline_s if deadline is None else _seconds(deadline),
            planner_model or limits.planner,
            None if plan is None else _read_plan(plan),
            is_judged=gate,
            is_soonest=soonest,
        )
        if dry_run:
            _dry_run(settings, order, as_json=as_json)
            return
        code = _carry_out(settings, lambda delegator: delegator.begin(order), as_json=as_json)
    raise typer.Exit(code)


@delegate_commands.command("resume")
def resume(run_id: _RunId, config: _Config = None, as_json: Json = False) -> None:
    """Finish a run that was cut off or waits for an answer. What was paid for is asked for, never bought again."""
    with exit_on_error(as_json=as_json):
        code = _carry_out(_settings(config), lambda delegator: delegator.resume(run_id), as_json=as_json)
    raise typer.Exit(code)


@delegate_commands.command("show")
def show(
    run_id: _RunId,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw planned against actual times into this file.")
    ] = None,
    config: _Config = None,
    as_json: Json = False,
) -> None:
    """Show a run: its plan, who did what, planned against actual time and price, and the payments behind it."""
    with exit_on_error(as_json=as_json):
        import time

        from buyer.budgets import shown_units
        from buyer.pool import Pool
        from gateway.delegator.delegation import receipts_in
        from gateway.delegator.documents import shown_document
        from gateway.delegator.gantt import bars_of, gantt_svg
        from gateway.delegator.order import planned_of

        home = _settings(config).open_home()
        with _journal(home) as journal:
            found = journal.find(run_id)
        with Pool.open(home) as pool:
            receipts = receipts_in(pool, found)
        sellers = {key: receipt.purchase for key, receipt in receipts.items()}
        planned = planned_of(found) if found.plan else None
        bars = [] if planned is None else bars_of(found, planned, sellers, time.time_ns() // 1_000_000)
        if svg is not None:
            _write(svg, gantt_svg(f"{found.id}: planned and actual", bars))
        document = shown_document(found, bars, receipts)

        def human() -> None:
            out.print(
                f"{found.id}  {found.state}  {document['spent']} of {document['budget']} spent"
                f"{_still_open(document['open'])}  "
                f"{printable(document['note'])}",
                markup=False,
            )
            out.print(f"{'node':<20}{'state':<11}{'seller':<18}{'paid':>10}{'planned':>18}{'actual':>18}")
            for bar in bars:
                out.print(
                    f"{bar.node_id:<20}{bar.state:<11}{printable(bar.seller):<18}{shown_units(bar.paid_units):>10}"
                    f"{_span(bar.planned):>18}{_span(bar.actual):>18}",
                    markup=False,
                )
            if svg is not None:
                out.print(f"drawn in {svg}", markup=False)

        print_document(document, as_json=as_json, human=human)


@delegate_commands.command("list")
def list_runs(
    last: Annotated[int, typer.Option("--last", min=1, max=1_000, help="How many.")] = 20,
    config: _Config = None,
    as_json: Json = False,
) -> None:
    """List the latest runs. One that is "running" and in nobody's hands can be resumed."""
    with exit_on_error(as_json=as_json):
        from gateway.delegator.documents import run_document

        with _journal(_settings(config).open_home()) as journal:
            documents = [run_document(journal.find(each.id)) for each in journal.recent(last)]

        def human() -> None:
            for document in documents:
                task = printable(" ".join(document["task"].split()))[:60]
                spent = f"{document['spent']:>10} of {document['budget']:<8}"
                out.print(f"{document['run']}  {document['state']:<8}{spent}  {task}", markup=False)
            if not documents:
                out.print("no runs yet; `farebox delegate run` makes one")

        print_document({"ok": True, "runs": documents}, as_json=as_json, human=human)


@delegate_commands.command("plan")
def plan(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A plan to check.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a plan.")] = False,
    as_json: Json = False,
) -> None:
    """Check a plan: its form, its references, circles, unused nodes and size. Prices and sellers are not looked at."""
    with exit_on_error(as_json=as_json):
        from contracts.errors import UsageError
        from gateway.delegator.plan import plan_schema

        if schema:
            print_document(plan_schema(), as_json=True, human=lambda: None)
            return
        if file is None:
            raise UsageError("FILE: which plan?", remedy="name a file, or ask for the --schema")
        checked = _read_plan(file)
        document = {"ok": True, "nodes": len(checked.nodes), "output": checked.output}
        print_document(
            document,
            as_json=as_json,
            human=lambda: out.print(f"{len(checked.nodes)} nodes, the answer is {checked.output}", markup=False),
        )


def _settings(config: Path | None) -> Any:
    from gateway.config import load_config
    from gateway.serve import shed_wallet_environment

    # This process spends what was signed, like the gateway, and must not be able to sign either.
    shed_wallet_environment()
    return load_config(config)


def _task(text: str | None, plan: Path | None) -> str:
    import sys

    from contracts.errors import UsageError
    from gateway.delegator.limits import TASK_LENGTH_MAX

    if text == "-":
        return sys.stdin.read(TASK_LENGTH_MAX + 1)
    if text is not None:
        return text
    if plan is None:
        raise UsageError("TASK: what is to be done?", remedy="say it in quotes, or name a file with --plan")
    return f"the plan in {plan}"


def _read_plan(file: Path) -> Any:
    from contracts.errors import NameUnknown
    from gateway.delegator.limits import PLAN_BYTES_MAX
    from gateway.delegator.plan import parse_plan

    try:
        with file.open("rb") as opened:
            data = opened.read(PLAN_BYTES_MAX + 1)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise NameUnknown(f"plan: {file}: {problem}", remedy="name a file that can be read") from None
    return parse_plan(data)


def _seconds(text: str) -> float:
    from contracts.errors import UsageError

    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m", "h") else (text, "s")
    if not (number.isascii() and number.replace(".", "", 1).isdigit()):
        raise UsageError(f"--deadline: expected a time as 90s, 5m or 1h, got {text[:20]!r}")
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def _carry_out(settings: Any, start: Any, *, as_json: bool) -> int:
    """Carry a delegation out before the user's eyes and return the exit code: 6 while an answer is unknown."""
    import asyncio
    from contextlib import aclosing

    from gateway.delegator.delegation import delegating

    async def work() -> int:
        async with delegating(settings) as delegator:
            delegation: Delegation = start(delegator)
            async with aclosing(delegation.events()) as events:
                last = await _followed(delegation, events)
                code = _tell_end(delegation, last, delegator.journal.find(delegation.id), as_json=as_json)
                # The answer is out; the rest is for the books.
                async for _ in events:
                    pass
            return code

    return asyncio.run(work())


async def _followed(delegation: Delegation, events: AsyncIterator[NodeEvent]) -> NodeEvent:
    """Show what happens until the run is over, and return its last event."""
    import asyncio

    from contracts.console import progress
    from gateway.delegator.live import showing, tell

    try:
        with showing(delegation) as board:
            async for event in events:
                tell(board.take(event))
                if event.happening == "finished":
                    break
    except asyncio.CancelledError:
        progress(f"stopped; `farebox delegate resume {delegation.id}` goes on with it, and what was paid for is kept")
        raise
    return event


def _tell_end(delegation: Delegation, last: NodeEvent, found: Run, *, as_json: bool) -> int:
    """Print the answer, or what is missing, and return the exit code."""
    import sys

    from contracts.console import progress
    from gateway.delegator.documents import run_document

    document = {**run_document(found), "ok": last.text is not None, "text": last.text, "missing": list(last.missing)}

    def human() -> None:
        if last.text is not None:
            # Somebody's words must not steer a terminal; in a file they are what they are.
            sys.stdout.write((printable(last.text) if sys.stdout.isatty() else last.text) + "\n")
            sys.stdout.flush()
        else:
            _tell_missing(delegation, found, last)
        if last.open_units:
            progress("waiting a little for a call that was paid for; to end it loses nothing")

    print_document(document, as_json=as_json, human=human)
    if last.text is not None:
        return 0
    return 6 if found.state == "running" else 1


def _tell_missing(delegation: Delegation, found: Run, last: NodeEvent) -> None:
    """Say what there is no answer for, and what to do about it."""
    from contracts.console import progress

    progress(f"no answer: {', '.join(last.missing)} missing")
    if found.state == "running":
        progress(f"run `farebox delegate resume {delegation.id}` later: what was paid for is not lost")
    else:
        progress(f"`farebox delegate show {delegation.id}` shows what was bought")


def _dry_run(settings: Any, order: Order, *, as_json: bool) -> None:
    import asyncio

    from gateway.delegator.delegation import delegating
    from gateway.delegator.documents import course_document

    async def work() -> Planned:
        async with delegating(settings) as delegator:
            return await delegator.course(order)

    planned = asyncio.run(work())
    document = course_document(planned)

    def human() -> None:
        if order.plan is None and order.planner is not None:
            out.print("a planner is paid, so it was not asked; one call of the whole task would be:")
        for node in document["nodes"]:
            out.print(
                f"{node['id']:<20}{node['offer']:<28}{node['price']:>10}{_span(node['planned_s']):>18}", markup=False
            )
        out.print(f"at most {document['price']} in all, about {document['takes_s']:.1f} s; nothing was paid")

    print_document(document, as_json=as_json, human=human)


@contextmanager
def _journal(home: Home) -> Iterator[Journal]:
    """Give the journal of a home for reading."""
    from gateway.delegator.delegation import journal_url
    from gateway.delegator.journal import Journal

    journal = Journal.open(journal_url(home))
    try:
        yield journal
    finally:
        journal.close()


def _write(file: Path, text: str) -> None:
    from contracts.errors import UsageError

    try:
        file.write_text(text)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise UsageError(f"--svg: {file}: {problem}", remedy="name a file that can be written") from None


def _still_open(units: str) -> str:
    return "" if units == "0" else f", {units} more open"


def _span(span: Any) -> str:
    return "" if span is None else f"{span[0]:.1f} to {span[1]:.1f} s"

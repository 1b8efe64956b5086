"""`farebox bid`: who decides, why, what it brought, and what each way of choosing gets in a simulated market."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from contracts.console import exit_on_error, out, print_document, printable
from gateway.options import Json

if TYPE_CHECKING:
    from gateway.bidder.events import Event, EventLog
    from gateway.bidder.explain import Moved, OfferTerms
    from gateway.bidder.report import Report

__all__ = ["bid_commands"]

bid_commands = typer.Typer(no_args_is_help=True, help="How sellers are chosen where several could answer a call.")


@bid_commands.command("policy")
def policy(as_json: Json = False) -> None:
    """Show what decides now, and how well each way of deciding has foreseen what came of it.

    The figures are the mean log-loss over the latest 300 outcomes: 0 is perfect foresight, 0.69 a coin.
    """
    with exit_on_error(as_json=as_json):
        import asyncio

        from gateway.bidder.opening import open_bidder

        bidder = open_bidder(_home())
        standing = bidder.standing()
        asyncio.run(bidder.close())

        def human() -> None:
            out.print(f"decides    {standing.decides} ({standing.reason})")
            out.print(f"outcomes   {standing.outcomes}")
            out.print(f"model      {standing.live or 'none live'}, {standing.shadow or 'none'} in the shadow")
            out.print(f"drift      {standing.drift_alarms} alarms")
            for name, loss in sorted(standing.losses.items(), key=lambda each: each[1]):
                out.print(f"log-loss   {name:<10} {loss:.3f}")

        print_document(_document(standing), as_json=as_json, human=human)


@bid_commands.command("explain")
def explain(
    decision: Annotated[str, typer.Argument(metavar="DECISION", help="The x-farebox-decision header of an answer.")],
    as_json: Json = False,
) -> None:
    """Show the terms of one decision: every offer, what it was reckoned to bring, and what moved the model."""
    with exit_on_error(as_json=as_json):
        import contextlib

        from contracts.errors import FareboxError, NameUnknown
        from gateway.bidder.explain import explain_model, explain_rule
        from gateway.bidder.trainer import newest

        home, log = _home(), _log()
        event = log.find(decision)
        log.close()
        if event is None:
            raise NameUnknown(f"no decision is called {decision[:80]!r}", remedy="copy it from x-farebox-decision")
        terms, moved = explain_rule(event), []
        if event.chosen is not None:
            with contextlib.suppress(FareboxError, ImportError):
                found = newest(home.path / "models", home.path / "models.key")
                if found is not None:
                    moved = explain_model(found[1], event.view.rows[event.chosen])

        document = {
            "decision": event.id,
            "policy": event.policy,
            "action": event.action,
            "reason": event.reason,
            "propensity": event.propensity,
            "is_exploration": event.is_exploration,
            "offers": [_document(each) for each in terms],
            "model": [_document(each) for each in moved],
            "outcome": None if event.outcome is None else {**_document(event.outcome), "is_good": event.is_good},
        }
        print_document(document, as_json=as_json, human=lambda: _print_explained(event, terms, moved))


def _print_explained(event: Event, terms: Sequence[OfferTerms], moved: Sequence[Moved]) -> None:
    task = event.view.task
    out.print(f"{event.policy}: {event.action} ({event.reason}), chosen with probability {event.propensity:.3f}")
    out.print(f"worth {task.value:g}, {task.slack_s:g} s to the deadline, work {task.work:.2f}")
    out.print(f"\n  {'offer':<24}{'tier':<10}{'price':>10}{'wait':>8}{'work':>8}{'in time':>9}{'good':>7}{'worth':>10}")
    for each in terms:
        out.print(
            f"{'>' if each.chosen else ' '} {printable(each.name):<24}{each.tier:<10}{each.price:>10.6f}"
            f"{each.wait_s:>7.1f}s{each.work_s:>7.1f}s{each.p_on_time:>9.2f}{each.p_ok:>7.2f}{each.utility:>10.6f}",
            markup=False,
        )
    for each_moved in moved:
        sign = "towards" if each_moved.log_odds > 0 else "against"
        out.print(
            f"  {each_moved.feature} = {each_moved.value:.3g} speaks {sign} {each_moved.head!r}: "
            f"{each_moved.log_odds:+.2f}"
        )
    if event.outcome is not None:
        good = "good and in time" if event.is_good else "not good, or late"
        out.print(f"\ncame true: {good} after {event.outcome.latency_s:.2f} s")


@bid_commands.command("report")
def report(
    last: Annotated[
        int, typer.Option("--last", min=1, max=200_000, help="How many decisions to look back on.")
    ] = 8_000,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write it as one HTML page, with plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what choosing has brought, against the rule and the cheapest, and where the calls went."""
    with exit_on_error(as_json=as_json):
        from gateway.bidder.report import report_of

        log = _log()
        events = log.recent(last)
        log.close()
        found = report_of(events)
        if html is not None:
            _write_page(html, found, events)

        def human() -> None:
            if html is not None:
                out.print(f"written to {html}", markup=False)
            out.print(
                f"{found.decisions} decisions, {found.good:.0%} good and in time, {found.paid:g} paid, "
                f"{found.explored} to learn from"
            )
            out.print(f"brought {found.utility:g}", end="")
            for name, value in (("the rule", found.of_rule), ("the cheapest", found.of_cheapest)):
                out.print("" if value is None else f"; {name} would have brought about {value:g}", end="")
            out.print()
            if found.reliability:
                out.print("\nestimated   came true   decisions")
            for each in found.reliability:
                out.print(f"{each.estimated:>9.2f}{each.realised:>12.2f}{each.decisions:>12}")
            if found.sellers:
                out.print(f"\n{'seller':<24}{'calls':>7}{'good':>7}{'median':>9}{'price':>12}{'paid':>12}")
            for seller in found.sellers:
                out.print(
                    f"{printable(seller.name):<24}{seller.calls:>7}{seller.good:>7.0%}{seller.latency_s:>8.2f}s"
                    f"{seller.price:>12.6f}{seller.paid:>12.6f}",
                    markup=False,
                )

        print_document(_document(found), as_json=as_json, human=human)


@bid_commands.command("simulate")
def simulate(
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="How many markets.")] = 2,
    seed_base: Annotated[int, typer.Option("--seed-base", min=0, help="The first seed.")] = 0,
    tasks: Annotated[int, typer.Option("--tasks", min=3_000, max=100_000, help="Tasks in each market.")] = 6_000,
    as_json: Json = False,
) -> None:
    """Run every policy past simulated markets; needs the bidder extra.

    What each gets is a share of what a chooser gets that knows everything but luck. `python -m bench bidder` is the
    long form, with intervals and gates.
    """
    with exit_on_error(as_json=as_json):
        from importlib.util import find_spec

        from contracts.errors import ConfigInvalid

        if find_spec("lightgbm") is None:
            raise ConfigInvalid("LightGBM is not installed", remedy="pip install 'farebox[bidder]'")
        from gateway.bidder.simulation.choosers import POLICIES
        from gateway.bidder.simulation.shares import shares_of_seed

        runs = [shares_of_seed(seed, tasks, list(POLICIES)) for seed in range(seed_base, seed_base + seeds)]
        names = ("cold", "warm", "all", "hit", "cost_per_good", "skipped")
        found = {
            name: {each: sum(getattr(run[name], each) for run in runs) / len(runs) for each in names}
            for name in POLICIES
        }

        def human() -> None:
            out.print(f"{'policy':<20}{'first 1,000':>13}{'warm':>8}{'good':>8}{'cost/good':>11}{'skipped':>9}")
            for name, each in found.items():
                out.print(
                    f"{name:<20}{each['cold']:>13.3f}{each['warm']:>8.3f}{each['hit']:>8.2f}"
                    f"{each['cost_per_good']:>11.2f}{each['skipped']:>9.2f}"
                )

        document = {"seeds": list(range(seed_base, seed_base + seeds)), "tasks": tasks, "policies": found}
        print_document(document, as_json=as_json, human=human)


def _write_page(path: Path, found: Report, events: list[Event]) -> None:
    import time

    from contracts.errors import UsageError
    from gateway.bidder.curves import curves_of
    from gateway.bidder.page import page_of

    page = page_of(found, curves_of(events), time.time())
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise UsageError(f"--html: {path}: {(error.strerror or str(error)).lower()}") from None


def _home() -> Any:
    from buyer.home import Home

    return Home.open()


def _log() -> EventLog:
    from gateway.bidder.events import EventLog
    from gateway.bidder.opening import events_url

    return EventLog.open(events_url(_home()))


def _document(value: Any) -> Any:
    return msgspec.to_builtins(value)

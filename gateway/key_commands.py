"""`farebox key` and `farebox budget`: who may spend, and how much."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.console import exit_on_error, out, print_document, progress
from gateway.options import Json

if TYPE_CHECKING:
    from buyer.budgets import Budget
    from buyer.pool import Pool

__all__ = ["budget_commands", "key_commands"]

key_commands = typer.Typer(no_args_is_help=True, help="Keys with which clients call the gateway.")
budget_commands = typer.Typer(no_args_is_help=True, help="Limits on what is spent, per day and for ever.")

_MaxPerDay = Annotated[
    str | None, typer.Option("--max-per-day", metavar="AMOUNT", help="Most that one UTC day may cost, in tokens.")
]
_MaxTotal = Annotated[
    str | None, typer.Option("--max-total", metavar="AMOUNT", help="Most that may ever be spent, in tokens.")
]
_Scope = Annotated[
    str,
    typer.Argument(metavar="SCOPE", help="all, purchase:NAME, seller:https://host or key:NAME.", show_default=False),
]


@key_commands.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it, as in receipts and budgets.")],
    max_per_day: _MaxPerDay = None,
    max_total: _MaxTotal = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="The model ids it may call. \\[all]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a client key. It is shown once, and only its hash is kept."""
    with exit_on_error(as_json=as_json):
        from buyer.budgets import parse_units, set_budget
        from buyer.client_keys import create_key
        from buyer.purchase import check_model
        from buyer.wiring import the_pool

        allowed = [check_model(model.strip()) for model in models.split(",")] if models else []
        per_day, total = parse_units(max_per_day, "--max-per-day"), parse_units(max_total, "--max-total")
        now_s = int(time.time())

        def work(connection: Any) -> str:
            made = create_key(connection, name, allowed, now_s)
            if per_day is not None or total is not None:
                set_budget(connection, f"key:{name}", max_per_day=per_day, max_total=total, now_s=now_s)
            return made

        with the_pool() as pool:
            key = pool.database.transact(work)
        print_document(
            {"ok": True, "name": name, "key": key, "models": allowed or None},
            as_json=as_json,
            human=lambda: out.print(f"{key}\nkeep it: it is not shown again", markup=False),
        )


@key_commands.command("list")
def list_keys(as_json: Json = False) -> None:
    """List client keys by name, with what they may call."""
    with exit_on_error(as_json=as_json):
        from buyer.client_keys import read_keys
        from buyer.wiring import the_pool

        with the_pool() as pool:
            keys = pool.database.read(read_keys)
        document = {
            "ok": True,
            "keys": [
                {
                    "name": key.name,
                    "models": key.models,
                    "created": _time(key.created_s),
                    "revoked": None if key.revoked_s is None else _time(key.revoked_s),
                }
                for key in keys
            ],
        }

        def human() -> None:
            for key in keys:
                state = "revoked" if key.revoked_s is not None else "valid"
                out.print(f"{key.name:24} {state:8} {', '.join(key.models or ('all models',))}", markup=False)
            if not keys:
                out.print("no keys yet; `farebox key create NAME` makes one")

        print_document(document, as_json=as_json, human=human)


@key_commands.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A key of `farebox key list`.")], as_json: Json = False
) -> None:
    """Refuse a key from now on."""
    with exit_on_error(as_json=as_json):
        from buyer.client_keys import revoke_key
        from buyer.wiring import the_pool

        with the_pool() as pool:
            pool.database.transact(lambda connection: revoke_key(connection, name, int(time.time())))
        print_document({"ok": True, "revoked": name}, as_json=as_json, human=lambda: out.print(f"{name} is revoked"))


@budget_commands.command("set")
def set_limits(
    scope: _Scope, max_per_day: _MaxPerDay = None, max_total: _MaxTotal = None, as_json: Json = False
) -> None:
    """Limit what a scope may spend. What it has spent before counts; limits not named are lifted."""
    with exit_on_error(as_json=as_json):
        from buyer.budgets import check_scope, parse_units, read_budgets, set_budget
        from buyer.wiring import the_pool
        from contracts.errors import UsageError

        name = check_scope(scope)
        per_day, total = parse_units(max_per_day, "--max-per-day"), parse_units(max_total, "--max-total")
        if per_day is None and total is None:
            raise UsageError(
                "name --max-per-day, --max-total or both", remedy="`farebox budget remove` lifts all limits"
            )

        def work(connection: Any) -> Budget:
            set_budget(connection, name, max_per_day=per_day, max_total=total, now_s=int(time.time()))
            return next(budget for budget in read_budgets(connection) if budget.scope == name)

        with the_pool() as pool:
            budget = pool.database.transact(work)
            if missing := _missing(pool, name):
                progress(f"{missing} yet; the limit holds as soon as there is one")
        print_document({"ok": True, **_document(budget)}, as_json=as_json, human=lambda: _print(budget))


@budget_commands.command("list")
def list_budgets(as_json: Json = False) -> None:
    """List all limits, and what is taken of them: everything reserved or spent."""
    with exit_on_error(as_json=as_json):
        from buyer.budgets import read_budgets
        from buyer.wiring import the_pool

        with the_pool() as pool:
            budgets = pool.database.read(read_budgets)

        def human() -> None:
            for budget in budgets:
                _print(budget)
            if not budgets:
                out.print("no limits yet; `farebox budget set all --max-per-day AMOUNT` sets one")

        print_document({"ok": True, "budgets": [_document(it) for it in budgets]}, as_json=as_json, human=human)


@budget_commands.command("remove")
def remove_limits(scope: _Scope, as_json: Json = False) -> None:
    """Lift all limits of a scope."""
    with exit_on_error(as_json=as_json):
        from buyer.budgets import check_scope, remove_budget
        from buyer.wiring import the_pool

        name = check_scope(scope)
        with the_pool() as pool:
            pool.database.transact(lambda connection: remove_budget(connection, name))
        print_document({"ok": True, "removed": name}, as_json=as_json, human=lambda: out.print(f"{name} has no limit"))


def _missing(pool: Pool, scope: str) -> str:
    """Return what a scope names and is not there, in words: most likely it is misspelt."""
    from buyer.client_keys import read_keys

    kind, _, name = scope.partition(":")
    if kind == "purchase" and name not in {purchase.name for purchase in pool.purchases()}:
        return f"no purchase is called {name!r}"
    if kind == "key" and name not in {key.name for key in pool.database.read(read_keys)}:
        return f"no key is called {name!r}"
    return ""


def _document(budget: Budget) -> dict[str, Any]:
    from buyer.budgets import shown_units

    today = budget.taken_on(int(time.time()) // 86_400)
    return {
        "scope": budget.scope,
        "max_per_day": None if budget.max_per_day is None else shown_units(budget.max_per_day),
        "max_total": None if budget.max_total is None else shown_units(budget.max_total),
        "taken_today": shown_units(today),
        "taken_total": shown_units(budget.taken_total),
    }


def _print(budget: Budget) -> None:
    shown = _document(budget)
    limits = [
        f"{shown[taken]} of {shown[limit]} {word}"
        for limit, taken, word in (("max_per_day", "taken_today", "today"), ("max_total", "taken_total", "in total"))
        if shown[limit] is not None
    ]
    out.print(f"{budget.scope}: {', '.join(limits)}", markup=False)


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")

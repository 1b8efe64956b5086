"""Budgets: limits on what is claimed, per scope, per UTC day and for ever, kept where the claims are.

A scope is `all`, `purchase:NAME`, `seller:ORIGIN` or `key:NAME` (a client key). A claim takes its price from every
scope it falls under, inside the transaction that claims; a claim that never left gives it back, and so does an
authorization that the chain shows revoked or unused past its time. What is taken is therefore reserved and spent
together, and never passes a limit. Amounts are whole tokens, whatever the token: a limit of 1.00 counts a dollar of one
as a dollar of another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from buyer.endpoint import origin_of
from buyer.purchase import Purchase
from buyer.rows import COST_SQL
from contracts.address import ZERO
from contracts.errors import BudgetExceeded, NameUnknown, UsageError
from contracts.money import Asset, parse_amount
from contracts.storage import Connection, Row

__all__ = [
    "Budget",
    "budget_units",
    "check_scope",
    "counted",
    "give_back",
    "parse_units",
    "read_budgets",
    "recount",
    "remove_budget",
    "scopes_of",
    "set_budget",
    "shown_units",
    "take",
]

DAY_S = 86_400
# No token has more decimals than this, so every amount of every token is a whole number of units.
_DECIMALS = 36
_UNITS = Asset(ZERO, "", "", _DECIMALS, "")
_TOKENS = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)

# What counts as taken: everything claimed that did not come back.
_TAKEN = "('claimed', 'sent', 'unknown', 'spent')"


@dataclass(frozen=True, slots=True)
class Budget:
    """One scope's limits and what is taken of them, in units (`budget_units`). None: no such limit.

    `taken_day` is of `day`, in days since 1970 (UTC).
    """

    scope: str
    max_per_day: int | None
    max_total: int | None
    taken_total: int
    day: int
    taken_day: int

    def taken_on(self, day: int) -> int:
        """Return what is taken on `day`. A clock that goes back over midnight opens no day again."""
        return self.taken_day if day <= self.day else 0


def budget_units(amount_atomic: int, asset: Asset) -> int:
    """Return an amount of a token in units that all tokens share: whole tokens times 10^36."""
    scale: int = 10 ** (_DECIMALS - asset.decimals)
    return amount_atomic * scale


def parse_units(text: str | None, field: str) -> int | None:
    """Return the units of an amount such as "2.50"; None of None. Raises `UsageError` naming `field`.

    Neither `$` nor a symbol nor `atomic` has a meaning where every token counts alike.
    """
    if isinstance(text, str) and not _TOKENS.fullmatch(text.strip()):
        raise UsageError(f'{field}: expected a number of tokens, as "0.50", whatever the token; got {text[:60]!r}')
    return None if text is None else parse_amount(text, _UNITS, field, zero_allowed=True)


def shown_units(units: int) -> str:
    """Return units as a decimal number of tokens."""
    whole, rest = divmod(units, 10**_DECIMALS)
    return f"{whole}.{rest:0{_DECIMALS}d}".rstrip("0").rstrip(".")


def check_scope(text: str) -> str:
    """Return a scope as it is stored. Raises `UsageError`."""
    kind, colon, name = text.partition(":")
    if text == "all" or (colon and name and kind in ("purchase", "key")):
        return text
    if kind == "seller" and name:
        return f"seller:{origin_of(name)}"
    raise UsageError(
        f"SCOPE: expected all, purchase:NAME, seller:https://host or key:NAME, got {text[:80]!r}",
        remedy="see `farebox budget set --help`",
    )


def scopes_of(purchase: Purchase, client_key: str) -> tuple[str, ...]:
    """Return every scope a claim on `purchase` falls under; `client_key` is empty for a caller without one."""
    scopes = ("all", f"purchase:{purchase.name}", f"seller:{purchase.origin}")
    return (*scopes, f"key:{client_key}") if client_key else scopes


def take(connection: Connection, scopes: Sequence[str], units: int, now_s: int) -> None:
    """Take `units` from every budget among `scopes`, or from none. Raises `BudgetExceeded` naming the limit."""
    today = now_s // DAY_S
    found = _read(connection, scopes)
    for budget in found:
        _check(budget, units, today)
    for budget in found:
        day, taken_day = max(budget.day, today), budget.taken_on(today)
        _write(connection, budget.scope, budget.taken_total + units, day, taken_day + units)


def give_back(connection: Connection, scopes: Sequence[str], units: int, claimed_s: int) -> None:
    """Return what a claim at `claimed_s` took."""
    for budget in _read(connection, scopes):
        of_today = units if budget.day == claimed_s // DAY_S else 0
        total, taken_day = max(0, budget.taken_total - units), max(0, budget.taken_day - of_today)
        _write(connection, budget.scope, total, budget.day, taken_day)


def counted(connection: Connection, scope: str, day: int) -> tuple[int, int]:
    """Return what the authorizations themselves say is taken of a scope: ever, and on `day`.

    One of which it is not known when it was claimed (the machine went down with it) counts for every day.
    """
    total = on_day = 0
    rows = connection.execute(
        f"""SELECT purchases.name, purchases.endpoint, authorizations.client_key, terms.decimals,
                {COST_SQL} AS cost,
                CASE WHEN claimed_s IS NULL OR claimed_s >= :day THEN 1 ELSE 0 END AS is_today, count(*) AS times
            FROM authorizations JOIN purchases ON purchases.id = authorizations.purchase_id
                JOIN terms ON terms.id = authorizations.terms_id
            WHERE authorizations.state IN {_TAKEN}
            GROUP BY purchases.name, purchases.endpoint, authorizations.client_key, terms.decimals,
                cost, is_today""",  # noqa: S608 - a constant
        {"day": day * DAY_S},
    ).fetchall()
    for row in rows:
        names = ("all", f"purchase:{row['name']}", f"seller:{origin_of(row['endpoint'])}", f"key:{row['client_key']}")
        if scope in names:
            units: int = int(row["cost"]) * 10 ** (_DECIMALS - row["decimals"]) * row["times"]
            total += units
            on_day += units if row["is_today"] else 0
    return total, on_day


def recount(connection: Connection) -> None:
    """Set what is taken of every budget to what the authorizations say: after moves of many rows at once."""
    for budget in read_budgets(connection):
        total, on_day = counted(connection, budget.scope, budget.day)
        _write(connection, budget.scope, total, budget.day, on_day)


def set_budget(
    connection: Connection, scope: str, *, max_per_day: int | None, max_total: int | None, now_s: int
) -> None:
    """Set a scope's limits, in units. What was claimed before counts."""
    day = now_s // DAY_S
    total, on_day = counted(connection, scope, day)
    connection.execute(
        """INSERT INTO budgets (scope, max_per_day, max_total, taken_total, day, taken_day) VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT (scope) DO UPDATE SET max_per_day = excluded.max_per_day, max_total = excluded.max_total,
               taken_total = excluded.taken_total, day = excluded.day, taken_day = excluded.taken_day""",
        (scope, _text(max_per_day), _text(max_total), str(total), day, str(on_day)),
    )


def remove_budget(connection: Connection, scope: str) -> None:
    """Lift all limits of a scope. Raises `NameUnknown`."""
    if connection.execute("DELETE FROM budgets WHERE scope = ?", (scope,)).rowcount == 0:
        raise NameUnknown(f"no budget is set for {scope[:120]}", remedy="run `farebox budget list`")


def read_budgets(connection: Connection) -> list[Budget]:
    """Return all budgets by scope."""
    return [_budget(row) for row in connection.execute("SELECT * FROM budgets ORDER BY scope").fetchall()]


def _read(connection: Connection, scopes: Sequence[str]) -> list[Budget]:
    marks = ", ".join("?" * len(scopes))
    query = f"SELECT * FROM budgets WHERE scope IN ({marks}) ORDER BY scope"  # noqa: S608 - question marks only
    return [_budget(row) for row in connection.execute(query, tuple(scopes)).fetchall()]


def _write(connection: Connection, scope: str, total: int, day: int, taken_day: int) -> None:
    connection.execute(
        "UPDATE budgets SET taken_total = ?, day = ?, taken_day = ? WHERE scope = ?",
        (str(total), day, str(taken_day), scope),
    )


def _check(budget: Budget, units: int, today: int) -> None:
    day = max(budget.day, today)
    end = datetime.fromtimestamp((day + 1) * DAY_S, UTC).isoformat().replace("+00:00", "Z")
    limits = (
        ("a day", budget.max_per_day, budget.taken_on(today), f"it resets at {end}"),
        ("in total", budget.max_total, budget.taken_total, "it never resets"),
    )
    for kind, limit, taken, reset in limits:
        if limit is not None and taken + units > limit:
            raise BudgetExceeded(
                f"budget of {budget.scope}: {shown_units(limit)} {kind}, of which {shown_units(taken)} are taken, and "
                f"this call costs {shown_units(units)}; {reset}",
                remedy=f"raise it with `farebox budget set {budget.scope}`, or wait",
            )


def _budget(row: Row) -> Budget:
    scope, max_per_day, max_total, taken_total, day, taken_day = row
    return Budget(scope, _number(max_per_day), _number(max_total), int(taken_total), day, int(taken_day))


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)

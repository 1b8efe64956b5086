"""A run on the terminal: a tree that is drawn again as things happen, or one line for each where nobody watches.

Both go to stderr, so that stdout holds the answer and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from buyer.budgets import shown_units
from contracts.console import err, printable, progress
from gateway.delegator.delegation import Delegation
from gateway.delegator.plan import Plan
from gateway.delegator.planner import PLANNER_NODE
from gateway.delegator.run import NodeEvent

__all__ = ["Board", "showing", "tell"]

_MARKS = {
    "waiting": ("·", "dim"),
    "started": ("▸", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "skipped": ("-", "dim"),
    "unknown": ("?", "yellow"),
    "budget": ("!", "red"),
}
_REDRAWS_PER_S = 8
_REASON_SHOWN = 60


@dataclass(slots=True)
class _Row:
    state: str = "waiting"
    offer: str = ""
    paid_units: int = 0
    began_s: float | None = None
    took_s: float | None = None
    reason: str = ""


@dataclass(slots=True)
class Board:
    """What is shown of a run: each node's state, seller, price and time, under the nodes that it waits for."""

    delegation: Delegation
    spent_units: int = 0
    rows: dict[str, _Row] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def take(self, event: NodeEvent) -> str:
        """Note an event and return it as a line."""
        if event.spent_units is not None:
            self.spent_units = event.spent_units
        if event.node_id is None:
            return self._line_of_run(event)
        row = self.rows.setdefault(event.node_id, _Row())
        row.state, row.reason = event.happening, event.reason or ""
        row.offer = event.offer or row.offer
        row.paid_units += event.paid_units or 0
        if event.happening == "started":
            row.began_s, row.took_s = event.at_s, None
        elif row.began_s is not None:
            row.took_s = event.at_s - row.began_s
        return f"{event.at_s:6.1f} s  {event.happening:<8} {_name(event.node_id):<20} {self._said(event.node_id, row)}"

    def _line_of_run(self, event: NodeEvent) -> str:
        reason = f"  {event.reason}" if event.reason else ""
        missing = f"  missing: {', '.join(event.missing)}" if event.missing else ""
        is_over = event.happening == "finished" and event.open_units
        more = f", {shown_units(event.open_units)} more open" if is_over else ""
        return f"{event.at_s:6.1f} s  {event.happening:<8} {shown_units(self.spent_units)} spent{more}{reason}{missing}"

    def _said(self, node_id: str, row: _Row) -> str:
        seller = self.delegation.sellers.get(node_id)
        words = [f"{row.offer} at {seller}" if seller else row.offer]
        if row.paid_units:
            words.append(shown_units(row.paid_units))
        if row.took_s is not None:
            words.append(f"{row.took_s:.1f} s")
        if row.reason:
            words.append(row.reason[:_REASON_SHOWN])
        return "  ".join(word for word in words if word)

    def __rich__(self) -> Tree:
        """Return the tree, rooted at the output: below each node what it waits for."""
        order = self.delegation.order
        head = f"{self.delegation.id}  {shown_units(self.spent_units)} of {shown_units(order.budget_units)} spent"
        tree = Tree(Text(f"{head}  {time.monotonic() - self.began:.0f} s", style="bold"))
        if PLANNER_NODE in self.rows:
            tree.add(self._label(PLANNER_NODE))
        course = self.delegation.course
        if course is not None:
            self._grow(tree, course.planned.plan, course.planned.plan.output, set())
        return tree

    def _grow(self, above: Tree, plan: Plan, node_id: str, shown: set[str]) -> None:
        """Add a node; one that several wait for has its branch only once."""
        branch = above.add(self._label(node_id))
        if node_id not in shown:
            shown.add(node_id)
            for need in plan.node(node_id).needs:
                self._grow(branch, plan, need, shown)

    def _label(self, node_id: str) -> Text:
        row = self.rows.get(node_id, _Row())
        mark, style = _MARKS[row.state]
        label = Text(f"{mark} ", style=style).append(_name(node_id), style="bold")
        return label.append(f"  {printable(self._said(node_id, row))}")


@contextmanager
def showing(delegation: Delegation) -> Iterator[Board]:
    """Give a board that is drawn until the block ends: on a terminal as a tree, else nothing by itself."""
    board = Board(delegation)
    if not err.is_terminal:
        yield board
        return
    with Live(board, console=err, refresh_per_second=_REDRAWS_PER_S, transient=False):
        yield board


def tell(line: str) -> None:
    """Say one line, where no tree is drawn."""
    if not err.is_terminal:
        progress(line)


def _name(node_id: str) -> str:
    return "the plan" if node_id == PLANNER_NODE else node_id

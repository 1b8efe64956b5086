"""Runs as documents: what `--json` prints and the tables are made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from buyer.budgets import shown_units
from buyer.receipts import Receipt
from gateway.delegator.gantt import Bar
from gateway.delegator.journal import Attempt, Run
from gateway.delegator.order import note_of, order_of
from gateway.delegator.planning import open_units, spent_units
from gateway.delegator.progress import Planned
from gateway.delegator.schedule import carry_out

__all__ = ["course_document", "run_document", "shown_document"]


def run_document(run: Run) -> dict[str, Any]:
    """Return a run in short."""
    return {
        "ok": True,
        "run": run.id,
        "state": run.state,
        "task": order_of(run).task if run.schedule else "",
        "note": note_of(run),
        "budget": shown_units(run.budget_units),
        "spent": shown_units(spent_units(run)),
        "open": shown_units(open_units(run)),
        "started_ms": run.started_ms,
        "ended_ms": run.ended_ms,
    }


def shown_document(run: Run, bars: Sequence[Bar], receipts: Mapping[str, Receipt]) -> dict[str, Any]:
    """Return a run with its nodes, its attempts, and the payments behind them; `receipts` are by attempt key."""
    return {
        **run_document(run),
        "attempts": [_attempt(attempt, receipts.get(attempt.key)) for attempt in run.attempts],
        "nodes": [
            {
                "id": bar.node_id,
                "state": bar.state,
                "seller": bar.seller or None,
                "paid": shown_units(bar.paid_units),
                "planned_s": bar.planned,
                "actual_s": bar.actual,
            }
            for bar in bars
        ],
    }


def course_document(planned: Planned) -> dict[str, Any]:
    """Return who would do what, when, for how much at most."""
    course = carry_out(planned.graph, planned.assignment)
    nodes = []
    for span in sorted(course.spans, key=lambda span: span.starts_s):
        way = planned.graph.ways[span.job][span.way]
        node_id = planned.plan.nodes[span.job].id
        price = shown_units(way.price_units)
        nodes.append({"id": node_id, "offer": way.seller, "price": price, "planned_s": (span.starts_s, span.ends_s)})
    return {"ok": True, "price": shown_units(course.price_units), "takes_s": course.takes_s, "nodes": nodes}


def _attempt(attempt: Attempt, receipt: Receipt | None) -> dict[str, Any]:
    return {
        "node": attempt.node_id,
        "number": attempt.number,
        "key": attempt.key,
        "offer": attempt.offer,
        "seller": None if receipt is None else receipt.purchase,
        "state": attempt.state,
        "price": shown_units(attempt.price_units),
        "paid": None if attempt.paid_units is None else shown_units(attempt.paid_units),
        "reason": attempt.reason,
        "receipt": None if receipt is None else receipt.receipt_id,
        "payment": None if receipt is None else receipt.state,
        "transaction": None if receipt is None else receipt.transaction,
        "started_ms": attempt.started_ms,
        "ended_ms": attempt.ended_ms,
    }

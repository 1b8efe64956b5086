"""An order: a task and what it may take, as a run keeps it with its course. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from contracts.errors import UsageError
from gateway.delegator.journal import Run
from gateway.delegator.limits import DEADLINE_S_MAX, TASK_LENGTH_MAX
from gateway.delegator.plan import Plan
from gateway.delegator.progress import Planned
from gateway.delegator.schedule import Graph, Way

__all__ = ["Order", "note_of", "order_of", "planned_of", "schedule_text"]


@dataclass(frozen=True, slots=True)
class Order:
    """A task, and what it may take. With a `plan` no planner is asked, nor without a `planner`: one call does it all.

    `is_judged`: a planner's plan that brings nothing over one call is replaced by that call. `is_soonest`: speed is
    bought for as long as the budget lasts, as without a deadline; else only until the deadline is met.
    """

    task: str
    budget_units: int
    deadline_s: float | None
    planner: str | None = None
    plan: Plan | None = None
    is_judged: bool = True
    is_soonest: bool = False

    def check(self) -> None:
        """Raise `UsageError` naming what is wrong."""
        if not self.task.strip() or len(self.task) > TASK_LENGTH_MAX:
            raise UsageError(f"task: expected 1 to {TASK_LENGTH_MAX} characters, not all blank; got {len(self.task)}")
        if self.budget_units <= 0:
            raise UsageError("budget: expected more than zero")
        if self.deadline_s is not None and not 0 < self.deadline_s <= DEADLINE_S_MAX:
            raise UsageError(f"deadline: expected more than zero and at most {DEADLINE_S_MAX:.0f} seconds")


def schedule_text(order: Order, planned: Planned | None, note: str) -> str:
    """Return what the journal keeps beside a run's plan: its order, its course, and how that came about."""
    kept: dict[str, Any] = {
        "task": order.task,
        "planner": order.planner,
        "is_judged": order.is_judged,
        "is_soonest": order.is_soonest,
        "plan": None if order.plan is None else order.plan.model_dump(mode="json"),
        "note": note,
    }
    if planned is not None:
        kept["ways"] = [
            [{**asdict(way), "price_units": str(way.price_units)} for way in ways] for ways in planned.graph.ways
        ]
        graph = planned.graph
        kept |= {"slots": dict(graph.slots), "width": graph.width, "assignment": list(planned.assignment)}
    return json.dumps(kept)


def planned_of(run: Run) -> Planned:
    """Return the course of a run that has one."""
    kept = json.loads(run.schedule)
    plan = Plan.model_validate_json(run.plan)
    places = plan.places
    ways = [[Way(way["seller"], way["takes_s"], int(way["price_units"])) for way in each] for each in kept["ways"]]
    needs = [[places[need] for need in node.needs] for node in plan.nodes]
    graph = Graph(needs, ways, kept["slots"], kept.get("width"))
    return Planned(plan, graph, kept["assignment"])


def order_of(run: Run) -> Order:
    """Return the order of a run that is taken up again; it has its whole time once more."""
    kept = json.loads(run.schedule)
    deadline_s = None if run.deadline_ms is None else (run.deadline_ms - run.started_ms) / 1000
    return Order(
        kept["task"],
        run.budget_units,
        deadline_s,
        planner=kept["planner"],
        plan=None if kept.get("plan") is None else Plan.model_validate_json(json.dumps(kept["plan"])),
        is_judged=kept["is_judged"],
        is_soonest=kept.get("is_soonest", False),
    )


def note_of(run: Run) -> str:
    """Return how a run's plan came about."""
    return str(json.loads(run.schedule)["note"]) if run.schedule else ""

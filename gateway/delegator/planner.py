"""Asks a model for a plan, once, and once more with what was wrong with it. Pure: what is asked and what is made of it.

A plan is a stranger's text. It can name no price, payee, seller or budget: there is no place for one in its schema, and
what it says in a goal is only ever said to a worker.
"""

from __future__ import annotations

import hashlib

from contracts.errors import FareboxError
from gateway.delegator.limits import DEPTH_MAX, FAN_OUT_MAX, GOAL_LENGTH_MAX, NODES_MAX, TASK_LENGTH_MAX
from gateway.delegator.replan import Rest
from gateway.delegator.settings import DelegateSettings

__all__ = ["PLANNER_NODE", "planner_prompt", "rest_prompt", "unfenced"]

# Of a goal, where the planner is reminded of it.
_SHOWN_MAX = 200

_AGAIN = """\
A first plan could not be carried out. Plan the rest, in another way. Results that are there may be read by their ids,
in needs and inputs; do not list them as nodes again.
"""

PLANNER_NODE = "@plan"
"""The planner's place in the journal; no node of a plan can be called so."""

_RULES = """\
Plan how several workers do the task below, as one JSON document of the schema you were given and nothing else.
- Each node is one call of a language model that sees its goal and the results it reads as inputs, and nothing else: not
  the task, not other nodes. Write each goal so that it can be done from them, with every fact of the task it needs.
- What can be done at once must not wait: a node needs only those whose results it reads, and reads them as inputs.
- kind is the sort of work. min_quality is how hard it is, from 0 to 1: 0.3 to copy or reformat, 0.6 to summarise, 0.9
  to reason. est_tokens is how long the answer may be.
- One node is the output, everything leads to it, and its result is the whole answer to the task.
- At most {nodes} nodes, {depth} in a row, {fan_out} that read the same one; a goal has at most {goal} characters. Few
  are better than many: every node costs money. A task that does not fall into parts is one node.
- ids and names are short words of a-z, 0-9, - and _.
"""


def planner_prompt(task: str, settings: DelegateSettings, key: str, *, problem: tuple[str, FareboxError] | None) -> str:
    """Return what the planner is asked; `problem` is its first plan and what was wrong with that."""
    mark = _mark(key)
    rules = _RULES.format(nodes=NODES_MAX, depth=DEPTH_MAX, fan_out=FAN_OUT_MAX, goal=GOAL_LENGTH_MAX)
    parts = [rules, _workers(settings), f"The task is what stands between the marks {mark}:\n{_marked(task, mark)}"]
    if problem is not None:
        plan, error = problem
        parts.append(f"Your first plan was refused: {error.message}\nIt was:\n{_marked(plan, mark)}\nCorrect it.")
    return "\n".join(parts)


def rest_prompt(task: str, settings: DelegateSettings, key: str, rest: Rest) -> str:
    """Return what the planner is asked after a plan that could not be carried out."""
    mark = _mark(key)
    goals = {node.id: node.goal for node in rest.planned.plan.nodes}
    done = "\n".join(f"- {node_id}: {goals.get(node_id, '')[:_SHOWN_MAX]}" for node_id in rest.results) or "nothing"
    failed = "\n".join(f"- {node_id}: {goals[node_id][:_SHOWN_MAX]}" for node_id in rest.failed)
    return "\n".join(
        [
            planner_prompt(task, settings, key, problem=None),
            _AGAIN,
            f"There are results of:\n{_marked(done, mark)}",
            f"These failed:\n{_marked(failed, mark)}",
        ]
    )


def unfenced(text: str) -> str:
    """Return an answer without the code fence that many models put around a document."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```") and "\n" in stripped:
        return stripped[stripped.index("\n") + 1 : -3].strip()
    return stripped


def _workers(settings: DelegateSettings) -> str:
    if not settings.models:
        return "Workers of every quality are there, for all kinds but image.\n"
    lines = [
        f"- quality up to {fitness.quality:g}: {', '.join(sorted(kind.value for kind in fitness.kinds))}"
        for fitness in sorted(settings.models.values(), key=lambda fitness: fitness.quality)
    ]
    return "\n".join(["Workers that are there:", *lines, ""])


def _mark(key: str) -> str:
    return f"<<{hashlib.sha256(f'mark:{key}'.encode()).hexdigest()[:16]}>>"


def _marked(text: str, mark: str) -> str:
    return f"{mark}\n{text[:TASK_LENGTH_MAX].replace(mark, '')}\n{mark}"

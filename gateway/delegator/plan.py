"""A plan: what is to be done, in which order, and what each part needs to know. Pure.

The pydantic model is the source of the JSON schema that a planner is given, strict enough for structured output:
nothing optional, nothing recursive, no other members. A plan is untrusted text from a model or a file: it can name
neither a price, a payee nor a seller, and it is checked in full before the first payment.
"""

from __future__ import annotations

from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

import pydantic

from contracts.errors import FareboxError
from gateway.delegator.limits import (
    DEPTH_MAX,
    EST_TOKENS_MAX,
    FAN_OUT_MAX,
    GOAL_LENGTH_MAX,
    ID_LENGTH_MAX,
    INPUTS_MAX,
    NEEDS_MAX,
    NODES_MAX,
    PATH_LENGTH_MAX,
    PLAN_BYTES_MAX,
    PROBLEMS_SHOWN_MAX,
)

__all__ = [
    "Input",
    "Kind",
    "Node",
    "Plan",
    "PlanCyclic",
    "PlanDuplicate",
    "PlanInvalid",
    "PlanMalformed",
    "PlanReference",
    "PlanTooLarge",
    "PlanUnused",
    "check_plan",
    "one_node_plan",
    "parse_plan",
    "plan_schema",
    "read_plan",
]


class PlanInvalid(FareboxError):
    """A plan that is not carried out. Nothing was paid for it."""

    code = "plan_invalid"
    http_status = 422
    remedy = "correct the plan; `farebox delegate run --dry-run` checks one without paying"


class PlanMalformed(PlanInvalid):
    """Not a plan by the schema."""

    code = "plan_malformed"


class PlanDuplicate(PlanInvalid):
    """Two nodes of one id."""

    code = "plan_duplicate_id"


class PlanReference(PlanInvalid):
    """A node needs, or reads from, one that does not exist or that it does not wait for."""

    code = "plan_unknown_reference"


class PlanCyclic(PlanInvalid):
    """Nodes that wait for each other."""

    code = "plan_cyclic"


class PlanUnused(PlanInvalid):
    """A node that the output does not need would be paid for nothing."""

    code = "plan_unused_node"


class PlanTooLarge(PlanInvalid):
    """More nodes, a longer chain or a wider fan than is carried out."""

    code = "plan_too_large"


class Kind(StrEnum):
    """What sort of work a node is; it decides which sellers can do it."""

    FORMAT = "format"
    EXTRACT = "extract"
    SUMMARISE = "summarise"
    REASON = "reason"
    CODE = "code"
    IMAGE = "image"
    MERGE = "merge"


# What pydantic says in words that do not help whoever writes a plan.
_WORDS = {"extra_forbidden": "a plan has no such member", "missing": "is missing"}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


Slug = Annotated[str, pydantic.Field(pattern=rf"^[a-z0-9][a-z0-9_-]{{0,{ID_LENGTH_MAX - 1}}}$")]


class Input(_Strict):
    """What a node is told: the result of another one, or the part of it at a JSON pointer ("" is all of it)."""

    name: Slug
    source: Slug
    path: Annotated[str, pydantic.Field(max_length=PATH_LENGTH_MAX, pattern=r"^(/[^/]*)*$")]


class Node(_Strict):
    """One paid call.

    `min_quality` is 0 to 1, as sellers are rated; `est_tokens` is how long the answer may be. An `optional` node may
    fail; a `cacheable` one has the same answer whenever its goal and inputs are the same.
    """

    id: Slug
    kind: Annotated[Kind, pydantic.Field(strict=False)]
    goal: Annotated[str, pydantic.Field(min_length=1, max_length=GOAL_LENGTH_MAX)]
    needs: Annotated[list[Slug], pydantic.Field(max_length=NEEDS_MAX)]
    inputs: Annotated[list[Input], pydantic.Field(max_length=INPUTS_MAX)]
    min_quality: Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
    est_tokens: Annotated[int, pydantic.Field(ge=1, le=EST_TOKENS_MAX)]
    optional: bool
    cacheable: bool


class Plan(_Strict):
    """A graph of nodes; the result of `output` is the answer."""

    version: Literal[1]
    nodes: Annotated[list[Node], pydantic.Field(min_length=1)]
    output: Slug

    def node(self, node_id: str) -> Node:
        """Return a node by its id."""
        return next(node for node in self.nodes if node.id == node_id)

    @property
    def places(self) -> dict[str, int]:
        """The place of each node in `nodes`, by id."""
        return {node.id: place for place, node in enumerate(self.nodes)}


def plan_schema() -> dict[str, Any]:
    """Return the JSON schema that a planner must keep to: every member required, no others allowed."""
    return Plan.model_json_schema()


def parse_plan(text: str | bytes) -> Plan:
    """Return a checked plan. Raises a leaf of `PlanInvalid`."""
    plan = read_plan(text)
    check_plan(plan)
    return plan


def read_plan(text: str | bytes) -> Plan:
    """Return a plan whose form is right; its graph is not looked at. Raises `PlanMalformed` or `PlanTooLarge`."""
    data = text.encode() if isinstance(text, str) else text
    if len(data) > PLAN_BYTES_MAX:
        raise PlanTooLarge(f"plan: expected at most {PLAN_BYTES_MAX} bytes")
    try:
        plan = Plan.model_validate_json(data)
    except pydantic.ValidationError as error:
        raise PlanMalformed(_said(error)) from None
    return plan


def check_plan(plan: Plan) -> None:
    """Raise the first leaf of `PlanInvalid` that applies to a plan's graph; prices and times are checked elsewhere."""
    _check_ids(plan)
    _check_references(plan)
    order = _check_acyclic(plan)
    _check_use(plan)
    _check_size(plan, order)


def one_node_plan(goal: str, est_tokens: int) -> Plan:
    """Return the plan of not delegating: one call does it all."""
    node = Node(
        id="answer",
        kind=Kind.REASON,
        goal=goal[:GOAL_LENGTH_MAX],
        needs=[],
        inputs=[],
        min_quality=0.0,
        est_tokens=min(max(est_tokens, 1), EST_TOKENS_MAX),
        optional=False,
        cacheable=False,
    )
    return Plan(version=1, nodes=[node], output="answer")


def _check_ids(plan: Plan) -> None:
    seen: set[str] = set()
    for place, node in enumerate(plan.nodes):
        if node.id in seen:
            raise PlanDuplicate(f"nodes[{place}].id: {node.id!r} is taken by an earlier node")
        seen.add(node.id)


def _check_references(plan: Plan) -> None:
    known = {node.id for node in plan.nodes}
    for place, node in enumerate(plan.nodes):
        for need in node.needs:
            if need not in known:
                raise PlanReference(f"nodes[{place}].needs: there is no node {need!r}")
        for given in node.inputs:
            if given.source not in node.needs:
                raise PlanReference(f"nodes[{place}].inputs: reads {given.source!r}, which is not among its needs")
    if plan.output not in known:
        raise PlanReference(f"output: there is no node {plan.output!r}")


def _check_acyclic(plan: Plan) -> list[str]:
    try:
        return list(TopologicalSorter({node.id: node.needs for node in plan.nodes}).static_order())
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise PlanCyclic(f"nodes: {circle[:200]} wait for each other") from None


def _check_use(plan: Plan) -> None:
    needs = {node.id: node.needs for node in plan.nodes}
    used, waiting = {plan.output}, [plan.output]
    while waiting:
        for need in needs[waiting.pop()]:
            if need not in used:
                used.add(need)
                waiting.append(need)
    unused = [node.id for node in plan.nodes if node.id not in used]
    if unused:
        raise PlanUnused(f"nodes: the output needs nothing of {', '.join(unused[:5])}")


def _check_size(plan: Plan, order: list[str]) -> None:
    if len(plan.nodes) > NODES_MAX:
        raise PlanTooLarge(f"nodes: {len(plan.nodes)}, expected at most {NODES_MAX}")
    needs = {node.id: node.needs for node in plan.nodes}
    depth: dict[str, int] = {}
    read_by = dict.fromkeys(needs, 0)
    for node_id in order:
        depth[node_id] = 1 + max((depth[need] for need in needs[node_id]), default=0)
        for need in needs[node_id]:
            read_by[need] += 1
    if max(depth.values()) > DEPTH_MAX:
        raise PlanTooLarge(f"nodes: a chain of {max(depth.values())}, expected at most {DEPTH_MAX}")
    widest = max(read_by, key=lambda node_id: read_by[node_id])
    if read_by[widest] > FAN_OUT_MAX:
        raise PlanTooLarge(f"nodes: {read_by[widest]} wait for {widest!r}, expected at most {FAN_OUT_MAX}")


def _said(error: pydantic.ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    told = [f"{_place_of(each['loc'])}: {_WORDS.get(each['type'], each['msg'])}" for each in problems]
    more = len(told) - PROBLEMS_SHOWN_MAX
    return "; ".join([*told[:PROBLEMS_SHOWN_MAX], *([f"and {more} more"] if more > 0 else [])])


def _place_of(location: tuple[int | str, ...]) -> str:
    """Return where in a plan something is wrong, as `nodes[0].id`."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return place.removeprefix(".") or "plan"

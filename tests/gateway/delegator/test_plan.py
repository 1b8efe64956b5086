"""Plans: what is wrong with one is said before anything is paid, each mistake by a name of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.delegator.limits import DEPTH_MAX, FAN_OUT_MAX, GOAL_LENGTH_MAX, NODES_MAX, PLAN_BYTES_MAX
from gateway.delegator.plan import (
    PlanCyclic,
    PlanDuplicate,
    PlanInvalid,
    PlanMalformed,
    PlanReference,
    PlanTooLarge,
    PlanUnused,
    one_node_plan,
    parse_plan,
    plan_schema,
)

Document = dict[str, Any]


def node(node_id: str, *needs: str, **other: Any) -> Document:
    return {
        "id": node_id,
        "kind": "summarise",
        "goal": f"do {node_id}",
        "needs": list(needs),
        "inputs": [{"name": need, "source": need, "path": ""} for need in needs],
        "min_quality": 0.5,
        "est_tokens": 200,
        "optional": False,
        "cacheable": True,
        **other,
    }


def plan(*nodes: Document, output: str | None = None, **other: Any) -> Document:
    return {"version": 1, "nodes": list(nodes), "output": output or nodes[-1]["id"], **other}


def parse(document: Any) -> Any:
    return parse_plan(json.dumps(document))


def test_a_plan_reads_back_as_it_was_written() -> None:
    document = plan(node("a"), node("b", "a"), node("c", "a", "b"))
    parsed = parse(document)
    assert json.loads(parsed.model_dump_json()) == document
    assert parsed.places == {"a": 0, "b": 1, "c": 2}


def chain(length: int) -> Document:
    return plan(node("n0"), *(node(f"n{i}", f"n{i - 1}") for i in range(1, length)))


def fan(width: int) -> Document:
    """One node that `width` others wait for, joined pairwise so that no join waits for too many."""
    leaves = [node(f"l{i}", "root") for i in range(width)]
    joins = [node(f"j{i}", *(leaf["id"] for leaf in leaves[i : i + 8])) for i in range(0, width, 8)]
    return plan(node("root"), *leaves, *joins, node("out", *(join["id"] for join in joins)))


@pytest.mark.parametrize(
    ("document", "error", "said"),
    [
        ("[]", PlanMalformed, "object"),
        ("{", PlanMalformed, "JSON"),
        ("[" * 50_000, PlanMalformed, "plan"),
        (plan(node("a"), price="0"), PlanMalformed, "price"),
        (plan(node("a", budget="9999.00")), PlanMalformed, r"nodes\[0\].budget: a plan has no such member"),
        (plan(node("a", pay_to="0x" + "66" * 20)), PlanMalformed, r"nodes\[0\].pay_to"),
        (plan(node("A b")), PlanMalformed, r"nodes\[0\].id"),
        (plan(node("a", kind="sudo")), PlanMalformed, r"nodes\[0\].kind"),
        (plan(node("a", min_quality=float("nan"))), PlanMalformed, "min_quality"),
        (plan(node("a", min_quality=1.5)), PlanMalformed, "min_quality"),
        (plan(node("a", est_tokens="200")), PlanMalformed, "est_tokens"),
        (plan(node("a", est_tokens=10**9)), PlanMalformed, "est_tokens"),
        (plan(node("a", goal="x" * (GOAL_LENGTH_MAX + 1))), PlanMalformed, "goal"),
        ({**plan(node("a")), "version": 2}, PlanMalformed, "version"),
        (plan(node("a"), node("a")), PlanDuplicate, r"nodes\[1\].id"),
        (plan(node("a", "ghost")), PlanReference, "ghost"),
        (plan(node("a"), output="ghost"), PlanReference, "output"),
        (
            plan(node("a"), node("b"), node("c", "a", inputs=[{"name": "x", "source": "b", "path": ""}])),
            PlanReference,
            r"nodes\[2\].inputs",
        ),
        (plan(node("a", "b"), node("b", "a")), PlanCyclic, "wait for each other"),
        (plan(node("a", "a")), PlanCyclic, "a → a"),
        (plan(node("a"), node("b")), PlanUnused, "a"),
        (chain(DEPTH_MAX + 1), PlanTooLarge, "chain"),
        (fan(FAN_OUT_MAX + 1), PlanTooLarge, "root"),
    ],
)
def test_a_mistake_has_a_name_and_a_place(document: Any, error: type[PlanInvalid], said: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(error, match=said):
        parse_plan(text)


@pytest.mark.parametrize("sound", [chain(DEPTH_MAX), fan(FAN_OUT_MAX)])
def test_the_largest_allowed_shapes_are_carried_out(sound: Document) -> None:
    assert parse(sound).output == sound["output"]


def test_ten_thousand_nodes_are_refused_quickly() -> None:
    many = plan(node("n0"), *(node(f"n{i}") for i in range(1, 10_000)))
    with pytest.raises(PlanTooLarge, match=str(PLAN_BYTES_MAX)):
        parse(many)


def test_a_plan_of_as_many_nodes_as_are_allowed_is_one_and_with_one_more_it_is_not() -> None:
    def of_size(count: int) -> Document:
        """Return leaves, four nodes that read up to sixteen of them, and the output, which reads those."""
        small = [{**node(f"n{i}"), "goal": "x", "inputs": []} for i in range(count)]
        *leaves, a, b, c, d, output = (each["id"] for each in small)
        for place, each in enumerate(small[-5:-1]):
            each["needs"] = leaves[place::4]
        small[-1]["needs"] = [a, b, c, d]
        return {**plan(*small), "output": output}

    assert len(parse(of_size(NODES_MAX)).nodes) == NODES_MAX
    with pytest.raises(PlanTooLarge, match=f"nodes: {NODES_MAX + 1}, expected at most {NODES_MAX}"):
        parse(of_size(NODES_MAX + 1))


def test_not_delegating_is_a_plan_too() -> None:
    single = one_node_plan("x" * 10_000, 10**9)
    assert parse_plan(single.model_dump_json()) == single


def test_a_provider_that_checks_strictly_accepts_the_schema() -> None:
    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False
                assert set(schema["required"]) == set(schema["properties"])
            for value in schema.values():
                check(value)
        elif isinstance(schema, list):
            for value in schema:
                check(value)

    check(plan_schema())
    assert "Plan" not in plan_schema().get("$defs", {}), "it would refer to itself"


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
changes: list[Callable[[Document, Any], None]] = [
    lambda document, value: document.update(nodes=value),
    lambda document, value: document["nodes"][0].update(needs=value),
    lambda document, value: document["nodes"][1].update(inputs=value),
    lambda document, value: document.update(output=value),
    lambda document, value: document["nodes"][1].update(value) if isinstance(value, dict) else None,
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(changes), anything)
def test_whatever_a_planner_writes_is_a_plan_or_a_named_mistake(
    change: Callable[[Document, Any], None], value: Any
) -> None:
    document = plan(node("a"), node("b", "a"))
    change(document, value)
    with suppress(PlanInvalid):
        assert parse(document).nodes

"""Processes that carry out runs, and the kills that end them in the middle of it.

A child takes up the run that is open, or begins the next one, until it is killed. Two of them want the same run: a run
is leased to one, and whoever does not have it waits for the other to finish it or to die.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import numpy as np

from bench.graphs import FAMILIES
from contracts.errors import RequestInProgress
from gateway.delegator.calls import CallNode
from gateway.delegator.events import NodeEvent
from gateway.delegator.journal import Journal, Run, RunLost
from gateway.delegator.plan import Input, Kind, Node, Plan
from gateway.delegator.run import Limits, Planned, run_plan
from gateway.delegator.schedule import Graph, Way, cheapest, cost_units

__all__ = ["Carry", "Work", "carry_out_runs", "drawn", "kill_again_and_again", "number_of", "run_id"]

_WAIT_FOR_TURN_S = 0.002
_IDLE_KILLS = 4
_MERGED_MAX = 16


Work = Callable[[Callable[[], None]], None]
"""What a child does, for ever; it calls what it is given once it is ready to be killed."""


def run_id(number: int) -> str:
    """Return the id of a run; ids sort as numbers do."""
    return f"run-{number:06}"


def number_of(run: Run) -> int:
    """Return the number of a run, which says what it does."""
    return int(run.id.rpartition("-")[2])


def drawn(number: int) -> Planned:
    """Return the plan of a run: a graph of one of the bench's families, with a last node that merges all loose ends."""
    generator = np.random.default_rng(number)
    family = list(FAMILIES.values())[number % len(FAMILIES)]
    graph = family(generator)
    loose = [job for job, followers in enumerate(graph.followers) if not followers][:_MERGED_MAX]
    needs = [*graph.needs, loose]
    ways = [*graph.ways, [Way("small", 1.0, 10), Way("large", 0.5, 30)]]
    nodes = [
        Node(
            id=f"n{job}",
            kind=Kind.REASON,
            goal=f"part {job}",
            needs=[f"n{need}" for need in each],
            inputs=[Input(name=f"n{need}", source=f"n{need}", path="") for need in each],
            min_quality=0.0,
            est_tokens=100,
            optional=False,
            cacheable=False,
        )
        for job, each in enumerate(needs)
    ]
    whole = Graph(needs, ways)
    return Planned(Plan(version=1, nodes=nodes, output=nodes[-1].id), whole, cheapest(whole))


class Carry(Protocol):
    """`run_plan`, or what means the same on another engine."""

    def __call__(
        self, planned: Planned, call_node: CallNode, journal: Journal, run: Run, limits: Limits, /
    ) -> AsyncIterator[NodeEvent]: ...


async def carry_out_runs(
    journal: Journal,
    call_node: CallNode,
    *,
    carry: Carry = run_plan,
    last: int | None = None,
    saw: Callable[[Run], None] = lambda _: None,
    recover: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Finish the run that is open, then begin the next, up to the number `last`, or for ever.

    `saw` is told what the first of them looked like: what the one before us left when it died. `recover` may have it
    finished by others first.
    """
    number, is_first = max(_newest(journal), 1), True
    while last is None or number <= last:
        if recover is not None:
            await recover()
        planned = drawn(number)
        try:
            run = _taken(journal, number, planned)
        except RequestInProgress:
            await asyncio.sleep(_WAIT_FOR_TURN_S)
            continue
        if is_first:
            saw(run)
            is_first = False
        if run.state != "running":
            journal.release(run.id)
            number += 1
            continue
        with contextlib.suppress(RunLost):
            async for _ in carry(planned, call_node, journal, run, Limits(run.budget_units)):
                pass


def _newest(journal: Journal) -> int:
    return max((number_of(run) for run in journal.recent(1)), default=0)


def _taken(journal: Journal, number: int, planned: Planned) -> Run:
    """Take a run up, or begin it. Raises `RequestInProgress` while another process has it."""
    if number <= _newest(journal):
        return journal.take_over(run_id(number))
    budget = 4 * cost_units(planned.graph, planned.assignment)
    run = Run(run_id(number), "bench", planned.plan.model_dump_json(), "", budget, None, number)
    journal.begin(run)
    return run


def kill_again_and_again(
    work: Work,
    kills: int,
    *,
    at_once: int,
    seed: int,
    life_s_max: float,
    timeout_s: float,
    done: Callable[[], int] | None = None,
) -> int:
    """Keep `at_once` children at work, kill one after another, and return how many were killed.

    Again and again, a child dies within `life_s_max` seconds, or later where by `done` nothing more was done for some
    kills: on a slow machine. No thread may run in this process when it is called.
    """
    luck, killed = random.Random(seed), 0
    before, idle = -1, 0
    deadline_s = time.monotonic() + timeout_s
    children: list[int] = []
    try:
        while killed < kills and time.monotonic() < deadline_s:
            while len(children) < at_once:
                children.append(_child(work))
            time.sleep(luck.random() * life_s_max)
            _kill(children.pop(luck.randrange(len(children))))
            killed += 1
            if done is not None:
                before, idle = (now, 0) if (now := done()) > before else (before, idle + 1)
            if idle == _IDLE_KILLS:
                life_s_max, idle = life_s_max * 2, 0
    finally:
        for child in children:
            _kill(child)
    return killed


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"a carrier ended by itself, with {os.waitstatus_to_exitcode(status)}"


def _child(work: Work) -> int:
    """Fork a child that works, and return once it is ready."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            work(lambda: os.close(writer))
            status = 0
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent, whatever happens
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as said:
        said.read()
    return child

"""Carries out a plan: whatever is ready runs at once, each call paid from a slice of the one budget.

`call_node` is the only thing that pays, and it is given a key under which the pool makes one payment for ever. The
intent is on disk before it is called; a run that died is resumed by calling again under the same key and with the same
words, which asks for the answer that was bought and never buys another. So neither a crash nor a second look pays
twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from contracts.errors import BudgetExceeded, FareboxError
from gateway.delegator.inputs import InputMissing, prompt_of, resolve
from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.ledger import Ledger
from gateway.delegator.limits import ATTEMPTS_MAX, EVENTS_QUEUED_MAX, PARALLEL_MAX, RESULT_LENGTH_MAX
from gateway.delegator.plan import Node, Plan
from gateway.delegator.schedule import Graph, upward_ranks

__all__ = [
    "Answer",
    "CallNode",
    "Limits",
    "NodeEvent",
    "NodeFailed",
    "NodeUnknown",
    "Planned",
    "attempt_key",
    "results_of",
    "run_plan",
]


class NodeFailed(FareboxError):
    """A call gave no usable answer. `paid_units` is what it cost all the same."""

    code = "node_failed"
    remedy = "another seller is tried, or the node is left out"

    def __init__(self, message: str, *, paid_units: int = 0) -> None:
        super().__init__(message)
        self.paid_units = paid_units


class NodeUnknown(FareboxError):
    """A call was paid for, perhaps, and its answer is not there yet. Only the same key may ask again."""

    code = "node_unknown"
    exit_code = 6
    remedy = "run `farebox delegate resume RUN` later"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered, and what it was charged."""

    text: str
    paid_units: int


class CallNode(Protocol):
    """Buys the answer to an attempt's prompt. Under one key it pays at most once, however often it is called.

    Raises `NodeFailed` when that is certain, `NodeUnknown` when it is not.
    """

    async def __call__(self, node: Node, attempt: Attempt, /) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take: money, time, and calls at once."""

    budget_units: int
    deadline_s: float | None = None
    parallel: int = PARALLEL_MAX
    attempts: int = ATTEMPTS_MAX


Happening = Literal["planned", "started", "done", "failed", "skipped", "unknown", "budget", "finished"]


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """Something that happened in a run. `at_s` is seconds since its start."""

    happening: Happening
    at_s: float
    node_id: str | None = None
    offer: str | None = None
    paid_units: int | None = None
    spent_units: int | None = None
    text: str | None = None
    reason: str | None = None
    missing: Sequence[str] = ()


def attempt_key(run_id: str, node_id: str, number: int) -> str:
    """Return the name of one attempt's payment: the same for the same attempt, whoever asks and whenever."""
    return hashlib.sha256(f"{run_id}\n{node_id}\n{number}".encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the ways each of its nodes can be bought, in the order of `plan.nodes`, and which way comes first."""

    plan: Plan
    graph: Graph
    assignment: Sequence[int]


async def run_plan(
    planned: Planned, call_node: CallNode, journal: Journal, run: Run, limits: Limits
) -> AsyncIterator[NodeEvent]:
    """Carry out a run that the journal knows, from wherever it stands, and yield what happens.

    The run ends "done" with the output's text, "partial" with what is missing, or with its state open where an answer
    is still unknown.
    """
    carrier = _Carrier(planned, call_node, journal, run, limits)
    task = asyncio.create_task(carrier.carry_out())
    try:
        while (event := await carrier.events.get()) is not None:
            yield event
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass(slots=True)
class _State:
    """Where the nodes stand."""

    results: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)
    open_attempts: dict[str, Attempt] = field(default_factory=dict)


class _Carrier:
    """One run while it runs."""

    def __init__(self, planned: Planned, call_node: CallNode, journal: Journal, run: Run, limits: Limits) -> None:
        self._plan, self._graph, self._assignment = planned.plan, planned.graph, planned.assignment
        self._call, self._journal, self._run, self._limits = call_node, journal, run, limits
        self._started = time.monotonic()
        self._places = planned.plan.places
        self._ranks = upward_ranks(planned.graph, planned.assignment)
        self._ledger = Ledger(limits.budget_units)
        self._state = _State()
        self._running: dict[asyncio.Task[None], str] = {}
        # The carrier never waits for whoever listens; what does not fit is told as part of the end.
        self.events: asyncio.Queue[NodeEvent | None] = asyncio.Queue()
        self._take_up(run.attempts)

    def _take_up(self, attempts: Sequence[Attempt]) -> None:
        """Go on from what the journal has: answers are kept, money spent is spent, open intents are asked again."""
        state = self._state
        for attempt in attempts:
            state.attempts[attempt.node_id] = max(state.attempts.get(attempt.node_id, 0), attempt.number + 1)
            self._ledger.reserve(attempt.key, attempt.price_units)
            if attempt.state == "intended":
                state.open_attempts[attempt.node_id] = attempt
                continue
            self._ledger.settle(attempt.key, attempt.paid_units or 0)
            if attempt.result is not None:
                state.results[attempt.node_id] = attempt.result

    async def carry_out(self) -> None:
        """Run until nothing can run any more."""
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                await self._all()
        except TimeoutError:
            self._tell("failed", reason=f"the deadline of {self._limits.deadline_s:g} s is over")
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        await self._finish()

    async def _all(self) -> None:
        self._start_ready()
        while self._running:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del self._running[task]
                task.result()
            self._start_ready()

    def _start_ready(self) -> None:
        state, taken = self._state, set(self._running.values())
        for node in sorted(self._plan.nodes, key=lambda node: -self._ranks[self._places[node.id]]):
            if len(self._running) >= self._limits.parallel:
                return
            if node.id in state.results or node.id in taken or node.id in state.failed or node.id in state.unknown:
                continue
            if self._is_hopeless(node):
                state.failed.add(node.id)
                self._tell("skipped", node.id, reason="what it needs is missing")
            elif all(need in state.results or need in state.failed for need in node.needs):
                self._running[asyncio.create_task(self._node(node))] = node.id

    def _is_hopeless(self, node: Node) -> bool:
        """Tell whether a node needs a result that will never come. Optional ones are done without."""
        optional = {each.id for each in self._plan.nodes if each.optional}
        return any(need in self._state.failed and need not in optional for need in node.needs)

    async def _node(self, node: Node) -> None:
        """Buy one node's answer, from the next better seller where one fails."""
        state, place = self._state, self._places[node.id]
        # A resumed attempt asks what it asked before; inputs are for those that are yet to be made.
        open_attempt = state.open_attempts.pop(node.id, None)
        if open_attempt is not None and await self._try(node, open_attempt):
            return
        try:
            inputs = resolve(node, state.results)
        except InputMissing as error:
            self._tell("failed", node.id, reason=error.message)
            state.failed.add(node.id)
            return
        while (number := state.attempts.get(node.id, 0)) < self._limits.attempts:
            ways = self._graph.ways[place]
            way = ways[min(self._assignment[place] + number, len(ways) - 1)]
            key = attempt_key(self._run.id, node.id, number)
            attempt = Attempt(
                key=key,
                node_id=node.id,
                number=number,
                offer=way.seller,
                prompt=prompt_of(node, inputs, key),
                price_units=way.price_units,
                state="intended",
                started_ms=time.time_ns() // 1_000_000,
            )
            state.attempts[node.id] = number + 1
            try:
                self._ledger.reserve(attempt.key, attempt.price_units)
            except BudgetExceeded as error:
                self._tell("budget", node.id, way.seller, reason=error.message)
                break
            await self._journal.intend(self._run.id, attempt)
            if await self._try(node, attempt):
                return
        state.failed.add(node.id)

    async def _try(self, node: Node, attempt: Attempt) -> bool:
        """Make one attempt; return whether the node needs no other, because it is answered or nobody knows."""
        self._tell("started", node.id, attempt.offer)
        try:
            answer = await self._call(node, attempt)
        except NodeUnknown as error:
            self._state.unknown.add(node.id)
            self._tell("unknown", node.id, attempt.offer, reason=error.message)
            return True
        except FareboxError as error:
            paid_units = error.paid_units if isinstance(error, NodeFailed) else 0
            await self._journal.ended(attempt.key, paid_units=paid_units, result=None, reason=error.message)
            self._ledger.settle(attempt.key, paid_units)
            self._tell("failed", node.id, attempt.offer, paid_units=paid_units, reason=error.message)
            return False
        text = answer.text[:RESULT_LENGTH_MAX]
        await self._journal.ended(attempt.key, paid_units=answer.paid_units, result=text)
        self._ledger.settle(attempt.key, answer.paid_units)
        self._state.results[node.id] = text
        self._tell("done", node.id, attempt.offer, paid_units=answer.paid_units)
        return True

    async def _finish(self) -> None:
        output, state = self._plan.output, self._state
        missing = [node.id for node in self._plan.nodes if node.id not in state.results]
        if not state.unknown and not state.open_attempts:
            await self._journal.finish(self._run.id, "done" if output in state.results else "partial")
        self._tell("finished", text=state.results.get(output), missing=missing)
        self.events.put_nowait(None)

    def _tell(
        self,
        happening: Happening,
        node_id: str | None = None,
        offer: str | None = None,
        *,
        paid_units: int | None = None,
        text: str | None = None,
        reason: str | None = None,
        missing: Sequence[str] = (),
    ) -> None:
        if happening != "finished" and self.events.qsize() >= EVENTS_QUEUED_MAX:
            return
        self.events.put_nowait(
            NodeEvent(
                happening,
                time.monotonic() - self._started,
                node_id,
                offer,
                paid_units,
                self._ledger.spent_units,
                text,
                reason,
                missing,
            )
        )


def results_of(run: Run) -> Mapping[str, str]:
    """Return the answers that a run has, by node."""
    return {attempt.node_id: attempt.result for attempt in run.attempts if attempt.result is not None}

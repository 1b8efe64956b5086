"""Carries out a plan: whatever is ready runs at once, each call paid from a slice of the one budget.

`call_node` is the only thing that pays, and it is given a key under which the pool makes one payment for ever. The
intent is on disk before it is called; a run that died is resumed by calling again under the same key and with the same
words, which asks for the answer that was bought and never buys another. So neither a crash nor a second look pays
twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Literal

from contracts.crash import checkpoint
from contracts.errors import BudgetExceeded, FareboxError
from gateway.delegator.calls import Answer, CallNode, NodeFailed, NodeUnknown, attempt_key
from gateway.delegator.events import Happening, NodeEvent
from gateway.delegator.hedge import hedge_after_s, is_in_time
from gateway.delegator.inputs import InputMissing, cache_key, prompt_of, resolve
from gateway.delegator.job import Limits
from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.ledger import Ledger
from gateway.delegator.limits import (
    EVENTS_QUEUED_MAX,
    LOSERS_WAIT_S,
    REPLANS_MAX,
    RESULT_LENGTH_MAX,
)
from gateway.delegator.plan import Node
from gateway.delegator.progress import Planned, Progress
from gateway.delegator.replan import Replan, Replanned, Rest
from gateway.delegator.schedule import Way, next_way

__all__ = [
    "CACHE",
    "Answer",
    "CallNode",
    "Limits",
    "NodeEvent",
    "NodeFailed",
    "NodeUnknown",
    "Planned",
    "Replan",
    "Replanned",
    "Rest",
    "attempt_key",
    "results_of",
    "run_plan",
]

CACHE = "cache"
"""The seller's name of an answer that was bought before."""


async def run_plan(
    planned: Planned,
    call_node: CallNode,
    journal: Journal,
    run: Run,
    limits: Limits,
    *,
    replan: Replan | None = None,
) -> AsyncIterator[NodeEvent]:
    """Carry out a run that the journal knows, from wherever it stands, and yield what happens.

    The run ends "done" with the output's text, "partial" with what is missing, or stays "running" where an answer is
    still unknown or was not waited for; it can be resumed then. Raises `RunLost` when another process has it.
    """
    carrier = _Carrier(planned, call_node, journal, run, limits, replan=replan)
    task = asyncio.create_task(carrier.carry_out())
    try:
        while (event := await carrier.events.get()) is not None:
            yield event
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        journal.release(run.id)


_End = Literal["answered", "failed", "unknown"]
_Call = asyncio.Task[_End]


class _Carrier:
    """One run while it runs."""

    def __init__(
        self,
        planned: Planned,
        call_node: CallNode,
        journal: Journal,
        run: Run,
        limits: Limits,
        *,
        replan: Replan | None,
    ) -> None:
        self._call, self._journal, self._run, self._limits, self._replan = call_node, journal, run, limits, replan
        self._started = time.monotonic()
        self._round = run.round
        self._ledger = Ledger(limits.budget_units)
        self._progress = Progress(planned)
        self._running: dict[asyncio.Task[None], str] = {}
        # Calls whose node has its answer from elsewhere: they are not waited for, and what they cost counts.
        self._losers: set[_Call] = set()
        # The carrier never waits for whoever listens; what does not fit is told as part of the end.
        self.events: asyncio.Queue[NodeEvent | None] = asyncio.Queue()
        self._is_told = False
        self._take_up(run.attempts)

    def _take_up(self, attempts: Sequence[Attempt]) -> None:
        """Go on from what the journal has: answers are kept, money spent is spent, open intents are asked again."""
        progress = self._progress
        for attempt in attempts:
            progress.count(attempt, in_round=self._round)
            self._ledger.reserve(attempt.key, attempt.price_units)
            if attempt.state == "intended":
                progress.open[attempt.node_id].append(attempt)
                continue
            self._ledger.settle(attempt.key, attempt.paid_units or 0)
            if attempt.result is not None:
                progress.results.setdefault(attempt.node_id, attempt.result)
        self._ledger.cut(progress.slices())

    async def carry_out(self) -> None:
        """Run until nothing can run any more."""
        try:
            try:
                async with asyncio.timeout(self._limits.deadline_s):
                    await self._all()
            except TimeoutError:
                self._tell("failed", reason="the deadline is over")
            finally:
                await _cancel(self._running)
            await self._finish()
        finally:
            self.events.put_nowait(None)

    async def _all(self) -> None:
        self._ask_losers_again()
        await self._run_ready()
        while await self._has_new_plan():
            await self._run_ready()

    async def _run_ready(self) -> None:
        self._start_ready()
        while self._running:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                del self._running[task]
                task.result()
            self._start_ready()

    def _start_ready(self) -> None:
        progress, taken = self._progress, set(self._running.values())
        for node in progress.urgent_first:
            if len(self._running) >= self._limits.parallel:
                return
            if progress.is_settled(node) or node.id in taken:
                continue
            if progress.is_hopeless(node):
                progress.failed.add(node.id)
                self._ledger.close(node.id)
                self._tell("skipped", node.id, reason="what it needs is missing")
            elif progress.is_ready(node):
                self._running[asyncio.create_task(self._node(node))] = node.id

    def _ask_losers_again(self) -> None:
        """Ask for the answers that nobody waits for any more: what they cost belongs into the books."""
        progress = self._progress
        for node in progress.planned.plan.nodes:
            if node.id in progress.results:
                for attempt in progress.open.pop(node.id, ()):
                    self._losers.add(asyncio.create_task(self._try(node, attempt)))

    async def _has_new_plan(self) -> bool:
        """Have the rest planned anew where the output will not come, once, when the fate of every call is known."""
        progress = self._progress
        if self._replan is None or self._round >= REPLANS_MAX or not progress.is_lost or progress.unknown:
            return False
        await asyncio.gather(*self._losers)
        failed = [node.id for node in progress.planned.plan.nodes if node.id in progress.failed]
        rest = Rest(progress.planned, dict(progress.results), failed, self._ledger.free_units)
        try:
            replanned = await self._replan(rest)
        except FareboxError as error:
            # Its planner may have been paid: whoever resumes the run asks again.
            progress.unknown.add(f"plan {self._round + 1}")
            self._tell("unknown", reason=error.message)
            return False
        if replanned is None:
            return False
        self._ledger.reserve(f"plan {self._round + 1}", replanned.paid_units)
        self._ledger.settle(f"plan {self._round + 1}", replanned.paid_units)
        await self._journal.replan(self._run.id, replanned.planned.plan.model_dump_json(), replanned.schedule)
        self._round += 1
        progress.use(replanned.planned)
        self._ledger.cut(progress.slices())
        self._tell("planned", paid_units=replanned.paid_units, reason="the rest is planned anew")
        return True

    async def _node(self, node: Node) -> None:
        """Get one node's answer: from the next better seller where one fails, from a second where one is late."""
        progress = self._progress
        # A resumed attempt asks what it asked before; inputs are for those that are yet to be made.
        calls = {self._begin(node, attempt) for attempt in progress.open.pop(node.id, ())}
        if not calls and await self._is_known(node):
            return
        is_unknown = False
        try:
            while node.id not in progress.results:
                if not calls:
                    attempt = None if is_unknown else await self._next_attempt(node)
                    if attempt is None:
                        break
                    calls.add(self._begin(node, attempt))
                done = await self._first_of(node, calls)
                ends = [task.result() for task in done]
                calls -= done
                is_unknown = is_unknown or "unknown" in ends
            if node.id in progress.results:
                self._losers |= calls
                calls = set()
        finally:
            await _cancel(calls)
        self._ledger.close(node.id)
        if node.id not in progress.results:
            (progress.unknown if is_unknown else progress.failed).add(node.id)

    async def _first_of(self, node: Node, calls: set[_Call]) -> set[_Call]:
        """Wait until a call of a node has ended. Where a single one is late, a second seller is asked meanwhile."""
        patience_s = self._patience_s(node) if len(calls) == 1 else None
        done, _ = await asyncio.wait(calls, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            hedge = await self._next_attempt(node, hedges=True)
            if hedge is not None:
                calls.add(self._begin(node, hedge, reason="the first seller is late"))
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        return done

    def _patience_s(self, node: Node) -> float | None:
        if not self._limits.hedges:
            return None
        progress = self._progress
        place = progress.place(node)
        asked = progress.tried[node.id][-1:]
        way = next((way for way in progress.planned.graph.ways[place] if [way.seller] == asked), None)
        if way is None:
            return None
        rest_s, deadline_s = progress.rest_s(node), self._limits.deadline_s
        return hedge_after_s(way, started_s=self._now_s, rest_s=rest_s, deadline_s=deadline_s)

    async def _is_known(self, node: Node) -> bool:
        """Tell whether a cacheable node's answer was bought before, for the same tenant, and take it."""
        kept = None if (key := self._cache_key(node)) is None else self._journal.kept(key)
        if kept is None:
            return False
        attempt = self._attempt(node, Way(CACHE, 0.0, 0), prompt="")
        self._progress.count(attempt, in_round=self._round)
        await self._journal.intend(self._run.id, attempt)
        await self._journal.ended(attempt.key, paid_units=0, result=kept)
        self._ledger.close(node.id)
        self._progress.results[node.id] = kept
        self._tell("done", node.id, CACHE, paid_units=0)
        return True

    def _cache_key(self, node: Node) -> str | None:
        if not node.cacheable:
            return None
        try:
            inputs = resolve(node, self._progress.results)
        except InputMissing:
            return None
        return cache_key(self._run.tenant, node, inputs, self._progress.planned.plan.version)

    async def _next_attempt(self, node: Node, *, hedges: bool = False) -> Attempt | None:
        """Return a node's next attempt with its money reserved and its intent on disk; None when there is none."""
        progress, place = self._progress, self._progress.place(node)
        tried = progress.tried[node.id]
        if len(tried) >= self._limits.attempts:
            return None
        ways, assigned = progress.planned.graph.ways[place], progress.planned.assignment[place]
        choice = next_way(ways, assigned, tried, self._ledger.room_units(node.id))
        if hedges and (choice is None or not self._is_worth_hedging(node, ways[choice], tried)):
            return None
        way = ways[assigned if choice is None else choice]
        try:
            inputs = resolve(node, progress.results)
            attempt = self._attempt(node, way, inputs=inputs)
            self._ledger.reserve(attempt.key, attempt.price_units, node.id)
        except InputMissing as error:
            self._tell("failed", node.id, reason=error.message)
            return None
        except BudgetExceeded as error:
            self._tell("budget", node.id, way.seller, reason=error.message)
            return None
        progress.count(attempt, in_round=self._round)
        await self._journal.intend(self._run.id, attempt)
        checkpoint("delegator.intended")
        return attempt

    def _is_worth_hedging(self, node: Node, way: Way, tried: Sequence[str]) -> bool:
        if way.seller in tried or self._limits.deadline_s is None:
            return False
        rest_s = self._progress.rest_s(node)
        return is_in_time(way, now_s=self._now_s, rest_s=rest_s, deadline_s=self._limits.deadline_s)

    def _attempt(
        self, node: Node, way: Way, *, inputs: Mapping[str, str] | None = None, prompt: str | None = None
    ) -> Attempt:
        number = self._progress.next_number(node.id)
        key = attempt_key(self._run.id, node.id, number)
        return Attempt(
            key=key,
            node_id=node.id,
            number=number,
            offer=way.seller,
            prompt=prompt_of(node, inputs or {}, key) if prompt is None else prompt,
            price_units=way.price_units,
            state="intended",
            started_ms=time.time_ns() // 1_000_000,
            round=self._round,
        )

    def _begin(self, node: Node, attempt: Attempt, *, reason: str | None = None) -> _Call:
        self._tell("started", node.id, attempt.offer, reason=reason)
        return asyncio.create_task(self._try(node, attempt))

    async def _try(self, node: Node, attempt: Attempt) -> _End:
        """Make one attempt, and write down what it cost and gave."""
        try:
            answer = await self._call(node, attempt)
        except NodeFailed as error:
            await self._journal.ended(attempt.key, paid_units=error.paid_units, result=None, reason=error.message)
            self._ledger.settle(attempt.key, error.paid_units)
            self._tell("failed", node.id, attempt.offer, paid_units=error.paid_units, reason=error.message)
            return "failed"
        except FareboxError as error:
            # Whatever is not certain may have been paid: only its own key may ask again.
            self._tell("unknown", node.id, attempt.offer, reason=error.message)
            return "unknown"
        checkpoint("delegator.answered")
        text = answer.text[:RESULT_LENGTH_MAX]
        await self._journal.ended(attempt.key, paid_units=answer.paid_units, result=text)
        checkpoint("delegator.recorded")
        self._ledger.settle(attempt.key, answer.paid_units)
        if node.id in self._progress.results:
            reason = "another seller answered before; this price counts all the same"
            self._tell("budget", node.id, attempt.offer, paid_units=answer.paid_units, reason=reason)
            return "answered"
        self._progress.results[node.id] = text
        if (key := self._cache_key(node)) is not None:
            await self._journal.keep(key, self._run.tenant, text)
        self._tell("done", node.id, attempt.offer, paid_units=answer.paid_units)
        return "answered"

    async def _finish(self) -> None:
        progress = self._progress
        output = progress.planned.plan.output
        is_open = progress.unknown or self._ledger.reserved_units or progress.open
        if output in progress.results:
            await self._journal.finish(self._run.id, "done")
        elif not is_open:
            await self._journal.finish(self._run.id, "partial")
        self._tell("finished", text=progress.results.get(output), missing=progress.missing)
        if self._losers:
            # The answer is out; this is for the books.
            await asyncio.wait(self._losers, timeout=LOSERS_WAIT_S)
            await _cancel(self._losers)

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._started

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
        if self._is_told or (happening != "finished" and self.events.qsize() >= EVENTS_QUEUED_MAX):
            return
        self._is_told = happening == "finished"
        self.events.put_nowait(
            NodeEvent(
                happening,
                self._now_s,
                node_id,
                offer,
                paid_units,
                self._ledger.spent_units,
                text,
                reason,
                missing,
                self._ledger.reserved_units,
            )
        )


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def results_of(run: Run) -> Mapping[str, str]:
    """Return the answers that a run has, by node."""
    return {attempt.node_id: attempt.result for attempt in run.attempts if attempt.result is not None}

"""Runs on many machines: DBOS on PostgreSQL knows which must be finished, and hands those of a dead process to another.

A run is a workflow, and each attempt at a node is a step of it, named by the attempt's key, so that what a step
answered is never asked for again. The journal stays what it is without DBOS: it alone says what was paid and who has a
run. DBOS may therefore begin a step, or a workflow, once more after a crash: the key makes one payment for ever.

DBOS is one to a process. Needs the `dbos` extra and a journal in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from contracts.errors import ConfigInvalid, FareboxError, RequestInProgress
from contracts.storage.url import is_postgres
from gateway.delegator.calls import Answer, CallNode, NodeFailed, NodeUnknown
from gateway.delegator.events import NodeEvent
from gateway.delegator.job import Job, Limits, TakeUp
from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.limits import ATTEMPTS_MAX, NODES_MAX, REPLANS_MAX
from gateway.delegator.plan import Node
from gateway.delegator.progress import Planned
from gateway.delegator.replan import Replan, Replanned, Rest
from gateway.delegator.run import run_plan

if TYPE_CHECKING:
    from dbos import StepReservation, WorkflowHandleAsync

__all__ = ["DbosEngine"]

_WORKFLOW = "farebox.run"
_SCHEMA = "farebox_dbos"
# The journal decides what a release can take up, not the text of this file.
_VERSION = "farebox-1"
_STEPS_A_ROUND = NODES_MAX * ATTEMPTS_MAX
_LISTED_MAX = 1_000


@dataclass(slots=True)
class _InHand:
    """A run in this process. `events` end with None, or with the error that ended the run."""

    run: Run
    job: Job
    events: asyncio.Queue[NodeEvent | Exception | None] = field(default_factory=asyncio.Queue)
    work: asyncio.Task[None] | None = None
    has_listener: bool = True


class DbosEngine:
    """Carries out runs of one journal as workflows. `run` means the same as `run_plan`."""

    _launched: ClassVar[DbosEngine | None] = None

    def __init__(self, journal: Journal, take_up: TakeUp) -> None:
        self._journal, self._take_up = journal, take_up
        # By workflow: an older one of the same run, left by a dead process, must not mistake it for its own.
        self._in_hand: dict[str, _InHand] = {}

    @classmethod
    def launch(cls, url: str, journal: Journal, take_up: TakeUp) -> DbosEngine:
        """Start DBOS for this process, in a running event loop; `url` is the journal's store.

        Raises `ConfigInvalid` for another store, without the extra, or when it was started before.
        """
        if not is_postgres(url):
            raise ConfigInvalid("engine: DBOS needs a journal in PostgreSQL")
        if cls._launched is not None:
            raise ConfigInvalid("engine: DBOS runs in this process already")
        try:
            from dbos import DBOS, DBOSPortableJSONSerializer
        except ImportError:
            raise ConfigInvalid("engine: needs the dbos package", remedy="pip install 'farebox[dbos]'") from None
        DBOS(
            config={
                "name": "farebox",
                "system_database_url": url,
                "dbos_system_schema": _SCHEMA,
                "application_version": _VERSION,
                # Others see by its sign of life whether a process lives.
                "executor_id": journal.presence_id,
                "log_level": "ERROR",
                "serializer": DBOSPortableJSONSerializer(),
            }
        )
        engine = cls._launched = cls(journal, take_up)
        _workflow()
        DBOS.launch()
        return engine

    def close(self) -> None:
        """Stop DBOS. What runs is left as it stands, for another process to take up."""
        from dbos import DBOS

        DBOS.destroy()
        type(self)._launched = None

    async def run(
        self,
        planned: Planned,
        call_node: CallNode,
        journal: Journal,
        run: Run,
        limits: Limits,
        *,
        replan: Replan | None = None,
    ) -> AsyncIterator[NodeEvent]:
        """Carry out a run that this process has, as `run_plan` does, and yield what happens.

        Should this process die meanwhile, `recover` of another one lets it be finished.
        """
        assert journal is self._journal, "an engine works with one journal"
        hand = _InHand(run, Job(planned, call_node, limits, replan))
        handle = await self._start(run.id, hand)
        try:
            while (event := await hand.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            hand.has_listener = False
            if hand.work is not None:
                hand.work.cancel()
            await handle.get_result()

    async def recover(self) -> Sequence[str]:
        """Have the runs of processes that have ended finished by whoever is free, and return their ids."""
        from dbos import DBOS

        found = []
        for status in await DBOS.list_workflows_async(name=_WORKFLOW, status="PENDING", limit=_LISTED_MAX):
            if status.executor_id is not None and not self._journal.is_alive(status.executor_id):
                await DBOS.resume_workflow_async(status.workflow_id)
                found.append(status.workflow_id.rpartition(".")[0])
        # Some died between writing a run down and making it a workflow.
        for run_id in self._journal.abandoned(_LISTED_MAX):
            if run_id not in found and not await self._is_workflow(run_id):
                await self._start(run_id)
                found.append(run_id)
        return found

    async def _is_workflow(self, run_id: str) -> bool:
        from dbos import DBOS

        prefix, open_ones = f"{run_id}.", ["PENDING", "ENQUEUED"]
        return bool(await DBOS.list_workflows_async(workflow_id_prefix=prefix, status=open_ones, limit=1))

    async def _start(self, run_id: str, hand: _InHand | None = None) -> WorkflowHandleAsync[str]:
        """Begin a workflow for a run: this process's own, or one to be taken up."""
        from dbos import DBOS, SetWorkflowID

        workflow_id = f"{run_id}.{secrets.token_hex(8)}"
        if hand is not None:
            self._in_hand[workflow_id] = hand
        with SetWorkflowID(workflow_id):
            return await DBOS.start_workflow_async(_workflow(), run_id)

    async def carry_out(self, run_id: str) -> str:
        """Do a workflow's work: for the caller of `run` in this process, or for a process that has ended."""
        from dbos import DBOS

        steps = [DBOS.reserve_step() for _ in range(_STEPS_A_ROUND * (REPLANS_MAX + 1))]
        hand = self._in_hand.pop(DBOS.workflow_id or "", None)
        if hand is not None and not hand.has_listener:
            return "nobody waits for it any more"
        if hand is None:
            try:
                run = self._journal.take_over(run_id)
            except RequestInProgress:
                return "another process has it"
            if run.state != "running":
                self._journal.release(run_id)
                return "over"
            try:
                hand = _InHand(run, await self._take_up(run), has_listener=False)
            except FareboxError:
                # Somebody who knows what to do about it may resume it.
                self._journal.release(run_id)
                raise
        hand.work = asyncio.create_task(self._work(hand, _Steps(hand, steps)))
        try:
            await hand.work
        except asyncio.CancelledError:
            # Nobody listens any more. The run stays as it is; this workflow is over.
            if not hand.work.cancelled():
                raise
        finally:
            hand.events.put_nowait(None)
        return "over"

    async def _work(self, hand: _InHand, steps: _Steps) -> None:
        job = hand.job
        try:
            async for event in run_plan(
                job.planned, steps.call, self._journal, hand.run, job.limits, replan=job.replan and steps.replan
            ):
                if hand.has_listener:
                    hand.events.put_nowait(event)
        except Exception as error:  # noqa: BLE001 - told to whoever listens
            hand.events.put_nowait(error)


@functools.cache
def _workflow() -> Callable[[str], Coroutine[Any, Any, str]]:
    """Return the workflow that carries out a run; DBOS must know it before it is launched."""
    from dbos import DBOS

    return DBOS.workflow(name=_WORKFLOW)(_carry_out)


async def _carry_out(run_id: str) -> str:
    engine = DbosEngine._launched
    assert engine is not None, "workflows run only while DBOS does"
    return await engine.carry_out(run_id)


class _Steps:
    """The steps of one workflow. Nodes end in any order, so every attempt that there may be is numbered beforehand."""

    def __init__(self, hand: _InHand, steps: Sequence[StepReservation]) -> None:
        self._job, self._steps = hand.job, steps
        self._places = hand.job.planned.plan.places
        # The number of a node's first attempt by a plan; those by an earlier one count on.
        self._first: dict[tuple[str, int], int] = {}
        for attempt in sorted(hand.run.attempts, key=lambda attempt: attempt.number):
            self._first.setdefault((attempt.node_id, attempt.round), attempt.number)

    async def replan(self, rest: Rest) -> Replanned | None:
        """Ask for another plan, whose nodes then have the numbers."""
        assert self._job.replan is not None
        replanned = await self._job.replan(rest)
        if replanned is not None:
            self._places = replanned.planned.plan.places
        return replanned

    async def call(self, node: Node, attempt: Attempt) -> Answer:
        """See `CallNode`."""
        first = self._first.setdefault((node.id, attempt.round), attempt.number)
        number = attempt.number - first
        assert number < ATTEMPTS_MAX, "limits allow no more attempts than there are steps"
        step = self._steps[attempt.round * _STEPS_A_ROUND + self._places[node.id] * ATTEMPTS_MAX + number]

        async def ask() -> dict[str, Any]:
            return await _told(self._job.call_node, node, attempt)

        return _answer(await step.run_async({"name": attempt.key}, ask))


async def _told(call_node: CallNode, node: Node, attempt: Attempt) -> dict[str, Any]:
    """Return what came of a call as JSON; money is text there."""
    try:
        answer = await call_node(node, attempt)
    except NodeFailed as error:
        return {"failed": error.message, "paid_units": str(error.paid_units)}
    except FareboxError as error:
        return {"unknown": error.message}
    return {"text": answer.text, "paid_units": str(answer.paid_units)}


def _answer(told: dict[str, Any]) -> Answer:
    if "failed" in told:
        raise NodeFailed(told["failed"], paid_units=int(told["paid_units"]))
    if "unknown" in told:
        raise NodeUnknown(told["unknown"])
    return Answer(told["text"], int(told["paid_units"]))

"""One task from its words to its answer: planned, judged, carried out, and taken up again where a process died.

    async with delegating(GatewayConfig()) as delegator:
        delegation = delegator.begin(Order("compare …", budget_units, 120.0, planner="big-model"))
        async for event in delegation.events():
            ...

`delegate` is the same in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, cast

from buyer.budgets import parse_units
from buyer.client_keys import ClientKey, read_keys
from buyer.home import Home
from buyer.pool import Pool
from buyer.receipts import Receipt
from contracts.errors import NameUnknown, StoreUnavailable
from gateway.config import GatewayConfig
from gateway.delegator.buying import Asked, Buying, request_key
from gateway.delegator.calls import Answer, attempt_key
from gateway.delegator.dbos_engine import DbosEngine
from gateway.delegator.isolated import IsolatedBuying
from gateway.delegator.job import Engine, Job, Limits
from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.limits import RECOVER_EVERY_S
from gateway.delegator.order import Order, note_of, order_of, planned_of, schedule_text
from gateway.delegator.plan import Node, Plan, PlanInvalid, one_node_plan
from gateway.delegator.planner import PLANNER_NODE
from gateway.delegator.planning import ONE_CALL_TOKENS, Course, Planning, spent_units
from gateway.delegator.progress import Planned
from gateway.delegator.replan import Replanned, Rest
from gateway.delegator.run import NodeEvent, run_plan
from gateway.delegator.schedule import BudgetInfeasible
from gateway.delegator.settings import DelegateSettings
from gateway.delegator.ways import Wish, plan_course, wishes_of
from gateway.desk import Desk

__all__ = [
    "Delegated",
    "Delegation",
    "Delegator",
    "delegate",
    "delegating",
    "delegator_at",
    "journal_url",
    "receipts_in",
]


log = logging.getLogger("farebox.gateway")


class Delegator:
    """Carries out delegations at one desk."""

    def __init__(self, desk: Desk, journal: Journal, settings: DelegateSettings) -> None:
        self.desk, self.settings = desk, settings
        self.journal = journal
        self.engine: Engine = run_plan
        self._buyings: list[Buying] = []

    def begin(self, order: Order, client_key: ClientKey | None = None, run_id: str | None = None) -> Delegation:
        """Return a new delegation, which begins when its events are asked for. Raises `UsageError`."""
        order.check()
        return Delegation(self, self._buying(client_key), run_id or f"r{secrets.token_hex(8)}", order)

    def resume(self, run_id: str, client_key: ClientKey | None = None) -> Delegation:
        """Return a delegation that goes on from where it stands, on the account it was begun on, whoever resumes it.

        Raises `NameUnknown`, `RequestInProgress`.
        """
        if client_key is None:
            # A revoked key begins nothing, but what it had begun stays on its budget and to its models.
            client_key = _account_of(self.journal.find(run_id), self.desk.pool.database.read(read_keys))
        run = self.journal.take_over(run_id, anew=True)
        return Delegation(self, self._buying(client_key), run_id, order_of(run), run)

    async def take_up(self, run: Run) -> Job:
        """Return what it takes to go on with a run that this process has, on whose account it was begun.

        Raises `NameUnknown` when that client key is gone, and as `Delegation.events`.
        """
        database = self.desk.pool.database
        found = await self.desk.in_store(lambda: database.read(read_keys))
        client_key = _account_of(run, [key for key in found if key.revoked_s is None])
        return await Delegation(self, self._buying(client_key), run.id, order_of(run), run).job()

    async def course(self, order: Order) -> Planned:
        """Return how the order's plan, or one call, would be carried out, and pay nothing. Raises as `plan_course`."""
        order.check()
        plan = order.plan or one_node_plan(order.task, ONE_CALL_TOKENS)
        offers = await self._buying(None).offers()
        return plan_course(
            plan,
            offers,
            self.settings,
            budget_units=order.budget_units,
            deadline_s=order.deadline_s,
            is_soonest=order.is_soonest,
        )

    async def close(self) -> None:
        """Wait for calls whose payment has left."""
        await asyncio.gather(*(buying.close() for buying in self._buyings))

    def _buying(self, client_key: ClientKey | None) -> Buying:
        buying = (IsolatedBuying if self.settings.workers == "processes" else Buying)(self.desk, client_key)
        self._buyings = [*(each for each in self._buyings if each.is_busy), buying]
        return buying


class Delegation:
    """One run. `course` is there once the event "planned" was told; `sellers` says who answered which node."""

    def __init__(self, delegator: Delegator, buying: Buying, run_id: str, order: Order, run: Run | None = None) -> None:
        self.id, self.order = run_id, order
        self.course: Course | None = None
        self.sellers: dict[str, str] = {}
        self._journal, self._settings, self.buying = delegator.journal, delegator.settings, buying
        self._engine = delegator.engine
        self._run = run
        self._started = time.monotonic()

    async def events(self) -> AsyncGenerator[NodeEvent, None]:
        """Do it, and yield what happens. Raises as `Planning.course`; nothing but the planner is paid by then."""
        run = self._run = self._run or self._begin()
        try:
            if not run.plan and self.order.plan is None and self.order.planner is not None:
                yield NodeEvent("started", self._now_s(), PLANNER_NODE, self.order.planner)
            job = await self.job()
            run = self._journal.find(self.id)
            assert self.course is not None
            yield NodeEvent("planned", self._now_s(), spent_units=spent_units(run), reason=self.course.note)
        except BaseException:
            # Nobody carries it out yet: whoever asks again, in this process too, goes on with it.
            with contextlib.suppress(StoreUnavailable):
                self._journal.release(self.id)
            raise
        happening = self._engine(job.planned, job.call_node, self._journal, run, job.limits, replan=job.replan)
        # Whoever stops listening stops the run: its generator must end now, not when it is collected.
        async with contextlib.aclosing(cast("AsyncGenerator[NodeEvent, None]", happening)) as events:
            async for event in events:
                yield event

    async def job(self) -> Job:
        """Return who does what, by whom it is paid, and within which limits. Raises as `events`."""
        run = self._run or self._begin()
        planning = Planning(run, self.order, self._settings, self.buying, self._journal, self._left_s)
        self.course = await self._course(run, planning)
        planned, left_s = self.course.planned, self._left_s()
        wishes = dict(self._wishes(planned))

        async def replan(rest: Rest) -> Replanned | None:
            if (again := await planning.replan(rest)) is not None:
                self.course = Course(again.planned, "the rest was planned anew")
                wishes.update(self._wishes(again.planned))
            return again

        async def call_node(node: Node, attempt: Attempt) -> Answer:
            wish = replace(wishes[node.id], avoid=await self._tried(attempt))
            try:
                return await self.buying.buy(attempt, Asked(node.est_tokens), wish)
            finally:
                if (receipt := await self.buying.receipt_of(attempt.key)) is not None:
                    self.sellers[node.id] = receipt.purchase

        return Job(planned, call_node, Limits(self.order.budget_units, left_s, self._settings.parallel), replan)

    def _wishes(self, planned: Planned) -> Mapping[str, Wish]:
        return wishes_of(planned, None if self.order.is_soonest else self._left_s())

    async def _tried(self, attempt: Attempt) -> frozenset[str]:
        """Return the purchases that earlier attempts at the same node were paid from."""
        keys = [attempt_key(self.id, attempt.node_id, number) for number in range(attempt.number)]
        receipts = [await self.buying.receipt_of(key) for key in keys]
        return frozenset(receipt.purchase for receipt in receipts if receipt is not None)

    def _begin(self) -> Run:
        now_ms, deadline_s = time.time_ns() // 1_000_000, self.order.deadline_s
        run = Run(
            id=self.id,
            tenant=self.buying.tenant,
            plan="",
            schedule=schedule_text(self.order, None, ""),
            budget_units=self.order.budget_units,
            deadline_ms=None if deadline_s is None else now_ms + round(deadline_s * 1000),
            started_ms=now_ms,
        )
        self._journal.begin(run)
        return run

    async def _course(self, run: Run, planning: Planning) -> Course:
        if run.plan:
            return Course(planned_of(run), note_of(run))
        try:
            course = await planning.course()
        except (PlanInvalid, BudgetInfeasible, NameUnknown) as error:
            self._journal.planned(run.id, "", schedule_text(self.order, None, error.message))
            await self._journal.finish(self.id, "failed")
            raise
        text = schedule_text(self.order, course.planned, course.note)
        self._journal.planned(run.id, course.planned.plan.model_dump_json(), text)
        return course

    def _now_s(self) -> float:
        return time.monotonic() - self._started

    def _left_s(self) -> float | None:
        return None if self.order.deadline_s is None else max(self.order.deadline_s - self._now_s(), 0.001)


@contextlib.asynccontextmanager
async def delegating(config: GatewayConfig) -> AsyncIterator[Delegator]:
    """Give a delegator over the pool that the settings name. Raises as opening a pool does."""
    from gateway.serve import open_desk

    async with open_desk(config) as desk, delegator_at(desk, config.delegate or DelegateSettings()) as delegator:
        yield delegator


@contextlib.asynccontextmanager
async def delegator_at(desk: Desk, settings: DelegateSettings) -> AsyncIterator[Delegator]:
    """Give a delegator that buys at a desk. Raises `StoreUnavailable`, `ConfigInvalid` for an engine that cannot be."""
    url = journal_url(desk.pool.home)
    journal = await asyncio.to_thread(Journal.open, url)
    delegator = Delegator(desk, journal, settings)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(journal.close)
        stack.push_async_callback(delegator.close)
        if settings.engine == "dbos":
            engine = DbosEngine.launch(url, journal, delegator.take_up)
            stack.callback(engine.close)
            delegator.engine = engine.run
            stack.callback(asyncio.create_task(_recover(engine)).cancel)
        yield delegator


def _account_of(run: Run, keys: Iterable[ClientKey]) -> ClientKey | None:
    """Return the client key that a run was begun with, None where it was without one. Raises `NameUnknown`."""
    key = next((key for key in keys if key.name == run.tenant), None)
    if run.tenant and key is None:
        raise NameUnknown(f"run {run.id}: there is no client key {run.tenant!r} any more")
    return key


async def _recover(engine: DbosEngine) -> None:
    """Have what processes leave behind finished, for as long as this one lives."""
    while True:
        try:
            await engine.recover()
        except Exception:
            log.exception("runs of processes that have ended cannot be looked for")
        await asyncio.sleep(RECOVER_EVERY_S)


def journal_url(home: Home) -> str:
    """Return where the journal is: in the pool's PostgreSQL, else in a SQLite file of its own."""
    return home.store or f"sqlite:///{home.path / 'delegator.db'}"


def receipts_in(pool: Pool, run: Run) -> Mapping[str, Receipt]:
    """Return the receipts of a run's attempts, by attempt key; what never left has none."""
    found = {attempt.key: pool.receipt_of(request_key(attempt.key)) for attempt in run.attempts}
    return {key: receipt for key, receipt in found.items() if receipt is not None}


class Delegated(NamedTuple):
    """What came of a task. `text` is None where the answer is `missing`; `run_id` is what `resume` takes."""

    run_id: str
    text: str | None
    spent_units: int
    missing: list[str]


async def delegate(
    task: str,
    *,
    budget: str,
    deadline_s: float | None = None,
    planner: str | None = None,
    plan: Plan | None = None,
    config: GatewayConfig | None = None,
) -> Delegated:
    """Have a task done for at most `budget` whole tokens, as "0.50", out of the pool that `config` names.

    Raises `UsageError`, what opening a pool raises, and before anything but the planner is paid: `PlanInvalid`,
    `BudgetInfeasible`.
    """
    budget_units = parse_units(budget, "budget")
    assert budget_units is not None
    async with delegating(config or GatewayConfig()) as delegator:
        delegation = delegator.begin(Order(task, budget_units, deadline_s, planner=planner, plan=plan))
        events = [event async for event in delegation.events()]
    last = events[-1]
    return Delegated(delegation.id, last.text, last.spent_units or 0, list(last.missing))

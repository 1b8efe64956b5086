"""How a run comes by its plan: of the journal, of the order, or of a planner, else as a single call.

What the planner costs is inside the run's budget and in its journal like any other call, so that a process that dies
here pays for no plan twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from contracts.errors import BudgetExceeded, FareboxError, NameUnknown
from gateway.bidder.rule import SPREAD_SHARE
from gateway.delegator.buying import Asked, Buying
from gateway.delegator.calls import Answer, NodeFailed, attempt_key
from gateway.delegator.journal import Attempt, Journal, Run
from gateway.delegator.limits import PLANNER_ROUNDS, PLANNER_TOKENS_MAX
from gateway.delegator.order import Order, schedule_text
from gateway.delegator.plan import Plan, PlanInvalid, check_plan, one_node_plan, parse_plan, plan_schema, read_plan
from gateway.delegator.planner import PLANNER_NODE, planner_prompt, rest_prompt, unfenced
from gateway.delegator.progress import Planned
from gateway.delegator.replan import Replanned, Rest
from gateway.delegator.schedule import BudgetInfeasible, cheapest, cost_units
from gateway.delegator.settings import DelegateSettings
from gateway.delegator.ways import Priced, Wish, alone, judge, model_of, plan_course
from gateway.models import parse_model
from gateway.wishes import BYTES_PER_TOKEN, work_of_tokens

__all__ = ["ONE_CALL_TOKENS", "Course", "Planning", "open_units", "spent_units"]

ONE_CALL_TOKENS = 2_000
# Everybody waits for the planner: without a deadline the fastest is wanted, else one within this share of it.
_PLANNING_SHARE = 0.2


class Course(NamedTuple):
    """Who does what, and how that came about."""

    planned: Planned
    note: str


class _Refused(NamedTuple):
    """A planner's plan, and what was wrong with it."""

    text: str
    error: FareboxError


@dataclass(slots=True)
class Planning:
    """Plans one run. `left_s` says how much of its time is left."""

    run: Run
    order: Order
    settings: DelegateSettings
    buying: Buying
    journal: Journal
    left_s: Callable[[], float | None]
    offers: Sequence[Priced] = ()
    spent_units: int = 0

    async def course(self) -> Course:
        """Return the course of the order's plan, of a planner's, or of one call of the whole task.

        Raises `NotForSale`, `BudgetInfeasible`, `DeadlineInfeasible`, `NameUnknown` (the planner's model), and
        `NodeUnknown` where the planner was paid and has not answered.
        """
        self.offers = await self.buying.offers()
        if self.order.plan is not None:
            return Course(await self._of(self.order.plan), "the plan that was given")
        if self.order.planner is None:
            return await self._one_call("no planner was asked")
        problem: _Refused | None = None
        for number in range(PLANNER_ROUNDS):
            try:
                answer = await self._ask(self.order.planner, number, problem)
            except BudgetExceeded as error:
                return await self._one_call(error.message)
            except NodeFailed as error:
                self.spent_units += error.paid_units
                return await self._one_call(f"the planner gave no plan: {error.message}")
            self.spent_units += answer.paid_units
            try:
                return await self._judged(await self._of(parse_plan(unfenced(answer.text))))
            except (PlanInvalid, BudgetInfeasible) as error:
                problem = _Refused(answer.text, error)
        assert problem is not None
        return await self._one_call(f"the planner's plans were refused: {problem.error.message}")

    async def replan(self, rest: Rest) -> Replanned | None:
        """Return a plan for what a failed one has left; None where nobody plans, or nothing better comes of it.

        Raises `NodeUnknown` where the planner was paid and has not answered.
        """
        if self.order.planner is None:
            return None
        self.run = self.journal.find(self.run.id)
        self.offers = await self.buying.offers()
        model = parse_model(self.order.planner).name
        within = self._planners(model, rest.free_units // 2)
        if not within:
            return None

        def prompt(key: str) -> str:
            return rest_prompt(self.order.task, self.settings, key, rest)

        try:
            answer = await self._bought(
                PLANNER_ROUNDS + self.run.round, lambda number: self._made(number, within[-1], prompt)
            )
            plan = _continued(unfenced(answer.text), rest)
            planned = await asyncio.to_thread(
                plan_course,
                plan,
                self.offers,
                self.settings,
                budget_units=rest.free_units - answer.paid_units,
                deadline_s=self.left_s(),
                is_soonest=self.order.is_soonest,
                answered=rest.results.keys(),
            )
        except (NodeFailed, PlanInvalid, BudgetInfeasible):
            return None
        text = schedule_text(self.order, planned, "the rest was planned anew")
        return Replanned(planned, text, answer.paid_units)

    async def _of(self, plan: Plan) -> Planned:
        check_plan(plan)
        # A large plan takes a good part of a second; other calls go on meanwhile.
        return await asyncio.to_thread(
            plan_course,
            plan,
            self.offers,
            self.settings,
            budget_units=self.order.budget_units - self.spent_units,
            deadline_s=self.left_s(),
            is_soonest=self.order.is_soonest,
        )

    async def _one_call(self, why: str) -> Course:
        return Course(await self._of(one_node_plan(self.order.task, ONE_CALL_TOKENS)), f"one call: {why}")

    async def _judged(self, planned: Planned) -> Course:
        """Return the plan, or the single call where delegating brings nothing."""
        if not self.order.is_judged or len(planned.plan.nodes) == 1:
            return Course(planned, "the planner's plan")
        try:
            single = await self._of(alone(planned.plan, self.order.task))
        except FareboxError:
            return Course(planned, "the planner's plan: no single call can do it")
        verdict = judge(planned, single, deadline_s=self.left_s())
        if verdict.delegates:
            return Course(planned, f"the planner's plan: {verdict.reason}")
        return Course(single, f"one call: {verdict.reason}")

    async def _ask(self, model: str, number: int, problem: _Refused | None) -> Answer:
        """Have a plan written. Raises `NodeFailed`, `NodeUnknown`, `BudgetExceeded`, `NameUnknown`."""
        return await self._bought(number, lambda number: self._attempt(parse_model(model).name, number, problem))

    async def _bought(self, number: int, make: Callable[[int], Attempt]) -> Answer:
        """Buy a plan, or read in the journal what was bought."""
        known = next(
            (each for each in self.run.attempts if (each.node_id, each.number) == (PLANNER_NODE, number)), None
        )
        if known is not None and known.state == "answered":
            return Answer(known.result or "", known.paid_units or 0)
        if known is not None and known.state == "failed":
            raise NodeFailed(known.reason or "it failed", paid_units=known.paid_units or 0)
        if known is None:
            known = make(number)
            await self.journal.intend(self.run.id, known)
        try:
            answer = await self.buying.buy(known, Asked(PLANNER_TOKENS_MAX, plan_schema()), self._wish(known))
        except NodeFailed as error:
            await self.journal.ended(known.key, paid_units=error.paid_units, result=None, reason=error.message)
            raise
        await self.journal.ended(known.key, paid_units=answer.paid_units, result=answer.text)
        return answer

    def _wish(self, attempt: Attempt) -> Wish:
        """Return when the plan is needed: as soon as the fastest planner has it, or a share of the time there is."""
        paces = [offer.work_per_s for offer in self.offers if offer.model == model_of(attempt.offer)]
        # As the bidder reckons it: a plan may be as long as the request says.
        work = work_of_tokens(PLANNER_TOKENS_MAX, len(attempt.prompt.encode()) / BYTES_PER_TOKEN)
        soonest_s = work / max(paces, default=1.0)
        has_s = 0.0 if self.order.is_soonest else self.left_s() or 0.0
        return Wish(max(soonest_s * (1 + SPREAD_SHARE), has_s * _PLANNING_SHARE), is_urgent=True)

    def _least_units(self) -> int:
        """Return what one call of the task costs at least. Raises `BudgetInfeasible`, `NotForSale`."""
        left_units = self.order.budget_units - self.spent_units
        one = plan_course(
            one_node_plan(self.order.task, ONE_CALL_TOKENS), self.offers, self.settings, budget_units=left_units
        )
        return cost_units(one.graph, cheapest(one.graph))

    def _attempt(self, model: str, number: int, problem: _Refused | None) -> Attempt:
        # What one call of the whole task costs is not for planning: there is always an answer to be had.
        left_units = self.order.budget_units - self.spent_units - self._least_units()
        within = self._planners(model, left_units)
        if not within:
            raise BudgetExceeded("a planner costs more than the budget has left beside the task")

        def prompt(key: str) -> str:
            return planner_prompt(self.order.task, self.settings, key, problem=problem)

        return self._made(number, within[-1], prompt)

    def _planners(self, model: str, most_units: int) -> Sequence[Priced]:
        """Return the offers of the planner's model up to a price, the cheapest first. Raises `NameUnknown`."""
        sold = sorted((offer for offer in self.offers if offer.model == model), key=lambda offer: offer.price_units)
        if not sold:
            raise NameUnknown(
                f"the planner: no purchase of {model[:100]!r} has anything left",
                remedy=f"run `farebox buy NAME --endpoint URL --model {model[:100]} --count N --max-price P`",
            )
        return [offer for offer in sold if offer.price_units <= most_units]

    def _made(self, number: int, offer: Priced, prompt: Callable[[str], str]) -> Attempt:
        key = attempt_key(self.run.id, PLANNER_NODE, number)
        return Attempt(
            key=key,
            node_id=PLANNER_NODE,
            number=number,
            offer=offer.name,
            prompt=prompt(key),
            price_units=offer.price_units,
            state="intended",
            started_ms=time.time_ns() // 1_000_000,
        )


def _continued(text: str, rest: Rest) -> Plan:
    """Return a plan for the rest with the answered nodes that it reads. Raises a leaf of `PlanInvalid`."""
    plan = read_plan(text)
    named = {node.id for node in plan.nodes}
    wanted = {need for node in plan.nodes for need in node.needs} | {plan.output}
    answered = [
        node.model_copy(update={"needs": [], "inputs": []})
        for node in rest.planned.plan.nodes
        if node.id in rest.results and node.id in wanted and node.id not in named
    ]
    whole = plan.model_copy(update={"nodes": [*answered, *plan.nodes]})
    check_plan(whole)
    return whole


def spent_units(run: Run) -> int:
    """Return what the calls of a run have cost so far."""
    return sum(attempt.paid_units or 0 for attempt in run.attempts)


def open_units(run: Run) -> int:
    """Return what its calls that have no end yet may cost on top."""
    return sum(attempt.price_units for attempt in run.attempts if attempt.state == "intended")

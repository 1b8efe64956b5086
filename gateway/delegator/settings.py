"""The `delegate:` section of gateway.yaml: what a run may cost and take, and what each model is fit for."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from buyer.budgets import parse_units
from contracts.settings import SettingInvalid, StrictModel
from gateway.delegator.limits import (
    DEADLINE_S_MAX,
    MODELS_MAX,
    PARALLEL_MAX,
    RUNS_MAX,
    RUNS_PER_KEY,
    SLOTS_MAX,
)
from gateway.delegator.plan import Kind
from gateway.routing_settings import Amount

__all__ = ["DelegateSettings", "Fitness"]

Seconds = Annotated[float, pydantic.Field(gt=0, le=DEADLINE_S_MAX, allow_inf_nan=False)]


class Fitness(StrictModel):
    """What one model is fit for: how hard a task it masters (0 to 1), the kinds of work, calls it takes at a time."""

    quality: Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    kinds: frozenset[Annotated[Kind, pydantic.Field(strict=False)]] = pydantic.Field(
        default=frozenset(Kind) - {Kind.IMAGE}, strict=False
    )
    slots: Annotated[int, pydantic.Field(ge=1, le=SLOTS_MAX)] | None = None


class DelegateSettings(StrictModel):
    """How tasks are delegated.

    `planner` is the model that plans where a call names none. `budget` and `deadline_s` are what a run may take when
    nobody says; the `max_` of each is what a client of the gateway may ask for. `models`, where given, are the only
    ones that work is given to; without it, everything that was bought is taken to be fit for all but images. With
    `workers: processes`, each worker is a process, which costs a second and can be killed without the others. With
    `engine: dbos`, runs of a machine that died are finished by another one; it needs a pool in PostgreSQL.
    `runs_per_key` is how many tasks of one client key are carried out at once, `parallel` how many parts of a task.
    """

    planner: str | None = None
    budget: Amount = "0.10"
    max_budget: Amount = "1.00"
    deadline_s: Seconds = 120.0
    max_deadline_s: Seconds = 600.0
    workers: Literal["tasks", "processes"] = "tasks"
    engine: Literal["asyncio", "dbos"] = "asyncio"
    runs_per_key: Annotated[int, pydantic.Field(ge=1, le=RUNS_MAX)] = RUNS_PER_KEY
    parallel: Annotated[int, pydantic.Field(ge=1, le=PARALLEL_MAX)] = PARALLEL_MAX
    models: Annotated[dict[str, Fitness], pydantic.Field(max_length=MODELS_MAX)] = pydantic.Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> DelegateSettings:
        if self.budget_units > self.max_budget_units:
            raise SettingInvalid(("budget",), f"expected at most max_budget, which is {self.max_budget}")
        if self.deadline_s > self.max_deadline_s:
            raise SettingInvalid(("deadline_s",), f"expected at most max_deadline_s, which is {self.max_deadline_s:g}")
        return self

    @property
    def budget_units(self) -> int:
        """The default budget, in units."""
        return parse_units(self.budget, "delegate.budget") or 0

    @property
    def max_budget_units(self) -> int:
        """The highest budget of a gateway's client, in units."""
        return parse_units(self.max_budget, "delegate.max_budget") or 0

    def fitness_of(self, model: str) -> Fitness | None:
        """Return what a model is fit for; None where it gets no work."""
        return self.models.get(model) if self.models else Fitness()

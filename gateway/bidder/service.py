"""The bidder at work: decides, remembers, learns, and never gets in the way of a call.

Whatever goes wrong in here, a model that is slow, a log that cannot be written, a training that fails, a call is placed
all the same, by the rule; and what a call may cost is not decided here at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from contracts.errors import FareboxError
from gateway.bidder.choose import NO_EXPLORATION, Chosen, Exploration, choose
from gateway.bidder.events import Event, EventLog, ModelState
from gateway.bidder.learner import Learner, Standing
from gateway.bidder.limits import CHOOSE_MAX_S, CHOOSE_SLOW_MAX, OBSERVATIONS_QUEUED_MAX
from gateway.bidder.linucb import LinUCB
from gateway.bidder.market import Market
from gateway.bidder.model import Example
from gateway.bidder.policy import Policy
from gateway.bidder.rule import QueueRule
from gateway.bidder.simple import Cheapest, EwmaUtility, Fastest, InverseSquare
from gateway.bidder.task import Observation, Offer, Outcome, Task, tokens
from gateway.bidder.trainer import newest, train_elsewhere

__all__ = ["POLICY_NAMES", "Bidder", "Ticket"]

_log = logging.getLogger("farebox.bidder")

_POLICIES: dict[str, Callable[[], Policy]] = {
    "rule": QueueRule,
    "linucb": LinUCB,
    "ewma": EwmaUtility,
    "cheapest": Cheapest,
    "fastest": Fastest,
    "inverse_square": InverseSquare,
}
POLICY_NAMES = ("auto", *_POLICIES)
"""What `policy:` may be: `auto` is the rule until a trained model has shown itself better."""


def _policy_named(name: str) -> Policy:
    """Return a fixed policy. Raises `KeyError` for "auto", which is the bidder's own learner."""
    return _POLICIES[name]()


@dataclass(frozen=True, slots=True)
class Ticket:
    """One decision that waits for its outcome. `id` is what `farebox bid explain` takes."""

    id: str
    model: str
    chosen: Chosen
    decided_s: float

    @property
    def offers(self) -> list[Offer]:
        """What to try, in order."""
        return [self.chosen.view.offers[place] for place in self.chosen.order]


class Bidder:
    """Chooses among sellers for one gateway. `clock` is unix seconds.

    With a `log`, what was learnt survives a restart; with `models` (a folder) and a `key_path`, trees are trained.
    """

    def __init__(
        self,
        log: EventLog | None = None,
        *,
        models: Path | None = None,
        key_path: Path | None = None,
        random: Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.market = Market()
        self._learner = Learner(challenges=_has_numpy())
        self._fixed: dict[str, Policy] = {}
        self._log = log
        self._models, self._key_path = models, key_path
        self._random = random or Random(secrets.randbits(64))  # noqa: S311 - exploration is no secret
        self._clock = clock
        self._slow = 0
        self._states: dict[str, ModelState] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        if log is not None:
            self._restore(log)

    # Deciding

    def decide(
        self, task: Task, offers: Sequence[Offer], *, model: str, policy: str = "auto", explores: bool = True
    ) -> Ticket:
        """Return what to buy for `task`. Raises nothing: what fails in a policy is decided by the rule."""
        now_s = self._clock()
        decider: Policy = self._learner if policy == "auto" else self._fixed_policy(policy)
        share = self._learner.explore_share if explores and policy == "auto" else 0.0
        started = time.perf_counter()
        try:
            chosen = self._choose(task, offers, now_s, decider, share)
        except Exception:  # noqa: BLE001 - a policy must not stop a call
            _log.exception("policy %s failed; the rule decides", decider.name)
            self._learner.drop("it failed")
            chosen = self._choose(task, offers, now_s, QueueRule(), 0.0)
        self._note_time(time.perf_counter() - started)
        for offer in offers:
            self.market.see(task, offer)
        return Ticket(_new_id(now_s), model, chosen, now_s)

    def _choose(self, task: Task, offers: Sequence[Offer], now_s: float, policy: Policy, share: float) -> Chosen:
        exploration = Exploration(share) if share > 0 else NO_EXPLORATION
        return choose(task, offers, self.market, now_s, policy=policy, random=self._random, exploration=exploration)

    def _fixed_policy(self, name: str) -> Policy:
        return self._fixed.setdefault(name, _policy_named(name))

    def _note_time(self, took_s: float) -> None:
        """Drop a model that is slow time and again; once may be the machine's fault."""
        self._slow = self._slow + 1 if took_s > CHOOSE_MAX_S else 0
        if self._slow >= CHOOSE_SLOW_MAX and self._learner.decides != "rule":
            self._learner.drop(f"it took more than {CHOOSE_MAX_S * 1000:.0f} ms {self._slow} times in a row")

    def saw(self, observations: list[Observation]) -> None:
        """Keep what sellers showed of themselves besides an offer that was decided on."""
        if self._log is not None:
            self._in_background(self._log.observed(observations, at_ms=round(self._clock() * 1000)))

    # Learning

    def placed(self, ticket: Ticket, request_key: str | None) -> None:
        """Note that a decision was acted on, under the pool's name of the request."""
        if self._log is None:
            return
        standing = self._learner.standing()
        self._in_background(
            self._log.decided(
                ticket.id,
                ticket.chosen,
                model=ticket.model,
                request_key=request_key,
                trained=standing.live,
                at_ms=round(ticket.decided_s * 1000),
            )
        )

    def ended(self, ticket: Ticket, offer: Offer, outcome: Outcome, *, settlement: str = "unknown") -> None:
        """Take the outcome of a call that was bought at `offer`, the one decided on or one that stood in for it."""
        now_s, view = self._clock(), ticket.chosen.view
        index = next((place for place, each in enumerate(view.offers) if each.name == offer.name), None)
        if index is None:
            return
        is_good = outcome.is_good(view.task)
        self.market.observe(view.task, offer, outcome, now_s)
        example = Example(view.rows[index], outcome.latency_s, outcome.is_ok, outcome.is_censored)
        decision = ticket.chosen.decision
        self._learner.learn(
            view,
            index,
            example,
            is_good,
            now_s,
            propensity=decision.propensity if index == ticket.chosen.index else None,
            paid=tokens(outcome.paid_units),
        )
        self._note_models()
        for policy in self._fixed.values():
            policy.observe(example.row, offer.arm, is_good)
        if self._log is not None:
            at_ms = round(now_s * 1000)
            self._in_background(
                self._log.ended(ticket.id, outcome, is_good=is_good, settlement=settlement, at_ms=at_ms)
            )
        self._train_when_due(now_s)

    def _train_when_due(self, now_s: float) -> None:
        if self._models is None or self._key_path is None:
            return
        examples = self._learner.wanted(now_s)
        if examples is not None:
            self._in_background(self._train(examples))

    async def _train(self, examples: Sequence[Example]) -> None:
        assert self._models is not None
        assert self._key_path is not None
        try:
            name, forest = await train_elsewhere(examples, self._models, self._key_path, self._random.getrandbits(30))
        except FareboxError as error:
            _log.warning("no model came of the training: %s", error.message)
            self._learner.trained(None, "", self._clock())
            return
        self._learner.trained(forest, name, self._clock())
        self._note_models()

    def _note_models(self) -> None:
        """Keep in the log which model decides, which is watched, and which is neither any more."""
        standing = self._learner.standing()
        states: dict[str, ModelState] = {name: "live" for name in [standing.live] if name is not None}
        states |= {name: "shadow" for name in [standing.shadow] if name is not None}
        changed = {name: state for name, state in states.items() if self._states.get(name) != state}
        changed |= {name: "retired" for name in self._states if name not in states}
        self._states = states
        if changed and self._log is not None:
            at_ms = round(self._clock() * 1000)
            self._in_background(self._log.models(changed, standing.outcomes, standing.losses, at_ms=at_ms))

    def _restore(self, log: EventLog) -> None:
        """Learn again from the log, and look at the newest model, which must show itself anew."""
        try:
            for event in log.recent():
                self._relive(event)
        except FareboxError as error:
            _log.warning("the bidder starts without its memory: %s", error.message)
        if self._models is not None and self._key_path is not None and _has_numpy():
            with contextlib.suppress(FareboxError, ImportError):
                found = newest(self._models, self._key_path)
                if found is not None:
                    name, forest, manifest = found
                    self._learner.revive(forest, name, manifest.created_s)

    def _relive(self, event: Event) -> None:
        if event.chosen is None or event.outcome is None or event.is_good is None or event.ended_ms is None:
            return
        offer, at_s = event.view.offers[event.chosen], event.ended_ms / 1000
        self.market.see(event.view.task, offer)
        self.market.observe(event.view.task, offer, event.outcome, at_s)
        outcome = event.outcome
        example = Example(event.view.rows[event.chosen], outcome.latency_s, outcome.is_ok, outcome.is_censored)
        paid = tokens(outcome.paid_units)
        self._learner.learn(
            event.view, event.chosen, example, event.is_good, at_s, propensity=event.propensity, paid=paid
        )

    # Life

    def standing(self) -> Standing:
        """Return where learning stands."""
        return self._learner.standing()

    async def close(self) -> None:
        """Stop what runs in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._log is not None:
            self._log.close()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the calls; what fails is logged, and past a bound it is left out."""
        if len(self._tasks) >= OBSERVATIONS_QUEUED_MAX:
            work.close()
            return
        task = asyncio.ensure_future(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except FareboxError as error:
        _log.warning("the bidder's log: %s", error.message)


def _new_id(now_s: float) -> str:
    """Return an id that sorts by time."""
    return f"d{round(now_s * 1000):012x}{secrets.token_hex(5)}"


def _has_numpy() -> bool:
    return find_spec("numpy") is not None

"""Parts for the delegator's tests: sellers of different price and pace, and a delegator that can pay them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from buyer.home import Home
from buyer.pool import Pool
from gateway.config import GatewayConfig
from gateway.delegator import run as run_module
from gateway.delegator.delegation import Delegation, Delegator, delegating
from gateway.delegator.order import Order
from gateway.delegator.plan import Plan, parse_plan
from gateway.delegator.run import NodeEvent
from gateway.demo.worker_server import worker_app
from tests.gateway.parts import ASSET, StandInSeller, listening, sign_pool
from tests.patience import PATIENCE_S

UNITS_PER_ATOMIC: int = 10 ** (36 - ASSET.decimals)
BUDGET = 100_000 * UNITS_PER_ATOMIC


def plan_document(output: str, **nodes: tuple[str, list[str]]) -> dict[str, Any]:
    """Return a plan as JSON: each node its goal and those it reads."""
    return {
        "version": 1,
        "nodes": [
            {
                "id": name,
                "kind": "reason",
                "goal": goal,
                "needs": needs,
                "inputs": [{"name": need, "source": need, "path": ""} for need in needs],
                "min_quality": 0.0,
                "est_tokens": 50,
                "optional": False,
                "cacheable": False,
            }
            for name, (goal, needs) in nodes.items()
        ],
        "output": output,
    }


def plan_of(output: str, **nodes: tuple[str, list[str]]) -> Plan:
    return parse_plan(json.dumps(plan_document(output, **nodes)))


@dataclass
class Town:
    """Stand-in sellers by the name of their purchase, and the pool that can pay them."""

    home: Path
    sellers: dict[str, StandInSeller] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> GatewayConfig:
        return GatewayConfig.model_validate({"home": str(self.home), **self.settings})

    @asynccontextmanager
    async def delegating(self) -> AsyncIterator[Delegator]:
        async with delegating(self.config) as delegator:
            yield delegator

    def set_pace(self, seller: str, pace: float) -> None:
        """Make a seller's model faster or slower from now on."""
        httpx.post(f"{self.urls[seller]}/test/pace/{pace}").raise_for_status()

    @property
    def shown(self) -> Mapping[str, int]:
        """How many payments each seller was shown, repetitions included."""
        return {name: len(seller.presented) for name, seller in self.sellers.items()}

    @property
    def paid(self) -> Mapping[str, int]:
        """How many different payments each seller was shown."""
        return {name: len(set(seller.nonces)) for name, seller in self.sellers.items()}


@contextmanager
def town(folder: Path, *, count: int = 20, **sellers: tuple[str, int, float]) -> Iterator[Town]:
    """Give a town of sellers: by name, each a model, a price in atomic units, and a pace in work per second."""
    built = Town(folder / "home")
    with ExitStack() as stack:
        pool = Pool.open(Home.open(built.home))
        for name, (model, price, pace) in sellers.items():
            app = worker_app({model: 1.0}, pace=pace)
            seller = built.sellers[name] = StandInSeller(app, price_atomic=price, keeps_answers=True)
            built.urls[name] = stack.enter_context(listening(seller)).url
            sign_pool(pool, built.urls[name], count, name=name, model=model, price_atomic=price)
        pool.close()
        yield built


def order(plan: Plan | None = None, *, task: str = "add some numbers", **given: Any) -> Order:
    return Order(task, given.pop("budget", BUDGET), given.pop("deadline_s", 120.0), plan=plan, **given)


async def events_of(delegation: Delegation) -> list[NodeEvent]:
    return [event async for event in delegation.events()]


def hedge_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call be late soon, so that no test waits; when calls are late is told apart."""
    monkeypatch.setattr(run_module, "hedge_after_s", lambda *_, **__: 0.1)
    monkeypatch.setattr(run_module, "is_in_time", lambda *_, **__: True)
    monkeypatch.setattr(run_module, "LOSERS_WAIT_S", PATIENCE_S)


def hold(seller: StandInSeller) -> Callable[[], None]:
    """Let a seller's model answer nobody until what is returned was called."""
    released, app = threading.Event(), seller.app

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(released.wait, PATIENCE_S)
        await app(scope, receive, send)

    seller.app = held
    return released.set

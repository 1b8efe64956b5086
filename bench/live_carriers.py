"""A process that kills delegations with a real pool: `python -m bench.live_carriers HOME KILLS SEED TIMEOUT_S`.

Its children open the pool of HOME as `farebox delegate` does, take the open run up or begin another, and are killed at
random moments. The last run is finished, and nothing is printed but how many died.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

from bench.carriers import kill_again_and_again
from bench.idle_town import MODEL
from buyer.budgets import parse_units
from contracts.errors import RequestInProgress
from gateway.config import GatewayConfig
from gateway.delegator.delegation import Delegation, Delegator, delegating
from gateway.delegator.order import Order
from gateway.delegator.plan import Plan, parse_plan

__all__ = ["plan"]

_LIFE_S_MAX = 0.8
_BUDGET = "0.1"
_DEADLINE_S = 120.0
_WAIT_FOR_TURN_S = 0.01
_TAKES_MS = 40


def plan() -> Plan:
    """Return what every run does: two things at once, what needs one of them and what needs both, and an end."""
    needs: dict[str, list[str]] = {"a": [], "b": [], "c": ["a"], "d": ["a", "b"], "e": ["c", "d"]}
    nodes = [
        {
            "id": name,
            "kind": "reason",
            "goal": f"do {name}",
            "needs": each,
            "inputs": [{"name": need, "source": need, "path": ""} for need in each],
            "min_quality": 0.0,
            "est_tokens": _TAKES_MS,
            "optional": False,
            "cacheable": False,
        }
        for name, each in needs.items()
    ]
    return parse_plan(json.dumps({"version": 1, "nodes": nodes, "output": "e"}))


async def _carry_out_runs(home: str, ready: Callable[[], None], *, begins: bool) -> None:
    """Finish the run that is open, then begin others for ever, or none."""
    async with delegating(GatewayConfig(home=home)) as delegator:
        ready()
        while True:
            try:
                delegation = _next(delegator, begins=begins)
            except RequestInProgress:
                await asyncio.sleep(_WAIT_FOR_TURN_S)
                continue
            if delegation is None:
                return
            async for _ in delegation.events():
                pass


def _next(delegator: Delegator, *, begins: bool) -> Delegation | None:
    newest = next(iter(delegator.journal.recent(1)), None)
    if newest is not None and newest.state == "running":
        return delegator.resume(newest.id)
    if not begins:
        return None
    order = Order(f"the plan with {MODEL}", parse_units(_BUDGET, "budget") or 0, _DEADLINE_S, plan=plan())
    return delegator.begin(order)


def main(arguments: list[str]) -> None:
    """Kill, and finish what is left."""
    home, kills, seed, timeout_s = arguments
    killed = kill_again_and_again(
        lambda ready: asyncio.run(_carry_out_runs(home, ready, begins=True)),
        int(kills),
        at_once=1,
        seed=int(seed),
        life_s_max=_LIFE_S_MAX,
        timeout_s=float(timeout_s),
    )
    asyncio.run(_carry_out_runs(home, lambda: None, begins=False))
    print(killed)


if __name__ == "__main__":
    main(sys.argv[1:])

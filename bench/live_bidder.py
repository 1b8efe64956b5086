"""What each policy brings with real sellers and real payments: `python -m bench live_bidder`.

All policies meet the same sellers at the same time, each through a gateway of its own, with the same tasks in the same
order: the calls of one are the crowd of the others. Sellers raise their prices with load, have service classes, and
one of them becomes slower half-way. Utility is what answers in time were worth, less what was paid.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from bench.gates import Gate, gate_lines, gates_met
from bench.live_town import MODEL, TOKENS_PER_WORK, Gateway, Town, open_town
from bench.machine import this_machine
from buyer.budgets import budget_units
from buyer.home import Home
from buyer.limits import RECEIPTS_MAX
from buyer.pool import Pool
from contracts.console import print_document
from gateway.bidder.events import EventLog
from gateway.bidder.opening import events_url

__all__ = ["main"]

POLICIES = ("cheapest", "fastest", "ewma", "rule", "linucb", "auto")
DEFAULT = "auto"
# Tasks of all policies together, each second: at this rate the sellers have work three quarters of the time.
TASKS_PER_S = 9.0
TASKS, TASKS_QUICK = 500, 12
# One unit of work takes about so long; patience is counted in it, as in the simulated market.
SECOND_S = 0.6
VALUE_UNIT = 0.0011
_PRIORITIES = ("urgent", "normal", "background")
_SETTLED_TIMEOUT_S = 180.0
_LOGGED_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Task:
    """One call: its work, when it must be answered, what that is worth in tokens, and how urgent it is."""

    number: int
    work: float
    slack_s: float
    value: float
    priority: str


@dataclass(slots=True)
class Row:
    """What one policy did. Money in tokens; `share` is each seller's part of the paid calls."""

    tasks: int = 0
    good: int = 0
    late: int = 0
    failed: int = 0
    skipped: int = 0
    worth: float = 0.0
    paid: float = 0.0
    log_paid: float = 0.0
    open: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    decided_by: dict[str, int] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)

    @property
    def utility(self) -> float:
        """What came of it all, less what it cost."""
        return self.worth - self.paid

    @property
    def per_money(self) -> float:
        """Utility for each token that was paid."""
        return self.utility / self.paid if self.paid else 0.0


def tasks_of(seed: int, count: int) -> list[Task]:
    """Return tasks as the simulated market draws them, in real seconds and real money."""
    random = Random(seed)
    tasks = []
    for number in range(count):
        work = min(max(random.lognormvariate(0.0, 0.6), 0.15), 8.0)
        priority = random.choices((0, 1, 2), weights=(0.2, 0.5, 0.3))[0]
        slack = work * random.uniform(1.5, 6) * (0.8, 1.3, 6)[priority] + 1.0
        value = work * (6.0, 3.5, 1.8)[priority] * random.lognormvariate(0.0, 0.35)
        tasks.append(Task(number, work, slack * SECOND_S, value * VALUE_UNIT, _PRIORITIES[priority]))
    return tasks


async def play(town: Town, tasks: Sequence[Task], seed: int) -> dict[str, Row]:
    """Send every task to every gateway, at random moments, and return what clients saw of it."""
    rows = {policy: Row() for policy in town.gateways}
    mean_pause_s = len(town.gateways) / TASKS_PER_S
    done = 0

    async def send_all(gateway: Gateway, client: httpx.AsyncClient) -> None:
        nonlocal done
        random = Random(f"{seed} {gateway.policy}")
        async with asyncio.TaskGroup() as calls:
            for task in tasks:
                await asyncio.sleep(random.expovariate(1 / mean_pause_s))
                calls.create_task(_call(client, gateway, task, rows[gateway.policy]))
                done += 1
                if done == len(tasks) * len(town.gateways) // 2:
                    town.degrade()

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None), trust_env=False) as client:
        await asyncio.gather(*(send_all(gateway, client) for gateway in town.gateways.values()))
    return rows


async def _call(client: httpx.AsyncClient, gateway: Gateway, task: Task, row: Row) -> None:
    body = {
        "model": f"paid/{MODEL}",
        "max_tokens": max(1, round(task.work * TOKENS_PER_WORK)),
        "messages": [{"role": "user", "content": f"task {task.number}"}],
    }
    headers = {
        "x-farebox-deadline-ms": str(round(task.slack_s * 1000)),
        "x-farebox-value": f"{task.value:.8f}",
        "x-farebox-priority": task.priority,
    }
    row.tasks += 1
    started = time.perf_counter()
    answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
    took_s = time.perf_counter() - started
    if answer.status_code == 200:
        in_time = took_s <= task.slack_s
        row.good += in_time
        row.late += not in_time
        row.worth += task.value if in_time else 0.0
        return
    code = _code_of(answer)
    if code.startswith("not_worth_it"):
        row.skipped += 1
    else:
        row.failed += 1
        row.failures[code] = row.failures.get(code, 0) + 1


def _code_of(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return str(answer.status_code)


async def _settled(town: Town) -> None:
    """Wait until every seller has collected what it is owed."""
    async with asyncio.timeout(_SETTLED_TIMEOUT_S), httpx.AsyncClient(trust_env=False) as client:
        for url in town.admin_urls:
            while (await client.get(f"{url}/status")).json()["unsettled_atomic"]:  # noqa: ASYNC110 - others settle
                await asyncio.sleep(0.2)


async def _logged(town: Town, rows: dict[str, Row]) -> tuple[int, int]:
    """Return what all receipts and all event logs say was paid. Logs are written beside the calls, and waited for."""
    deadline = time.monotonic() + _LOGGED_TIMEOUT_S
    while True:
        books = [_books(gateway, rows[gateway.policy]) for gateway in town.gateways.values()]
        paid_atomic, logged_atomic = (sum(column) for column in zip(*books, strict=True))
        if paid_atomic == logged_atomic or time.monotonic() > deadline:
            return paid_atomic, logged_atomic
        await asyncio.sleep(0.2)


def _books(gateway: Gateway, row: Row) -> tuple[int, int]:
    """Fill in what a gateway's books say; return what its receipts and its event log say was paid, in atomic units."""
    home = Home.open(gateway.home)
    with Pool.open(home) as pool:
        receipts = pool.receipts(limit=RECEIPTS_MAX)
        asset = next(iter(pool.assets().values()))
    spent = [receipt for receipt in receipts if receipt.state == "spent"]
    row.open = sum(receipt.state in ("unknown", "sent") for receipt in receipts)
    sold = Counter(receipt.purchase.partition("-")[0] for receipt in spent)
    row.share = {name: round(count / len(spent), 3) for name, count in sorted(sold.items())}
    log = EventLog.open(events_url(home))
    events = log.recent(100_000)
    log.close()
    row.decided_by = dict(Counter(event.policy for event in events))
    unit = budget_units(1, asset)
    paid_atomic = sum(receipt.price_atomic for receipt in spent)
    logged_atomic = sum(event.outcome.paid_units for event in events if event.outcome is not None) // unit
    row.paid, row.log_paid = (amount / 10**asset.decimals for amount in (paid_atomic, logged_atomic))
    return paid_atomic, logged_atomic


async def run(tasks: Sequence[Task], seed: int, folder: Path) -> tuple[dict[str, Row], list[Gate]]:
    """Play all tasks in a town of their own; return the rows and the gates."""
    async with open_town(folder, POLICIES, len(tasks) + 20, seed) as town:
        rows = await play(town, tasks, seed)
        await _settled(town)
        paid_atomic, logged_atomic = await _logged(town, rows)
        earned_atomic = town.earned_atomic()
    ours = rows[DEFAULT]
    gates = [
        Gate("utility per token paid, against cheapest first", "at least", 1.0, _ratio(ours, rows["cheapest"])),
        Gate("utility per token paid, against fastest", "at least", 1.0, _ratio(ours, rows["fastest"])),
        Gate("receipts less what the chain shows, atomic units", "at most", 0, abs(paid_atomic - earned_atomic)),
        Gate("event log less what the chain shows, atomic units", "at most", 0, abs(logged_atomic - earned_atomic)),
        Gate("atomic units that moved", "at least", 1, earned_atomic),
    ]
    return rows, gates


def _ratio(ours: Row, other: Row) -> float:
    return ours.per_money / other.per_money if other.per_money > 0 else float("inf")


def main(arguments: Sequence[str]) -> int:
    """Run the bench from the command line and return its exit code: 1 where a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench live_bidder", description=__doc__)
    parser.add_argument("--tasks", type=int, help=f"tasks for each policy ({TASKS})")
    parser.add_argument(
        "--seed-base", "--seed", dest="seed", type=int, default=0, help="what the tasks are drawn from (0)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: its figures mean nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(arguments)
    tasks = tasks_of(options.seed, options.tasks or (TASKS_QUICK if options.quick else TASKS))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="farebox-live-") as folder:
        rows, gates = asyncio.run(run(tasks, options.seed, Path(folder)))
    document: dict[str, Any] = {
        "machine": this_machine(),
        "quick": options.quick,
        "seed": options.seed,
        "tasks": len(tasks),
        "policies": {
            name: {**asdict(row), "utility": row.utility, "utility_per_token": row.per_money}
            for name, row in rows.items()
        },
        "gates": [gate.document() for gate in gates],
        "took_s": round(time.monotonic() - started),
    }
    print_document(document, as_json=options.json, human=lambda: _print(rows, gates, document["took_s"]))
    # Over so few tasks, only the books can be held to account.
    judged = [gate for gate in gates if "utility" not in gate.promise] if options.quick else gates
    return 0 if gates_met(judged) else 1


def _print(rows: dict[str, Row], gates: Sequence[Gate], took_s: Any) -> None:
    print(f"{'policy':<10}{'tasks':>7}{'good':>7}{'late':>7}{'failed':>8}{'skipped':>9}{'paid':>10}{'utility':>10}"
          f"{'per token':>11}   sellers")  # fmt: skip
    for name, row in sorted(rows.items(), key=lambda each: -each[1].per_money):
        shares = ", ".join(f"{seller} {share:.0%}" for seller, share in row.share.items())
        print(
            f"{name:<10}{row.tasks:>7}{row.good / row.tasks:>7.0%}{row.late / row.tasks:>7.0%}"
            f"{row.failed / row.tasks:>8.0%}{row.skipped / row.tasks:>9.0%}{row.paid:>10.4f}{row.utility:>10.4f}"
            f"{row.per_money:>11.2f}   {shares}"
        )
    print()
    print("\n".join(gate_lines(gates)))
    print(f"\n{took_s} s")

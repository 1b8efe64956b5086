"""What routing, running at once and bidding bring to a delegated task, on the live stack: `python -m bench live_dag`.

The same graphs are carried out in every combination of {one route, routed} x {in sequence, parallel} x {fixed tier,
bidder}, besides a premium model in sequence, and the whole delegator with its planner. Each way is a `farebox serve` of
its own, and every graph one request of an OpenAI client; sellers and payments are real. Only the models are stand-ins,
whose speed is given and whose answers can be checked. Every ratio is of two runs of the same graph; intervals are
bootstrapped over graphs. Chains, where nothing can run at once, stand apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import openai

from bench.gates import Gate, gate_lines, gates_met
from bench.live_arms import PLANNER, PREMIUM, Arm, arms
from bench.live_graphs import SHAPES, Drawn, drawn
from bench.live_market import SELLERS, LiveGateway, LiveMarket, LiveSeller, live_market
from bench.live_tables import Row, record, report, tables
from bench.machine import this_machine
from buyer.budgets import parse_units, shown_units
from buyer.home import Home
from buyer.pool import Pool
from contracts.console import print_document, progress
from gateway.delegator.delegation import journal_url, receipts_in
from gateway.delegator.journal import Journal

__all__ = ["main"]

_SEED = 11
# Graphs that are carried out beside each other; the sellers have slots for all of them, and the machine mostly waits.
_LANES = 3
# What every gateway has bought of each of its sellers before the first graph, like whoever has bought there before.
_KNOWN_CALLS = 6
_KNOWN_TOKENS = 150
_PAYMENTS, _PAYMENTS_A_GRAPH = 50, 16
_DEADLINE_S = 600
_PACE_QUICK = 20.0
_RUNS_MAX = 100_000
_UNITS_PER_ATOMIC = 10**30
_PRICES = {seller.name: parse_units(seller.price, "price") or 0 for seller in SELLERS}


def _open_gateways(market: LiveMarket, graphs: int) -> dict[str, LiveGateway]:
    """Start a gateway for each arm, with payments enough for all graphs at any of its sellers."""
    gateways = {}
    for number, arm in enumerate(arms()):
        home = market.crew.folder / f"home-{number}"
        market.buy(home, arm.sellers, _PAYMENTS + graphs * _PAYMENTS_A_GRAPH)
        gateways[arm.name] = market.start_gateway(f"gateway-{number}", home, arm.settings(market))
    for gateway in gateways.values():
        market.wait_ready(gateway)
    return gateways


async def _measure(gateways: Mapping[str, LiveGateway], graphs: Sequence[Drawn]) -> list[Row]:
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(_client_of(gateway)) for name, gateway in gateways.items()}
        await asyncio.gather(*(_get_to_know(clients[arm.name], seller) for arm in arms() for seller in arm.sellers))
        rows: list[Row] = []
        waiting = list(reversed(graphs))

        async def lane() -> None:
            while waiting:
                graph = waiting.pop()
                # Another order for each graph: what drifts in the machine or the market meets all arms alike.
                order = Random(f"{graph.shape}{graph.number}").sample(arms(), len(arms()))
                rows.extend([await _carry_out(clients[arm.name], arm, graph) for arm in order])
                progress(f"{graph.shape} {graph.number}: {len(graph.plan.nodes)} nodes, {len(rows)} runs")

        await asyncio.gather(*(lane() for _ in range(_LANES)))
    return rows


def _client_of(gateway: LiveGateway) -> openai.AsyncOpenAI:
    http = openai.DefaultAsyncHttpxClient(trust_env=False, timeout=2 * _DEADLINE_S)
    # What a client repeats by itself would be another run without a row.
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", http_client=http, max_retries=0)


async def _get_to_know(client: openai.AsyncOpenAI, seller: LiveSeller) -> None:
    for number in range(_KNOWN_CALLS):
        await client.chat.completions.create(
            model=f"paid/{seller.model}",
            messages=[{"role": "user", "content": f"Task: add {number}"}],
            max_tokens=_KNOWN_TOKENS,
            extra_headers={"x-farebox-seller": seller.name},
        )


async def _carry_out(client: openai.AsyncOpenAI, arm: Arm, graph: Drawn) -> Row:
    """Hand a graph over as any client does, and read the stream to its end."""
    # As much as the standard model costs for all of it, in every arm but the one that costs more by its nature.
    price_units = _PRICES["large-fast" if arm.name == PREMIUM else "large-standard"]
    budget_units = price_units * (len(graph.plan.nodes) + (1 if arm.plans else 0))
    task = f"{graph.shape} {graph.number}\n```plan\n{graph.plan.model_dump_json()}\n```"
    limits = {"budget": shown_units(budget_units), "deadline_s": str(_DEADLINE_S), "soonest": "true", "gate": "false"}
    started = time.perf_counter()
    stream = await client.chat.completions.create(
        model=f"delegate/{PLANNER}",
        messages=[{"role": "user", "content": task}],
        metadata=limits,
        stream=True,
        extra_body={} if arm.plans else {"plan": graph.plan.model_dump(mode="json")},
    )
    text, spent_units = "", 0
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        told: dict[str, Any] = (chunk.model_extra or {}).get("farebox", {})
        spent_units = parse_units(told.get("spent"), "spent") or spent_units
    return Row(
        graph.shape,
        graph.number,
        len(graph.plan.nodes),
        arm.name,
        round(time.perf_counter() - started, 4),
        spent_units // _UNITS_PER_ATOMIC,
        text == graph.answer,
        spent_units <= budget_units,
    )


def _books(market: LiveMarket, homes: Sequence[Path]) -> dict[str, int]:
    """Return what everything cost in atomic units: by the journal of runs, their receipts, the pools, and the chain.

    What was bought to know the market is in no run; its price is added to what the runs cost.
    """
    known_units = _KNOWN_CALLS * sum(_PRICES[seller.name] for arm in arms() for seller in arm.sellers)
    known_atomic = known_units // _UNITS_PER_ATOMIC
    by_journal, by_receipts, by_pool = (sum(each) for each in zip(*(_spent_at(home) for home in homes), strict=True))
    return {
        "journal": by_journal + known_atomic,
        "receipts": by_receipts + known_atomic,
        "pools": by_pool,
        "chain": market.earned_atomic(),
    }


def _spent_at(path: Path) -> tuple[int, int, int]:
    """Return what was spent by the journal of a home's runs, by their receipts, and by its pool, in atomic units."""
    home = Home.open(path)
    journal = Journal.open(journal_url(home))
    try:
        runs = [journal.find(known.id) for known in journal.recent(_RUNS_MAX)]
    finally:
        journal.close()
    with Pool.open(home) as pool:
        receipts = [receipt for run in runs for receipt in receipts_in(pool, run).values()]
        purchases = [(purchase.offer.amount_atomic, pool.counts(purchase.name)) for purchase in pool.purchases()]
    return (
        sum(attempt.paid_units or 0 for run in runs for attempt in run.attempts) // _UNITS_PER_ATOMIC,
        sum(receipt.price_atomic for receipt in receipts),
        sum(price_atomic * (counts.spent + counts.unknown) for price_atomic, counts in purchases),
    )


def _gates(rows: Sequence[Row], books: Mapping[str, int]) -> list[Gate]:
    spread = max(books.values()) - min(books.values())
    return [
        Gate("atomic units between journal, receipts, pools and chain", "at most", 0, spread),
        Gate("runs over their budget", "at most", 0, sum(not row.within_budget for row in rows)),
        Gate("share of right answers", "at least", 1.0, fmean(row.right for row in rows)),
    ]


def main(arguments: list[str]) -> int:
    """Run the experiment and return the exit code: 1 where books, budgets or answers are wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench live_dag", description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", type=int, default=8, help="graphs of each shape (default: 8)")
    parser.add_argument("--seed-base", type=int, default=_SEED, help="the seed of the graphs")
    parser.add_argument(
        "--quick", action="store_true", help="one graph a shape: a smoke test, its figures mean nothing"
    )
    parser.add_argument("--page", action="store_true", help="publish rows and tables in docs/delegation.md, docs/data")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of tables")
    options = parser.parse_args(arguments)
    if options.quick and options.page:
        parser.error("--page: the figures of --quick mean nothing")
    count = 1 if options.quick else options.graphs
    graphs = [drawn(shape, number, options.seed_base) for number in range(count) for shape in SHAPES]
    machine, started = this_machine(), time.monotonic()
    pace = _PACE_QUICK if options.quick else 1.0
    with live_market([replace(seller, pace=seller.pace * pace) for seller in SELLERS]) as market:
        rows = asyncio.run(_measure(gateways := _open_gateways(market, len(graphs)), graphs))
        books = _books(market, [gateway.home for gateway in gateways.values()])
    facts = {
        "machine": machine,
        "load_after": round(os.getloadavg()[0], 2),
        "took_s": round(time.monotonic() - started),
        "seed": options.seed_base,
        "books": books,
    }
    found, gates = report(rows, options.seed_base), _gates(rows, books)
    if options.page:
        record(rows, facts)
    document = {
        **facts,
        "quick": options.quick,
        "graphs": len(graphs),
        "sellers": [asdict(seller) for seller in SELLERS],
        "report": json.loads(json.dumps(found, default=asdict)),
        "gates": [gate.document() for gate in gates],
    }

    def human() -> None:
        lines = [f"{len(graphs)} graphs, {len(rows)} runs, {facts['took_s']} s; books in atomic units: {books}"]
        sys.stdout.write("\n".join([*lines, *tables(found), "", *gate_lines(gates), ""]))

    print_document(document, as_json=options.json, human=human)
    return 0 if gates_met(gates) else 1

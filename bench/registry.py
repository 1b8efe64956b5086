"""A registry full of spam, read and searched: `python -m bench registry [--registrations N] [--seed-base S] [--json]`.

Registers on a local chain, with the events of real registrations; reads the chain, fetches every file, asks every
seller for its price, checks the proofs; then ten queries. `top_payable` counts the queries whose first result truly is
a live, verified seller of what was asked for: the generator knows, the index does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_abi.abi import encode

from bench.gates import Gate
from bench.machine import this_machine
from bench.registry_town import QUERIES, Entry, town
from bench.registry_web import web_of
from contracts.address import address_text
from contracts.console import print_document, progress
from contracts.erc8004 import TEST_NETWORKS, selector
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.networks import Network
from registry.chains import chain_of
from registry.fetch import Fetcher
from registry.gather import gather
from registry.guard import NetworkPolicy
from registry.index import Index, open_index
from registry.search import Query, Result, search
from registry.survey import survey
from registry.sync import sync_chain

__all__ = ["main", "measure"]

REGISTRATIONS = 20_000
SEARCH_MS_MAX = 35.0
_REPEATS = 7
# Registrations in one transaction, and the room a block needs for them.
_BATCH = 500
_BLOCK_GAS = 2**40
_BATCH_GAS = 2**32
_MINED_POLL_S = 0.05
_REGISTER_MANY = selector("registerMany(address[],string[])")


@dataclass(frozen=True, slots=True)
class Found:
    """The first result of a query, and how long the whole search took."""

    query: str
    first: Result | None
    is_payable: bool
    took_ms: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and print its one document. Return 0 when every figure is within its target."""
    parser = argparse.ArgumentParser(prog="python -m bench registry", description=__doc__)
    parser.add_argument("--registrations", type=int, default=REGISTRATIONS, metavar="N", help="how many [20000]")
    parser.add_argument("--seed-base", type=int, default=1, metavar="S", help="another town [1]")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    options = parser.parse_args(arguments)
    if options.registrations < 20 * len(QUERIES):
        parser.error(f"--registrations: expected at least {20 * len(QUERIES)}, so that each query has a seller")
    logging.disable(logging.WARNING)
    document = measure(options.registrations, options.seed_base, say=progress)
    print_document(document, as_json=options.json, human=lambda: print("\n".join(lines(document))))
    return 0 if document["ok"] else 1


def measure(registrations: int, seed: int, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return the bench's document."""
    machine = this_machine()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-bench-")))
        devnet = stack.enter_context(Devnet())
        place_registries(devnet)
        port = stack.enter_context(web_of(registrations, seed, devnet.token))
        entries = town(registrations, seed, port)
        _register(devnet, entries, say)
        index = stack.enter_context(open_index(folder / "registry.db"))
        parts = asyncio.run(_bring_up(index, devnet.rpc_url, say))
        found = [_look_for(index, query, topic, entries) for topic, query in enumerate(QUERIES)]
    searches_ms = [took_ms for each in found for took_ms in each.took_ms]
    search_ms, payable = round(statistics.median(searches_ms), 2), sum(each.is_payable for each in found)
    gates = [
        Gate("a search of the registry, median in ms", "at most", SEARCH_MS_MAX, search_ms),
        Gate("first results that are live, verified sellers of what was asked for", "at least", len(found), payable),
    ]
    return {
        "ok": search_ms <= SEARCH_MS_MAX and payable == len(found) and parts["agents"] == registrations,
        "machine": machine,
        "registrations": registrations,
        "seed_base": seed,
        "useful": sum(entry.kind == "useful" for entry in entries),
        "sync_s": round(parts["chain_s"] + parts["files_s"] + parts["sellers_s"], 2),
        **parts,
        "search_ms_median": search_ms,
        "search_ms_max": round(max(searches_ms), 2),
        "gates": [gate.document() for gate in gates],
        "queries": len(found),
        "top_payable": payable,
        "results": [_result(each) for each in found],
    }


def _register(devnet: Devnet, entries: Sequence[Entry], say: Callable[[str], None]) -> None:
    devnet.rpc("evm_setBlockGasLimit", hex(_BLOCK_GAS))
    to, sender = address_text(TEST_NETWORKS.identity), devnet.accounts[0].address
    started, sent = time.monotonic(), ""
    for start in range(0, len(entries), _BATCH):
        some = entries[start : start + _BATCH]
        values = ([address_text(entry.owner) for entry in some], [entry.uri for entry in some])
        data = "0x" + (_REGISTER_MANY + encode(("address[]", "string[]"), values)).hex()
        # With a limit of our own the node need not run every batch once more to estimate it.
        sent = devnet.rpc("eth_sendTransaction", {"from": sender, "to": to, "data": data, "gas": hex(_BATCH_GAS)})
    while devnet.rpc("eth_getTransactionReceipt", sent) is None:
        time.sleep(_MINED_POLL_S)
    say(f"registered {len(entries):,} agents in {time.monotonic() - started:.1f} s")


async def _bring_up(index: Index, rpc_url: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Do what `farebox discover sync` does, and return how long each part took, in seconds."""
    started = time.monotonic()
    report = await sync_chain(index, chain_of(Network(31337)), [rpc_url])
    after_chain = time.monotonic()
    say(f"read {report.events:,} events in {after_chain - started:.1f} s")
    async with Fetcher(NetworkPolicy(allow_private=True), resolver=_here) as fetcher:
        gathered = await gather(index.database, fetcher, int(time.time()))
        after_files = time.monotonic()
        say(f"looked at {gathered.done:,} files in {after_files - after_chain:.1f} s")
        surveyed = await survey(index.database, fetcher, int(time.time()))
    ended = time.monotonic()
    say(f"asked {surveyed:,} sellers in {ended - after_files:.1f} s")
    return {
        "agents": report.agent_count,
        "events": report.events,
        "files": gathered.done,
        "sellers_asked": surveyed,
        "chain_s": round(after_chain - started, 2),
        "files_s": round(after_files - after_chain, 2),
        "sellers_s": round(ended - after_files, 2),
    }


async def _here(_host: str, _port: int) -> list[str]:
    """Stand in for the name server: every host of the town is this machine."""
    return ["127.0.0.1"]


def _look_for(index: Index, text: str, topic: int, entries: Sequence[Entry]) -> Found:
    query, took_ms = Query(text=text), []
    results: list[Result] = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        results = index.database.read(lambda connection: search(connection, query, int(time.time()), []))
        took_ms.append((time.perf_counter() - started) * 1000)
    first = results[0] if results else None
    is_payable = (
        first is not None
        and (first.state, first.verdict) == ("payable", "verified")
        and entries[first.agent.number].topic == topic
        and first.pay_to == entries[first.agent.number].owner
    )
    return Found(text, first, is_payable, took_ms)


def _result(found: Found) -> dict[str, Any]:
    first = found.first
    return {
        "query": found.query,
        "agent": None if first is None else str(first.agent),
        "state": None if first is None else first.state,
        "verdict": None if first is None else first.verdict,
        "payable": found.is_payable,
        "search_ms": round(statistics.median(found.took_ms), 2),
    }


def lines(document: dict[str, Any]) -> list[str]:
    parts = f"chain {document['chain_s']}, files {document['files_s']}, sellers {document['sellers_s']}"
    longest = f"{document['search_ms_max']} ms at most (target {SEARCH_MS_MAX:.0f})"
    lines = [
        f"{document['registrations']:,} registrations, {document['useful']:,} of them useful",
        f"sync    {document['sync_s']} s ({parts})",
        f"search  {document['search_ms_median']} ms median, {longest}",
        f"first   live, verified and payable in {document['top_payable']} of {document['queries']} queries",
    ]
    for each in document["results"]:
        mark = "ok  " if each["payable"] else "MISS"
        lines.append(f"        {each['search_ms']:7.2f} ms  {mark}  {each['query']}: {each['agent']}")
    return lines

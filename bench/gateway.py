"""`gateway`: one call through a proxy that pays, beside nginx, the LiteLLM proxy and the official SDK's client.

Everything goes over sockets of loopback. The proxy is kept on one core; the other has the clients and the stand-in for
a seller, in one process. CPU time is that of the proxy's whole process tree, read from the kernel's process clocks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import gateway_stacks as stacks
from bench.gateway_stacks import Place, Proxy
from bench.harness import Plan, Samples, Slice, measure, spread
from bench.nginx import NginxMissing
from bench.report import Report, Row, Target, row
from bench.rig import PIECES, Load, Rig, Taken
from bench.tree import cores
from contracts.evm.toolchain import ToolMissing

__all__ = ["run"]

DIRECT = "no proxy"
NGINX = "nginx, one worker"
FAREBOX = "farebox serve"
FAREBOX_2 = "farebox serve, two workers"
FAREBOX_SELL = "farebox serve, from farebox sell"
SDK = "official SDK in a small proxy"
LITELLM = "LiteLLM proxy"
_STACKS: dict[str, Callable[[Place], AbstractContextManager[Proxy]]] = {
    DIRECT: stacks.direct,
    NGINX: stacks.nginx,
    FAREBOX: stacks.farebox,
    FAREBOX_2: partial(stacks.farebox, workers=2),
    FAREBOX_SELL: stacks.farebox_to_farebox,
    SDK: stacks.official_sdk,
    LITELLM: stacks.litellm,
}
# These take half a minute to start, and are left out of a smoke test.
_SLOW = (FAREBOX_SELL, LITELLM)

JSON, FIRST_BYTE, STREAM = "JSON", "first byte", "stream, a piece"
NGINX_TIMES_MAX, LITELLM_TIMES_MIN = 10, 50
STREAM_TIMES_MAX, FIRST_BYTE_MS_MAX = 2.5, 1.0

_CALLERS = 16
_STREAMS, _STREAMS_LITELLM = 20, 2
_PIECES_QUICK = 10
_PLAN = Plan(rounds=7, slice_s=0.5)
_AUTHORIZATIONS, _AUTHORIZATIONS_QUICK = 40_000, 500
# What a proxy still does when its answer has left belongs to the call.
_AFTERWARDS_S = 0.02


def run(plan: Plan) -> Report:
    """Measure the proxies that can run here."""
    plan = plan if plan.quick else _PLAN
    notes = [
        "Stand-in: the seller takes any payment, settles nothing and answers prepared bytes with a valid receipt;",
        f"{FAREBOX_SELL} is measured with a real one. It asks LiteLLM for no payment. Clients wait",
        f"for each answer: {_CALLERS} at once for {JSON}, one for the {FIRST_BYTE}, {_STREAMS} for streams",
        f"({_STREAMS_LITELLM} of LiteLLM), whose percentiles are of pieces, from write to read.",
    ]
    core, others_core = cores()
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder, Rig(others_core) as rig, ExitStack() as life:
        pool_size = _AUTHORIZATIONS_QUICK if plan.quick else _AUTHORIZATIONS
        place = Place(Path(folder), core, others_core, rig.port, pool_size, fetches=not plan.quick)
        proxies: dict[str, Proxy] = {}
        for name, start in _STACKS.items():
            if plan.quick and name in _SLOW:
                notes.append(f"Not measured in a smoke test: {name}.")
                continue
            try:
                proxies[name] = life.enter_context(start(place))
            except (NginxMissing, ToolMissing) as error:
                notes.append(f"Not measured: {name}: {error}.")
        pieces = _PIECES_QUICK if plan.quick else PIECES
        cases = [
            _Case(name, what, proxy, rig, pieces)
            for what in (JSON, FIRST_BYTE, STREAM)
            for name, proxy in proxies.items()
        ]
        samples = measure(cases, plan)
        memory = [
            f"{name} {proxy.tree.memory_bytes() / 2**20:.0f}" for name, proxy in proxies.items() if name != DIRECT
        ]
    notes.append(f"Memory in MiB: {', '.join(memory)}.")
    return Report(
        bench="gateway",
        title="one call through a proxy, over sockets; the proxy on one core",
        rounds=plan.rounds,
        rows=_rows(cases, samples),
        targets=_targets(samples),
        notes=notes,
    )


@dataclass(slots=True)
class _Case:
    """One proxy under one kind of load."""

    proxy_name: str
    what: str
    proxy: Proxy
    rig: Rig
    pieces: int

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"{self.what}: {self.proxy_name}"

    def run(self, count: int) -> Slice:
        """Make `count` calls; of streams always as many as go on at once."""
        load = self._load(count)
        cpu_s = self.proxy.tree.cpu_s()
        taken = self.rig.ask(load)
        time.sleep(_AFTERWARDS_S)
        cpu_s = self.proxy.tree.cpu_s() - cpu_s
        operations = load.count * load.pieces if self.what == STREAM else load.count
        return Slice(operations, cpu_s, taken.wall_s, self._latencies_us(taken))

    def _load(self, count: int) -> Load:
        proxy = self.proxy
        ask = partial(Load, proxy.ports, proxy.path, model=proxy.model, headers=proxy.headers)
        if self.what == JSON:
            return ask("json", count, min(count, _CALLERS))
        if self.what == FIRST_BYTE:
            return ask("stream", count, 1, pieces=1)
        streams = _STREAMS_LITELLM if self.proxy_name == LITELLM else _STREAMS
        return ask("stream", streams, streams, pieces=self.pieces)

    def _latencies_us(self, taken: Taken) -> Sequence[float]:
        return {JSON: taken.calls_us, FIRST_BYTE: taken.first_us, STREAM: taken.lag_us}[self.what]


def _rows(cases: Sequence[_Case], samples: Mapping[str, Samples]) -> list[Row]:
    rows = []
    for case in cases:
        mine, peer = samples[case.name], f"{case.what}: {NGINX}"
        if case.what == FIRST_BYTE or case.proxy_name == DIRECT:
            rows.append(Row(case.name, None, p50_us=mine.latency_us(50), p99_us=mine.latency_us(99)))
        else:
            rows.append(row(case.name, samples, peer if peer in samples else None, rate=case.what == JSON))
    return rows


def _targets(samples: Mapping[str, Samples]) -> list[Target]:
    """Return the promises whose peers were measured."""

    def times(what: str, one: str, other: str) -> list[float] | None:
        first, second = samples.get(f"{what}: {one}"), samples.get(f"{what}: {other}")
        return (
            None
            if first is None or second is None
            else [a / b for a, b in zip(first.cpu_us, second.cpu_us, strict=True)]
        )

    targets = []
    if (ratios := times(JSON, FAREBOX, NGINX)) is not None:
        targets.append(Target(f"{JSON} call, CPU, against nginx", "at most", NGINX_TIMES_MAX, spread(ratios)))
    if (ratios := times(JSON, LITELLM, FAREBOX)) is not None:
        targets.append(
            Target(f"{JSON} call, CPU of the LiteLLM proxy against ours", "at least", LITELLM_TIMES_MIN, spread(ratios))
        )
    if (ratios := times(STREAM, FAREBOX, NGINX)) is not None:
        targets.append(
            Target("paced stream, CPU of a piece, against nginx", "at most", STREAM_TIMES_MAX, spread(ratios))
        )
    later_ms = [
        (_median_us(ours) - _median_us(direct)) / 1000
        for ours, direct in zip(
            samples[f"{FIRST_BYTE}: {FAREBOX}"].slices, samples[f"{FIRST_BYTE}: {DIRECT}"].slices, strict=True
        )
    ]
    targets.append(
        Target(
            "first byte of a stream after that without a proxy", "at most", FIRST_BYTE_MS_MAX, spread(later_ms), "ms"
        )
    )
    return targets


def _median_us(taken: Slice) -> float:
    return spread(taken.latencies_us).median

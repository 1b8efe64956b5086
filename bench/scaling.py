"""The tables of `docs/scaling.md`: what was measured, and what follows from it under assumptions that stand here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.targets import shown
from seller.limits import BATCH_MAX

__all__ = ["BLOCKS", "CHAINS", "Chain"]

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Chain:
    """What a chain's gas is assumed to cost, and how much of it there is. Change these, and the page follows.

    `gas_per_s` is the block's gas limit over the time of a block: all of it, with nobody else on the chain.
    """

    name: str
    gas_price_gwei: float
    coin_usd: float
    gas_per_s: int


CHAINS = (
    Chain("Ethereum", 1.0, 3_000, 45_000_000 // 12),
    Chain("Base", 0.01, 3_000, 240_000_000 // 2),
    Chain("Arbitrum One", 0.01, 3_000, 7_000_000),
    Chain("Polygon PoS", 30.0, 0.25, 45_000_000 // 2),
)
# What a call of an agent may cost, for comparison.
_CALL_USD = 0.001
_DAY_S = 86_400
# What counts as work over sockets, by the beginning of its row.
_WORK = {"seller": "HTTP: ", "gateway": ("JSON: ", "stream")}
# Calls a day: a busy seller, a large one, and everybody.
_CALLS_PER_DAY = (1_000_000, 100_000_000, 10_000_000_000)
_STORES = (1, 4, 16, 64)


def _one_core(results: Results) -> str:
    """Return what a core carries of each kind of work, if it does nothing else: a second over its CPU time."""
    rows = ["| Work | CPU, median | a second, on one core |", "|---|---|---|"]
    for bench, kinds in _WORK.items():
        for row in results[bench]["benches"][0]["rows"] if bench in results else ():
            if row["name"].startswith(kinds) and "farebox" in row["name"].lower() and row["cpu_us"] is not None:
                cpu_us = row["cpu_us"]["median"]
                rows.append(f"| {row['name']} | {shown(cpu_us)} \N{MICRO SIGN}s | {1e6 / cpu_us:,.0f} |")
    return _block(rows)


def _processes(results: Results) -> str:
    """Return what each team of processes did on one store."""
    rows = [
        "| Store | Gateways | claims/s, all together | p99 | Sellers | reservations/s, all together | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["scale"]["sections"]["processes"]:
        claims, reservations = _rate(row["claim_per_s"]), _rate(row["reserve_per_s"])
        claim_ms, reserve_ms = shown(row["claim_p99_ms"], "ms"), shown(row["reserve_p99_ms"], "ms")
        gateways, sellers = row["gateways"] or "", row["sellers"] or ""
        rows.append(
            f"| {row['store']} | {gateways} | {claims} | {claim_ms} | {sellers} | {reservations} | {reserve_ms} |"
        )
    return _block(rows)


def _databases(results: Results) -> str:
    """Return what several PostgreSQL servers carry if they share nothing: a multiple of what one was measured at."""
    measured = [row for row in results["scale"]["sections"]["processes"] if row["store"] == "PostgreSQL"]
    claims = max(row["claim_per_s"] for row in measured if row["sellers"] == 0)
    reservations = max(row["reserve_per_s"] for row in measured if row["gateways"] == 0)
    rows = ["| PostgreSQL servers | claims/s | reservations/s | calls a day | |", "|---|---|---|---|---|"]
    for count in _STORES:
        both = min(claims, reservations) * count
        how = "measured" if count == 1 else "modelled"
        figures = f"{_rate(claims * count)} | {_rate(reservations * count)} | {both * _DAY_S / 1e6:,.0f} million"
        rows.append(f"| {count} | {figures} | {how} |")
    return _block(rows)


def _gas_by_chain(results: Results) -> str:
    """Return what one settlement costs on each chain, by batch size."""
    gas = _gas_by_batch(results)
    heads = " | ".join(f"batch of {batch}" if batch > 1 else "single" for batch in gas)
    rows = [
        f"| | gas price, coin (assumed) | {heads} | share of a ${_CALL_USD} call, batch of {BATCH_MAX} |",
        "|---|---|" + "---|" * (len(gas) + 1),
        "| gas, measured | | " + " | ".join(f"{used:,}" for used in gas.values()) + " | |",
    ]
    for chain in CHAINS:
        gas_usd = chain.gas_price_gwei * 1e-9 * chain.coin_usd
        cells = " | ".join(_usd(used * gas_usd) for used in gas.values())
        assumed = f"{chain.gas_price_gwei:g} gwei, ${chain.coin_usd:,g}"
        rows.append(f"| {chain.name} | {assumed} | {cells} | {gas[BATCH_MAX] * gas_usd / _CALL_USD:,.0%} |")
    return _block(rows)


def _chain_capacity(results: Results) -> str:
    """Return how many settlements a chain could hold, and what share of it each volume of calls would take."""
    gas = _gas_by_batch(results)[BATCH_MAX]
    heads = " | ".join(f"{calls:,} calls a day" for calls in _CALLS_PER_DAY)
    rows = [
        f"| | gas a second (assumed) | settlements/s, the whole chain | {heads} |",
        "|---|---|---|" + "---|" * len(_CALLS_PER_DAY),
    ]
    for chain in CHAINS:
        shares = " | ".join(_share(calls / _DAY_S * gas / chain.gas_per_s) for calls in _CALLS_PER_DAY)
        rows.append(f"| {chain.name} | {chain.gas_per_s / 1e6:,.1f} M | {chain.gas_per_s / gas:,.0f} | {shares} |")
    return _block(rows)


def _gas_by_batch(results: Results) -> dict[int, int]:
    """Return gas of a settlement by batch size, for payers with accounts; it is the same on every store."""
    gas: dict[int, int] = {}
    for row in results["settle"]["rows"]:
        if row["payers"] == "accounts":
            gas.setdefault(row["batch"], row["gas"])
    return gas


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value:.1%}" if value < 1 else f"{shown(value)} times all of it"


def _usd(value: float) -> str:
    return f"${value:.2g}" if value < 1 else f"${value:,.2f}"


def _block(rows: Sequence[str]) -> str:
    return "\n".join(["", *rows, "", ""])


BLOCKS: dict[str, tuple[str, Callable[[Results], str]]] = {
    "one_core": ("gateway", _one_core),
    "processes": ("scale", _processes),
    "databases": ("scale", _databases),
    "gas_by_chain": ("settle", _gas_by_chain),
    "chain_capacity": ("settle", _chain_capacity),
}
"""Blocks by name: the bench each is made of, and how."""

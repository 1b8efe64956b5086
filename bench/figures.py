"""Plots of what the benches found, as SVG on light and on dark ground. The same results give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, StrMethodFormatter

__all__ = ["draw"]


@dataclass(frozen=True, slots=True)
class _Theme:
    """Colours of one ground. `ours` marks Farebox, `series` tells several lines apart."""

    name: str
    ink: str
    faint: str
    ours: str
    peer: str
    series: tuple[str, ...]


_THEMES = (
    _Theme(
        "light", "#1f2328", "#d0d7de", "#0969da", "#818b98", ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989")
    ),
    _Theme("dark", "#e6edf3", "#3d444d", "#58a6ff", "#8b949e", ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba")),
)
_WIDTH_IN, _ROW_IN, _MARGIN_IN = 9.0, 0.3, 0.9
# From so many decades on, an axis names powers of ten alone.
_DECADES_OF_POWERS = 3
_GROWTH_COLUMNS = {
    "pool": ("start_ms", "claim_cpu_us", "list_ms", "receipts_ms", "reconcile_ms"),
    "ledger": ("start_ms", "verify_cpu_us", "look_up_ms", "due_ms", "list_ms"),
}
_GROWTH_TITLES = {"pool": "authorizations in a buyer's pool", "ledger": "payments in a seller's ledger"}


def draw(results: Mapping[str, Mapping[str, Any]], folder: Path) -> list[str]:
    """Write the plots of every bench that has one into `folder`, and return the names of the benches drawn."""
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, result in results.items():
        paint = _painter(name, result)
        if paint is None:
            continue
        for theme in _THEMES:
            _save(paint, theme, folder / f"{name}-{theme.name}.svg")
        drawn.append(name)
    return drawn


def _painter(name: str, result: Mapping[str, Any]) -> Callable[[_Theme], Figure] | None:
    if name == "settle":
        return lambda theme: _settle(result["rows"], theme)
    if name == "scale":
        return lambda theme: _scale(result["sections"], theme)
    if "benches" in result:
        (bench,) = result["benches"]
        return lambda theme: _costs(bench["rows"], theme)
    return None


def _save(paint: Callable[[_Theme], Figure], theme: _Theme, path: Path) -> None:
    style: Any = {
        "svg.hashsalt": "farebox",
        # Text as text: readable by machines, and a tenth of the bytes.
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.faint,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
    }
    with mpl.rc_context(style):
        paint(theme).savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    # The writer ends some lines with blanks.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _figure(rows: int, columns: int = 1, height_in: float | None = None) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(_WIDTH_IN, height_in or _MARGIN_IN + rows * _ROW_IN), layout="constrained")
    return figure, [figure.add_subplot(1, columns, number + 1) for number in range(columns)]


def _costs(rows: Sequence[Mapping[str, Any]], theme: _Theme) -> Figure:
    """Draw one dot a row, on a logarithmic scale: CPU time with its quartiles; wall time where no row has CPU time."""
    counted = [row for row in rows if row["cpu_us"] is not None]
    is_cpu = bool(counted)
    rows = counted or rows
    figure, (axes,) = _figure(len(rows))
    for place, row in enumerate(reversed(rows)):
        colour = theme.ours if "farebox" in row["name"].lower() else theme.peer
        spread = row["cpu_us"] or {"median": row["p50_us"], "low": row["p50_us"], "high": row["p99_us"]}
        middle, low, high = (spread[key] for key in ("median", "low", "high"))
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.4, solid_capstyle="round")
        axes.plot([middle], [place], "o", color=colour, markersize=6)
        axes.annotate(f" {middle:,.4g}", (high, place), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(rows)), [row["name"].strip() for row in reversed(rows)])
    axes.set_xlabel("CPU microseconds, median and quartiles" if is_cpu else "microseconds, median to 99th percentile")
    _finish(axes, "x")
    return figure


def _settle(rows: Sequence[Mapping[str, Any]], theme: _Theme) -> Figure:
    """Draw gas by batch size, and settlements a second by store."""
    figure, (gas, rate) = _figure(0, 2, 3.2)
    accounts = [row for row in rows if row["payers"] == "accounts"]
    stores = list(dict.fromkeys(row["store"] for row in accounts))
    first = [row for row in accounts if row["store"] == stores[0]]
    labels = [f"{row['batch']}" for row in first]
    gas.bar(labels, [row["gas"] for row in first], color=theme.ours, width=0.6)
    for place, row in enumerate(first):
        gas.annotate(f"{row['gas']:,}", (place, row["gas"]), ha="center", va="bottom")
    gas.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    gas.set_xlabel("settlements in one transaction")
    gas.set_ylabel("gas of a settlement")
    for store, colour in zip(stores, theme.series, strict=False):
        theirs = [row for row in accounts if row["store"] == store]
        rate.plot(labels, [row["per_second"] for row in theirs], "o-", color=colour, label=store)
    rate.set_yscale("log")
    rate.set_xlabel("settlements in one transaction")
    rate.set_ylabel("settlements a second")
    rate.legend(frameon=False)
    for axes in (gas, rate):
        _finish(axes, "y")
    return figure


def _scale(sections: Mapping[str, Sequence[Mapping[str, Any]]], theme: _Theme) -> Figure:
    """Draw what each operation costs by the size of the books, both logarithmic: flat lines are flat."""
    figure, columns = _figure(0, 2, 3.6)
    for axes, (section, names) in zip(columns, _GROWTH_COLUMNS.items(), strict=True):
        rows = sections[section]
        for name, colour in zip(names, theme.series, strict=True):
            factor = 1.0 if name.endswith("_us") else 1000.0
            words = name.rsplit("_", 1)[0].replace("_cpu", ", CPU").replace("_", " ")
            axes.plot(
                [row["size"] for row in rows], [row[name] * factor for row in rows], "o-", color=colour, label=words
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(_GROWTH_TITLES[section])
        axes.set_ylabel("microseconds")
        axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=0.8)
        _finish(axes, "both")
    return figure


def _plain_log(axis: Axis) -> None:
    """Put numbers as people write them on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(axis) < _DECADES_OF_POWERS else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def _decades(axis: Axis) -> float:
    low, high = axis.get_view_interval()
    return log10(high / low)


def _finish(axes: Axes, grid: Any) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _plain_log(axis)
    axes.grid(visible=True, axis=grid)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

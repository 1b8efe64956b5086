"""The report as one HTML file: no script, nothing to load, light or dark as the reader's screen is.

Plots are inline SVG by matplotlib, whose few colours are handed to the page's style, so one drawing serves both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from contracts.errors import ConfigInvalid
from gateway.bidder.curves import Curves, frontier
from gateway.bidder.report import Bin, Report, Seller

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["page_of"]

# Stand for colours of the page's style in matplotlib's drawing.
_INK, _GRID = "#010203", "#010204"
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)"}
# Colours that can be read on white and on black, and told apart by most eyes (Okabe and Ito).
_COLOURS = ("#0f7fc4", "#e08a00", "#149e76", "#cf6a9c", "#c4500c", "#5aa9dd", "#9a8f13", "#7d7d7d", "#a86bd1")
_NAMES = {"chosen": "as it was chosen", "rule": "the rule (estimated)", "cheapest": "the cheapest (estimated)"}

_STYLE = """
:root { --ink: #1c2128; --grid: #d5d9df; --paper: #ffffff; --soft: #59636e; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --grid: #39414c; --paper: #14181d; --soft: #9aa4af } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
figure { margin: 2rem 0 } figcaption, .soft { color: var(--soft) } svg { width: 100%; height: auto }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid
  var(--grid) } th:first-child, td:first-child { text-align: left }
"""


def page_of(report: Report, curves: Curves, now_s: float) -> str:
    """Return the whole page. Raises `ConfigInvalid` where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ConfigInvalid("matplotlib is not installed", remedy="pip install 'farebox[bench]'")
    figures = [
        ("What choosing brought, call by call, in tokens", lambda axes: _draw_utility(axes, curves)),
        ("Chances as they were reckoned, and as they came true", lambda axes: _draw_reliability(axes, report)),
        ("Sellers by price and latency; nobody beats those on the line", lambda axes: _draw_frontier(axes, report)),
        ("Who got the calls, in their order", lambda axes: _draw_share(axes, curves)),
    ]
    drawn = "".join(
        f"<figure>{_svg(draw, f'plot{number}', title)}<figcaption>{escape(title)}</figcaption></figure>\n"
        for number, (title, draw) in enumerate(figures)
    )
    made = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Farebox: what choosing brought</title><style>{_STYLE}</style></head>\n<body>"
        f'<h1>What choosing brought</h1><p class="soft">{made}</p>{_summary(report)}\n{drawn}{_table(report.sellers)}'
        '<p class="soft">What another policy would have brought is estimated from the decisions with which it agrees, '
        "each weighed by how improbable it was.</p></body></html>\n"
    )


def _summary(report: Report) -> str:
    if not report.decisions:
        return "<p>No decision has an outcome yet.</p>"
    agreed = ", ".join(f"{count} with {_NAMES[name].partition(' (')[0]}" for name, count in report.agreed_with.items())
    return (
        f"<p>{report.decisions} decisions brought {report.utility:g} for {report.paid:g} paid; {report.good:.0%} were "
        f"good and in time, and {report.explored} were taken to learn from. They agree: {agreed}.</p>"
    )


def _table(sellers: Sequence[Seller]) -> str:
    rows = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{each.calls}</td><td>{each.good:.0%}</td><td>{each.latency_s:.2f} s</td>"
        f"<td>{each.price:.6f}</td><td>{each.paid:.6f}</td></tr>"
        for each in sellers
    )
    head = "".join(f"<th>{name}</th>" for name in ("seller", "calls", "good", "median", "price", "paid"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _draw_utility(axes: Axes, curves: Curves) -> None:
    for name, values in curves.utility.items():
        known = [(count, value) for count, value in zip(curves.calls, values, strict=True) if value is not None]
        style = "-" if name == "chosen" else "--"
        axes.plot([count for count, _ in known], [value for _, value in known], style, label=_NAMES[name])
    axes.set_xlabel("calls")
    axes.set_ylabel("value less price")
    _legend(axes)


def _draw_reliability(axes: Axes, report: Report) -> None:
    bins: Sequence[Bin] = report.reliability
    axes.plot([0, 1], [0, 1], ":", color=_INK, label="exactly right")
    axes.plot([each.estimated for each in bins], [each.realised for each in bins], "o-", label="reckoned")
    for each in bins:
        axes.annotate(str(each.decisions), (each.estimated, each.realised), textcoords="offset points", xytext=(6, -12))
    axes.set_xlabel("chance of a good answer in time, reckoned")
    axes.set_ylabel("came true")
    _legend(axes)


def _draw_frontier(axes: Axes, report: Report) -> None:
    best = frontier(report.sellers)
    axes.plot([each.price for each in best], [each.latency_s for each in best], "-", color=_GRID)
    for number, each in enumerate(report.sellers):
        size = 40 + 400 * each.calls / max(report.decisions, 1)
        axes.scatter([each.price], [each.latency_s], s=size, color=_COLOURS[number % len(_COLOURS)])
        axes.annotate(each.name, (each.price, each.latency_s), textcoords="offset points", xytext=(10, 6))
    axes.set_xlabel("price of a call, in tokens")
    axes.set_ylabel("median latency, seconds")


def _draw_share(axes: Axes, curves: Curves) -> None:
    shares = list(curves.share.values())
    if shares:
        stretches = range(1, len(shares[0]) + 1)
        axes.stackplot(stretches, *shares, labels=list(curves.share), colors=_COLOURS)
        _legend(axes)
    axes.set_xlabel("stretches of equally many calls, oldest first")
    axes.set_ylabel("share of calls")
    axes.set_ylim(0, 1)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=_INK)


def _svg(draw: Callable[[Axes], None], name: str, title: str) -> str:
    """Return a drawing as inline SVG whose ids no other drawing has."""
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.family": "sans-serif",
        "axes.prop_cycle": cycler(color=_COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _GRID,
    }
    with rc_context(settings):
        figure = Figure(figsize=(8, 4), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(visible=True, linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    drawing = written.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'(url\(#|href="#)', rf"\1{name}-", drawing)
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)

"""A run as a picture: when each node was planned to be done and when it was, as SVG. Pure.

Planned and actual times begin where the first call did. Every text is escaped: ids, sellers and plans are strangers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from buyer.budgets import shown_units
from gateway.delegator.journal import Attempt, Run
from gateway.delegator.progress import Planned
from gateway.delegator.schedule import carry_out

__all__ = ["Bar", "bars_of", "gantt_svg"]

_ROW, _LEFT, _WIDTH, _TOP, _RIGHT = 34, 170, 620, 44, 190
_COLORS = ("#2b6cb0", "#2f855a", "#b7791f", "#6b46c1", "#c05621", "#2c7a7b", "#97266d", "#4a5568")
_TICKS = 6
# Letters, 12 pixels high, for which there is room beside the bars.
_LABEL_LENGTH = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """One node: planned and actual span in seconds, None where it was not done."""

    node_id: str
    planned: tuple[float, float] | None
    actual: tuple[float, float] | None
    seller: str
    paid_units: int
    state: str


def bars_of(run: Run, planned: Planned, sellers: Mapping[str, str], now_ms: int) -> Sequence[Bar]:
    """Return a bar for each node of a run, in order of their planned start. `sellers` are by attempt key."""
    by_node: dict[str, list[Attempt]] = {}
    for attempt in run.attempts:
        by_node.setdefault(attempt.node_id, []).append(attempt)
    ids = [node.id for node in planned.plan.nodes]
    first_ms = min((attempt.started_ms for node_id in ids for attempt in by_node.get(node_id, ())), default=now_ms)
    course = carry_out(planned.graph, planned.assignment)
    planned_spans = {ids[span.job]: (span.starts_s, span.ends_s) for span in course.spans}
    bars = []
    for node_id in sorted(ids, key=lambda node_id: planned_spans[node_id]):
        attempts = by_node.get(node_id, [])
        telling, actual = _telling(attempts), None
        if telling is not None:
            ended_ms = telling.ended_ms or now_ms
            actual = (attempts[0].started_ms - first_ms) / 1000, (ended_ms - first_ms) / 1000
        bars.append(
            Bar(
                node_id,
                planned_spans[node_id],
                actual,
                "" if telling is None else sellers.get(telling.key, telling.offer),
                sum(attempt.paid_units or 0 for attempt in attempts),
                "waiting" if telling is None else telling.state,
            )
        )
    return bars


def _telling(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt that tells what became of a node: the first to be answered, else the last to end."""
    answered = [attempt for attempt in attempts if attempt.state == "answered"]
    if answered:
        # A slower seller that was asked too keeps nobody waiting.
        return min(answered, key=lambda attempt: attempt.ended_ms or 0)
    return max(attempts, key=lambda attempt: (attempt.ended_ms is None, attempt.ended_ms), default=None)


def gantt_svg(title: str, bars: Sequence[Bar]) -> str:
    """Return the picture: above the planned span of each node, below the actual one, in its seller's colour."""
    ends = [span[1] for bar in bars for span in (bar.planned, bar.actual) if span is not None]
    longest_s = max([*ends, 0.001])
    height, width = _TOP + len(bars) * _ROW + 40, _LEFT + _WIDTH + _RIGHT
    sellers = sorted({bar.seller for bar in bars if bar.seller})
    colors = {seller: _COLORS[place % len(_COLORS)] for place, seller in enumerate(sellers)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        "<style>text {font-size: 12px}</style>",
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="14" font-weight="bold">{escape(title)}</text>',
        '<text x="8" y="34" fill="#718096">grey: planned; colour: as it was, by seller</text>',
    ]
    for tick in range(_TICKS + 1):
        at_s = longest_s * tick / _TICKS
        x = _LEFT + _WIDTH * tick / _TICKS
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{height - 30}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle" fill="#718096">{at_s:.1f} s</text>')
    for place, bar in enumerate(bars):
        parts += _row(bar, _TOP + place * _ROW, longest_s, colors)
    return "\n".join([*parts, "</svg>", ""])


def _row(bar: Bar, top: float, longest_s: float, colors: Mapping[str, str]) -> list[str]:
    parts = [_label(8, top + 20, bar.node_id)]
    if bar.planned is not None:
        parts.append(_span(bar.planned, top + 5, 8, longest_s, "#cbd5e0"))
    if bar.actual is not None:
        parts.append(_span(bar.actual, top + 15, 12, longest_s, colors.get(bar.seller, "#a0aec0")))
        told = f"{bar.seller} {shown_units(bar.paid_units)}" + ("" if bar.state == "answered" else f" ({bar.state})")
        parts.append(_label(_LEFT + _WIDTH + 10, top + 24, told))
    return parts


def _label(x: int, y: float, text: str) -> str:
    """Return a text cut to the room beside the bars; all of it is shown where the mouse rests."""
    cut = text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
    return f'<text x="{x}" y="{y}" fill="#4a5568"><title>{escape(text)}</title>{escape(cut)}</text>'


def _span(span: tuple[float, float], y: float, height: int, longest_s: float, color: str) -> str:
    x, width = _LEFT + _WIDTH * span[0] / longest_s, _WIDTH * (span[1] - span[0]) / longest_s
    return f'<rect x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}" height="{height}" rx="2" fill="{color}"/>'

"""What a bench found: rows, ratios within a round, and the targets with hit or missed beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.harness import Samples, Spread, spread

__all__ = ["Report", "Row", "Target", "ratio_of", "row"]

Series = Sequence[float]


@dataclass(frozen=True, slots=True)
class Row:
    """One case. Times are microseconds per operation; `ratio` is CPU time over that of `peer` in the same round.

    `cpu_us` is None for what waits more than it works.
    """

    name: str
    cpu_us: Spread | None
    ratio: Spread | None = None
    peer: str | None = None
    per_second: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A promise of the design beside what was measured. `unit` is "x" for a ratio."""

    promise: str
    bound: Literal["at most", "at least"]
    limit: float
    measured: Spread
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Whether the median keeps the promise."""
        return self.measured.median <= self.limit if self.bound == "at most" else self.measured.median >= self.limit


@dataclass(slots=True)
class Report:
    """Everything one bench prints. `notes` say what a row stands for where its name cannot."""

    bench: str
    title: str
    rounds: int
    rows: list[Row]
    targets: list[Target]
    notes: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report as members of a JSON document."""
        document = asdict(self)
        for target, stated in zip(self.targets, document["targets"], strict=True):
            stated["met"] = target.met
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Report:
        """Return the report of which `document` was made."""
        rows = [
            Row(**{**row, "cpu_us": _spread_in(row["cpu_us"]), "ratio": _spread_in(row["ratio"])})
            for row in document["rows"]
        ]
        targets = [
            Target(**{key: value for key, value in stated.items() if key not in ("met", "measured")},
                   measured=Spread(**stated["measured"]))
            for stated in document["targets"]
        ]  # fmt: skip
        return cls(**{**document, "rows": rows, "targets": targets})

    def lines(self) -> list[str]:
        """Return the report as lines of plain text."""
        lines = [f"{self.bench}: {self.title} ({self.rounds} rounds)", "", *self._table(), ""]
        for target in self.targets:
            measured, limit = (f"{_figure(value)} {target.unit}" for value in (target.measured.median, target.limit))
            verdict = "hit   " if target.met else "missed"
            lines.append(f"{verdict}  {target.promise}: {target.bound} {limit}, measured {measured}")
        return [*lines, *self.notes]

    def _table(self) -> list[str]:
        columns: list[tuple[str, Callable[[Row], str]]] = [
            ("", lambda row: row.name),
            ("CPU us", lambda row: "" if row.cpu_us is None else _figure(row.cpu_us.median)),
            (
                "quartiles",
                lambda row: "" if row.cpu_us is None else f"{_figure(row.cpu_us.low)} to {_figure(row.cpu_us.high)}",
            ),
        ]
        if any(row.ratio for row in self.rows):
            columns.append(("ratio", lambda row: f"{_figure(row.ratio.median)} x" if row.ratio else ""))
        if any(row.p50_us is not None for row in self.rows):
            columns.append(("p50 us", lambda row: _optional(row.p50_us)))
            columns.append(("p99 us", lambda row: _optional(row.p99_us)))
        if any(row.per_second is not None for row in self.rows):
            columns.append(("per second", lambda row: "" if row.per_second is None else f"{row.per_second:,.0f}"))
        if any(row.peer for row in self.rows):
            columns.append(("ratio to", lambda row: row.peer or ""))
        cells = [[title for title, _ in columns], *([show(row) for _, show in columns] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        texts = {0, len(columns) - 1} if columns[-1][0] == "ratio to" else {0}
        return [
            "  ".join(
                cell.ljust(width) if number in texts else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]


def row(name: str, samples: Mapping[str, Samples], peer: str | None = None, *, rate: bool = False) -> Row:
    """Return the row of one case, compared with `peer`; with `rate`, also operations per second of wall time."""
    mine = samples[name]
    return Row(
        name=name,
        cpu_us=spread(mine.cpu_us),
        ratio=ratio_of(mine.cpu_us, samples[peer].cpu_us) if peer is not None and peer != name else None,
        peer=peer if peer != name else None,
        per_second=1e6 / spread(mine.wall_us).median if rate else None,
        p50_us=mine.latency_us(50),
        p99_us=mine.latency_us(99),
    )


def ratio_of(values: Series, peers: Series) -> Spread:
    """Return the spread of value over peer, taken within each round."""
    return spread([value / peer for value, peer in zip(values, peers, strict=True)])


def _spread_in(stated: Mapping[str, float] | None) -> Spread | None:
    return None if stated is None else Spread(**stated)


def _figure(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}"


def _optional(value: float | None) -> str:
    return "" if value is None else _figure(value)

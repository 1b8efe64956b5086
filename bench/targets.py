"""The targets of the design, and which promise of which bench answers each: every one has its row, met or missed.

A bench that measures a target words its promise so that `says` finds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["GOALS", "Goal", "Verdict", "judge", "promises_of", "shown"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One target: `says` is a pattern that the promise of `bench` has to match. `unit` is "x" for a ratio."""

    target: str
    bench: str
    says: str
    bound: Literal["at most", "at least"]
    limit: float
    unit: str = "x"


GOALS = (
    Goal("local verify, CPU, against libsecp256k1's recover alone", "verify", r"local verify", "at most", 1.3),
    Goal("paid request, CPU of the middleware, against recover alone", "seller", r"paid request, CPU", "at most", 2.5),
    Goal(
        "paid requests/s, against the official FastAPI middleware",
        "seller",
        r"paid requests/s over HTTP.*FastAPI",
        "at least",
        20,
    ),
    Goal("paid requests/s, against @x402/hono", "seller", r"paid requests/s over HTTP.*hono", "at least", 12),
    Goal("402 answers/s, against the official SDK", "seller", r"402 answers/s over HTTP", "at least", 5),
    Goal("gateway, JSON call, CPU, against nginx proxy_pass", "gateway", r"JSON call.*nginx", "at most", 10),
    Goal("gateway, JSON call, CPU of LiteLLM against ours", "gateway", r"JSON call.*LiteLLM", "at least", 50),
    Goal("gateway, stream, CPU of a paced chunk, against nginx", "gateway", r"paced stream.*nginx", "at most", 2.5),
    Goal("gateway, stream, delay of the first byte", "gateway", r"first byte", "at most", 1.0, "ms"),
    Goal("claim, 50th percentile, amortised", "claims", r"claim.*50th percentile", "at most", 5, "us"),
    Goal(
        "acknowledged claims lost in 1,000 kill -9",
        "claims",
        r"acknowledged claims lost in 1,000 kill",
        "at most",
        0,
        "lost",
    ),
    Goal("pre-sign 1,000, times faster than eth-account", "sign", r"pre-sign 1,000: nonce", "at least", 10),
    Goal("gas per settlement in a batch of 50, against a single one", "settle", r"gas per settlement", "at most", 0.66),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal beside what was measured; None where nothing was."""

    goal: Goal
    measured: float | None

    @property
    def met(self) -> bool:
        """Whether it was measured, and kept."""
        if self.measured is None:
            return False
        return self.measured <= self.goal.limit if self.goal.bound == "at most" else self.measured >= self.goal.limit

    @property
    def word(self) -> str:
        """Return met, missed, or not measured."""
        return "not measured" if self.measured is None else "met" if self.met else "missed"

    @property
    def of_limit(self) -> float | None:
        """What was measured, as a multiple of the limit."""
        return self.measured / self.goal.limit if self.measured is not None and self.goal.limit else None


def promises_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the promises in the document of one bench: promise, bound, limit, unit, measured, met."""
    found = []
    for bench in result.get("benches", [result]):
        for stated in (*bench.get("targets", ()), *bench.get("gates", ())):
            measured = stated["measured"]
            median = measured["median"] if isinstance(measured, Mapping) else measured
            found.append({"unit": "", **stated, "measured": median})
    return found


def judge(results: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """Return the verdict on every goal, from the documents of the benches by name."""
    return [Verdict(goal, _measured(goal, promises_of(results.get(goal.bench, {})))) for goal in GOALS]


def _measured(goal: Goal, promises: Sequence[Mapping[str, Any]]) -> float | None:
    for stated in promises:
        if re.search(goal.says, stated["promise"]):
            assert (stated["bound"], stated["limit"]) == (goal.bound, goal.limit), (
                f"{goal.bench} measures another limit"
            )
            return float(stated["measured"])
    return None


def shown(value: float | None, unit: str = "") -> str:
    """Return a figure as text: three digits where they mean something."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{f' {unit}' if unit else ''}"

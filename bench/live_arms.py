"""The ways in which the live experiment carries a graph out, each the settings of a gateway of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.live_market import QUALITY, SELLERS, SLOTS, LiveMarket, LiveSeller

__all__ = ["FACTORS", "PLANNER", "PREMIUM", "STANDARD", "WHOLE", "Arm", "arms"]

PLANNER = "large"
STANDARD, PREMIUM = "one route, in sequence, fixed tier", "premium model, in sequence"
WHOLE = "the whole delegator, its planner included"
FACTORS = {
    "routed, not one route": ("one route", "routed"),
    "parallel, not in sequence": ("in sequence", "parallel"),
    "bidder, not fixed tier": ("fixed tier", "bidder"),
}
"""What each factor is called, and how the names of its two sides differ."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to carry a graph out: which models and sellers there are, and how many calls at once.

    `plans`: its planner is asked and paid for the graph.
    """

    name: str
    models: Sequence[str]
    tier: Sequence[str] | None
    parallel: int
    plans: bool = False

    @property
    def sellers(self) -> Sequence[LiveSeller]:
        """Who may be bought from."""
        return [
            seller
            for seller in SELLERS
            if seller.model in self.models and (self.tier is None or seller.name in self.tier)
        ]

    def settings(self, market: LiveMarket) -> dict[str, Any]:
        """Return what its gateway.yaml says of routing and delegating."""
        # Nothing is explored: a run should show what is known of the market, not what is still to be learnt.
        routing: dict[str, Any] = {"policy": "auto", "explore": False}
        if self.tier is not None:
            routing["sellers"] = [market.origins[name] for name in self.tier]
        models = {model: {"quality": QUALITY[model], "slots": SLOTS} for model in self.models}
        return {
            "routing": {"*": routing},
            "delegate": {"planner": PLANNER, "models": models, "parallel": self.parallel},
        }


def arms() -> list[Arm]:
    """Return the eight combinations, the premium baseline, and the whole delegator."""
    found = []
    for route, models in (("one route", ["large"]), ("routed", ["small", "large"])):
        for order, parallel in (("in sequence", 1), ("parallel", 16)):
            found += [
                Arm(f"{route}, {order}, {tier}", models, sellers, parallel)
                for tier, sellers in (("fixed tier", ["small-standard", "large-standard"]), ("bidder", None))
            ]
    found.append(Arm(PREMIUM, ["large"], ["large-fast"], 1))
    found.append(Arm(WHOLE, ["small", "large"], None, 16, plans=True))
    return found

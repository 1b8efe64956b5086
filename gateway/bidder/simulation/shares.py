"""What a policy gets of a simulated market, as a share of what a chooser gets that knows everything but luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.bidder.simulation.choosers import POLICIES, informed
from gateway.bidder.simulation.market import Array, Result, World, play

__all__ = ["COLD_TASKS", "Share", "play_policy", "share_of", "shares_of_seed"]

COLD_TASKS = 1_000


@dataclass(frozen=True, slots=True)
class Share:
    """One policy in one world: its utility as a share of the informed chooser's, and what it did.

    `cold` is the first 1,000 tasks, `warm` everything after a third.
    """

    cold: float
    warm: float
    all: float
    hit: float
    cost_per_good: float
    skipped: float


def play_policy(world: World, policy: str, seed: int) -> Result:
    """Run a policy past a world."""
    chooser = POLICIES[policy](seed)
    return play(world, chooser.choose, chooser.observe)


def shares_of_seed(seed: int, tasks: int, policies: Sequence[str]) -> dict[str, Share]:
    """Return the share of each policy in one world."""
    world = World(seed, tasks)
    best = play(world, informed(world)).utility
    shares = {}
    for name in policies:
        result = play_policy(world, name, seed)
        assert result.over_cap == 0, f"{name} bought above the cap"
        good = int(result.good.sum())
        shares[name] = Share(
            cold=share_of(result.utility, best, slice(0, COLD_TASKS)),
            warm=share_of(result.utility, best, slice(tasks // 3, None)),
            all=share_of(result.utility, best, slice(None)),
            hit=good / tasks,
            cost_per_good=float(result.paid.sum()) / max(1, good),
            skipped=float((result.bought < 0).mean()),
        )
    return shares


def share_of(utility: Array, best: Array, part: slice) -> float:
    """Return the ratio of two sums over a part of a run."""
    return float(utility[part].sum() / best[part].sum())

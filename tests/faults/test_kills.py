"""The short form of `make test-kill`: a few kills at random moments, one of each settlement policy and more."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from tests.faults.kills import storm
from tests.faults.warm import Warm

KILLS = 6


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_double_nothing(tmp_path: Path, warm: Warm, world: Devnet) -> None:
    tally = storm(tmp_path, warm, world, KILLS, per_town=3)
    assert tally.kills == KILLS
    assert tally.calls == tally.answers.total()
    assert tally.problems == []
    assert tally.selfchecks > KILLS

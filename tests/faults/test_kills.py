"""The short form of `make test-kill`: a few kills at random moments, one of each settlement policy and more."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.evm.devnet import Devnet
from tests.faults.kills import Tally, storm
from tests.stores.servers import own_server
from tests.warm import Warm

KILLS = 6
KILLS_ON_POSTGRES = 3


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing_and_double_nothing(tmp_path: Path, warm: Warm, world: Devnet) -> None:
    check(storm(tmp_path, warm, world, KILLS, per_town=3), KILLS)


@pytest.mark.slow
def test_kills_lose_nothing_and_double_nothing_on_postgresql(tmp_path: Path, warm: Warm, world: Devnet) -> None:
    with own_server() as server:
        server.wait_settled()
        check(storm(tmp_path, warm, world, KILLS_ON_POSTGRES, new_store=server.new_database), KILLS_ON_POSTGRES)


def check(tally: Tally, kills: int) -> None:
    assert tally.kills == kills
    assert tally.calls == tally.answers.total()
    assert tally.problems == []
    assert tally.selfchecks > kills

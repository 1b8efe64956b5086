"""The live market plays every task with every policy, and its three books agree."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench import live_bidder, live_town
from tests.warm import Warm
from tests.warm_crew import WarmCrew

TASKS = 3
# The default, and the two that it is compared with.
POLICIES = (live_bidder.DEFAULT, "cheapest", "fastest")


def test_every_task_is_played_and_receipts_log_and_chain_agree(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sellers = tuple(replace(spec, second_s=0.01) for spec in live_town.SELLERS[:2])
    monkeypatch.setattr(live_town, "SELLERS", sellers)
    monkeypatch.setattr(live_town, "Crew", lambda folder, environment: WarmCrew(folder, environment, warm))
    monkeypatch.setattr(live_bidder, "POLICIES", POLICIES)
    code = live_bidder.main(["--tasks", str(TASKS), "--quick", "--json"])
    document = json.loads(capsys.readouterr().out)
    books = [gate for gate in document["gates"] if "utility" not in gate["promise"]]
    assert code == 0, books
    assert len(books) == 3
    assert set(document["policies"]) == set(POLICIES)
    for row in document["policies"].values():
        assert row["good"] + row["late"] + row["failed"] + row["skipped"] == row["tasks"] == TASKS
        assert set(row["share"]) <= {spec.name for spec in sellers}

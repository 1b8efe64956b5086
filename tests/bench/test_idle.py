"""The simulation of idle slots: more of them used, and ordinary calls that hardly notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.idle import GATED, RULES, simulated

REPO = Path(__file__).parents[2]


def test_the_table_has_every_rule_at_every_load_and_gates() -> None:
    command = [sys.executable, "-m", "bench", "idle", "--seeds", "2", "--calls", "400", "--json"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    for by_rule in document["loads"].values():
        assert set(by_rule) == {"no background work", *(rule.name for rule in RULES)}
        assert by_rule["no background work"]["p95"] == 1
        assert all(by_rule[rule.name]["gained"] > 0 for rule in RULES)
    assert len(document["gates"]) == 2


def test_short_chunks_and_a_free_slot_are_what_spares_ordinary_calls() -> None:
    alone = simulated(0.6, None, 1, 4_000)
    greedy, gated, stopped = (simulated(0.6, rule, 1, 4_000) for rule in (RULES[0], GATED, RULES[-1]))
    assert alone.useful < gated.useful < greedy.useful
    assert alone.mean <= stopped.mean <= gated.mean < greedy.mean
    assert stopped.stopped > 0

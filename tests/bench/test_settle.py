"""The settlement bench runs to its end, on both stores, and a batch saves the gas that the design says it saves."""

from __future__ import annotations

import json

import pytest

from bench.settle import main


@pytest.mark.timeout(400)
def test_a_batch_of_fifty_costs_two_thirds_of_single_settlements_on_either_store(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {(row["store"], row["payers"], row["batch"]): row for row in document["rows"]}
    for store in ("SQLite", "PostgreSQL"):
        gas = [rows[store, "accounts", batch]["gas"] for batch in (1, 10, 50)]
        assert gas == sorted(gas, reverse=True)
        assert 21_000 < gas[2] < 0.66 * gas[0]
        # A contract wallet's signature is checked by its own code, which goes alone.
        assert gas[0] < rows[store, "AgentWallets", 1]["gas"] < 95_000
    (gate,) = document["gates"]
    assert (gate["bound"], gate["limit"], gate["met"]) == ("at most", 0.66, True)

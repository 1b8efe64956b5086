"""Gas is what receipts say, and stays within what the design allows: figures of a chain, not of this machine."""

from __future__ import annotations

import json

import pytest

from bench.gas import main


def test_every_gas_target_is_kept_and_every_target_has_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["gas"]}
    targets = {name: row["target"] for name, row in rows.items() if row["target"] is not None}
    assert targets == {
        "EIP-3009 by an AgentWallet": 90_000,
        "Permit2 by an AgentWallet, same word": 88_000,
        "EIP-3009 by accounts, 10 in a Multicall3, each": 43_000,
    }
    for name, target in targets.items():
        assert 21_000 < rows[name]["gas"] <= target

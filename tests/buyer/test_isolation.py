"""What spends cannot sign: not even the code is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import {modules}
loaded = set(sys.modules)
signing = {{
    "buyer.signers", "buyer.key_signer", "buyer.remote_signer", "buyer.transact", "buyer.bounded", "buyer.funds",
    "buyer.presign", "buyer.cancel", "eth_account"
}}
heavy = {{"web3", "litellm", "lightgbm"}}
print(sorted((signing | heavy) & loaded))
"""


@pytest.mark.parametrize("modules", ["buyer.pool, buyer.flow, buyer.spender, buyer.reconcile", "buyer", "buyer.cli"])
def test_spending_loads_no_code_that_signs(modules: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(modules=modules)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == "[]"

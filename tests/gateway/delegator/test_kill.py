"""A run that dies at any of its steps is taken up by another process, and each node is paid for once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.bank import Bank
from contracts.crash import STEPS, VARIABLE
from gateway.delegator.journal import Journal
from tests.gateway.delegator.engines import FORK, Engine

REPO = Path(__file__).parents[3]
RUN = "dies"
DELEGATING = [step for step in STEPS if step.startswith("delegator.")]
CHILD = f"""
import asyncio, pathlib, sys
from bench.bank import Bank
from gateway.delegator.journal import Journal
from tests.gateway.delegator.engines import FORK, Engine

folder = pathlib.Path(sys.argv[1])
journal = Journal.open(f"sqlite:///{{folder}}/runs.db")
asyncio.run(Engine(journal, run_id={RUN!r}).carry_out(FORK, Bank(folder / "bank.db")))
"""


# Its second passage: one call has been through it, one is in the middle, one is to come.
@pytest.mark.parametrize("step", DELEGATING)
async def test_a_run_that_dies_at_a_step_pays_for_each_node_once(step: str, tmp_path: Path) -> None:
    child = subprocess.run(  # noqa: ASYNC221 - nothing else runs here
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=REPO, env={**os.environ, VARIABLE: f"{step}:2"}, check=False
    )
    assert child.returncode == -9
    journal, bank = Journal.open(f"sqlite:///{tmp_path}/runs.db"), Bank(tmp_path / "bank.db")
    try:
        engine = Engine(journal, run_id=RUN)
        left = {attempt.node_id: attempt.state for attempt in engine.run.attempts}
        assert len(left) == 2
        assert "intended" in left.values() or step == "delegator.recorded"
        while engine.run.state == "running":
            await engine.resume(FORK, bank)
        run, payments = engine.run, bank.payments()
    finally:
        bank.close()
        journal.close()
    assert run.state == "done"
    assert {attempt.key for attempt in run.attempts} == payments.keys()
    good = [payment.key for payment in payments.values() if payment.is_good]
    assert len(good) == 3, "one for each node"
    assert sum(attempt.paid_units or 0 for attempt in run.attempts) == sum(
        payment.paid_units for payment in payments.values()
    )

"""Delegated runs in a journal on PostgreSQL: two processes that both want the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.stores.servers import URL_VARIABLE, Server

REPO = Path(__file__).parents[2]


def test_of_two_processes_that_want_a_run_one_has_it_and_kills_make_nobody_pay_twice(postgres: Server) -> None:
    command = [sys.executable, "-m", "bench", "executor", "--store", "postgres", "--kill", "8", "--json"]
    environment = {**os.environ, URL_VARIABLE: postgres.url}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert document["processes"] == 2
    assert [gate for gate in document["gates"] if not gate["met"] and "CPU" not in gate["promise"]] == []
    assert document["books"]["payments"] > 0

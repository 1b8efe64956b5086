"""The options of `farebox demo`, its refusals, and how it ends when it is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx
import pytest

from contracts.evm.toolchain import ToolMissing
from gateway.demo import proxy
from gateway.demo.processes import Crew, farebox_command, wait_until
from tests.e2e.parts import run_demo
from tests.patience import PATIENCE_S


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with Crew(tmp_path, {"FAREBOX_HOME": str(tmp_path)}) as crew:
        yield crew


def refused(*arguments: str) -> tuple[int, dict[str, str]]:
    """Run `farebox demo --json` and return its exit code and error."""
    command = farebox_command("demo", "--json", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    error: dict[str, str] = json.loads(done.stdout)["error"]
    return done.returncode, error


def running_below(folder: str) -> list[int]:
    """Return the processes whose environment or command line names `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.encode() in told and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def read_until(stream: IO[str], pattern: str) -> str:
    """Read lines until one matches; return what the pattern found."""
    told = ""
    for line in stream:
        told += line
        if found := re.search(pattern, line):
            return found[0]
    raise AssertionError(f"no line like {pattern}:\n{told}")


@pytest.mark.slow
def test_the_same_story_is_told_through_the_real_litellm_proxy() -> None:
    document = run_demo("--litellm")
    assert (document["ok"], document["calls"], document["spent"], document["unknown"]) == (True, 5, 5, 0)


def test_a_dead_upstream_is_named_before_anything_starts() -> None:
    code, error = refused("--upstream", "http://127.0.0.1:1")
    assert code == 5
    assert "--upstream: http://127.0.0.1:1/v1/models" in error["message"]


def test_a_model_that_is_neither_minilm_nor_the_users_own_is_refused() -> None:
    code, error = refused("--model", "gpt-6")
    assert code == 2
    assert "--model: expected minilm" in error["message"]


def test_minilm_brings_its_own_server() -> None:
    code, error = refused("--model", "minilm", "--upstream", "http://127.0.0.1:1")
    assert code == 2
    assert "--upstream" in error["message"]


def test_a_missing_litellm_names_the_make_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(proxy, "_REPOSITORY_PROGRAM", tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissing) as missing:
        proxy.litellm_program()
    assert "make setup-litellm" in missing.value.advice


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(farebox_command("demo"), stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        read_until(demo.stdout, "The gateway opens")
        (folder,) = tmp_path.glob("farebox-demo-*")
        assert len(running_below(str(folder))) >= 2
        demo.send_signal(number)
        assert demo.wait(PATIENCE_S) == 130
    # What was killed is waited for, but what its end orphaned is the system's to reap.
    deadline = time.monotonic() + PATIENCE_S
    while left := running_below(str(folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not folder.exists()


def test_a_server_of_the_users_own_is_sold_under_its_first_model_and_keep_leaves_all_running_until_ctrl_c(
    crew: Crew, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gateway.demo.model_server", "--port", "0", "--model", "meta-llama/Tiny:free"]
    server = crew.start("own", command)
    wait_until(lambda: "listening" in server.log_file.read_text(), server, "it did not listen")
    own_url = server.log_file.read_text().split()[-1]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = farebox_command("demo", "--keep", "--upstream", f"{own_url}/v1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        base_url = read_until(demo.stdout, r"(?<=curl )http://127\.0\.0\.1:\d+")
        read_until(demo.stdout, r"print\(client")
        assert httpx.get(f"{own_url}/test/calls").json()["calls"] == 5
        body = {"model": "paid/meta-llama/Tiny:free", "messages": [{"role": "user", "content": "one more"}]}
        answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert httpx.get(f"{own_url}/test/calls").json()["calls"] == 6
        demo.send_signal(signal.SIGINT)
        assert demo.wait(PATIENCE_S) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(base_url)
    assert httpx.get(f"{own_url}/healthz").status_code == 200, "what the user brought is left alone"

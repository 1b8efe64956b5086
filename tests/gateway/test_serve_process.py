"""Goal: `farebox serve` as an operator meets it: start, stop, kill, wrong settings, no wallet anywhere near it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from buyer.home import Home
from buyer.pool import Counts, Pool
from tests.gateway.conftest import Run
from tests.gateway.parts import Listening, RawCall, StandInSeller, sign_pool
from tests.gateway.test_repetition import CHAT, ask, with_id
from tests.patience import PATIENCE_S, eventually

COUNT = 8
FREE = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
SECRETS = {
    "FAREBOX_KEYSTORE_PASSWORD_FILE": "/run/secret-place",
    "FAREBOX_KEYSTORE_PASSWORD": "secret-word",
    "FAREBOX_SIGNER": "keyfile:/secret-path",
}


def command(*arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *options, "-m", "gateway.cli", *arguments]


class Process:
    """A running `farebox serve --json`, and what it announced."""

    def __init__(self, process: subprocess.Popen[str], announced: dict[str, Any], log: Path) -> None:
        self.process, self.log = process, log
        self.url: str = announced["url"].removesuffix("/v1")
        self.admin_url: str = announced["admin_url"]


@contextmanager
def serving(home: Path, *arguments: str, options: tuple[str, ...] = (), **variables: str) -> Iterator[Process]:
    environment = {**os.environ, "FAREBOX_HOME": str(home), **variables}
    log = home.with_name("serve.log")
    program = command("serve", "--json", *(arguments or FREE), options=options)
    with (
        log.open("w") as errors,
        subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            text = ""
            while not text.endswith("}\n"):
                line = process.stdout.readline()
                assert line, log.read_text()
                text += line
            yield Process(process, json.loads(text), log)
        finally:
            process.kill()


@pytest.fixture
def stocked(home: Path, seller_server: Listening) -> Path:
    pool = Pool.open(Home.open(home))
    sign_pool(pool, seller_server.url, COUNT)
    pool.close()
    return home


def counts(home: Path) -> Counts:
    pool = Pool.open(Home.open(home))
    try:
        return pool.counts("chat")
    finally:
        pool.close()


def release(server: Listening) -> None:
    httpx.post(f"{server.url}/test/release/gate")


def test_without_a_file_it_serves_the_home_and_stops_with_everything_given_back(stocked: Path) -> None:
    with serving(stocked) as running:
        assert httpx.post(running.url + CHAT, json=ask("a")).status_code == 200
        assert httpx.get(f"{running.admin_url}/status").json()["purchases"][0]["spent"] == 1
        assert httpx.get(f"{running.url}/status").status_code == 404
        assert "no paid call can be served" not in running.log.read_text()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0
    assert counts(stocked) == Counts(ready=COUNT - 1, spent=1)


def test_a_gateway_with_nothing_to_pay_with_says_so_at_its_start(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as running:
        assert "no paid call can be served: there is no purchase; run `farebox buy`" in running.log.read_text()


def test_a_file_says_where(stocked: Path, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"listen: 127.0.0.1:0\nadmin_listen: 127.0.0.1:0\nhome: {stocked}\n")
    with serving(tmp_path / "elsewhere", "--config", str(file)) as running:
        assert httpx.get(f"{running.url}/readyz").status_code == 200


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_call_in_flight_gets_its_answer_before_the_process_ends(
    stocked: Path, seller: StandInSeller, seller_server: Listening, name: signal.Signals
) -> None:
    with serving(stocked) as running, ThreadPoolExecutor(1) as threads:
        call = threads.submit(httpx.post, running.url + CHAT, json=ask("a", hold="gate"), timeout=PATIENCE_S)
        eventually(lambda: len(seller.presented) == 1, "the call is at the seller")
        running.process.send_signal(name)
        eventually(lambda: not accepts(running.url), "no new connections")
        release(seller_server)
        assert call.result().status_code == 200
        assert running.process.wait(PATIENCE_S) == 0
    assert counts(stocked) == Counts(ready=COUNT - 1, spent=1)


def accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def test_after_kill_9_in_mid_call_the_same_request_presents_the_same_payment(
    stocked: Path, seller: StandInSeller, seller_server: Listening
) -> None:
    body = json.dumps(ask("a", hold="gate")).encode()
    with serving(stocked) as first:
        call = RawCall(first.url, body, with_id("1"))
        eventually(lambda: len(seller.presented) == 1, "the call is at the seller")
        first.process.kill()
        first.process.wait()
        call.leave()
    assert counts(stocked) == Counts(ready=COUNT - 1, unknown=1)
    with serving(stocked) as second, ThreadPoolExecutor(1) as threads:
        again = threads.submit(httpx.post, second.url + CHAT, content=body, headers=with_id("1"), timeout=PATIENCE_S)
        eventually(lambda: len(seller.presented) == 2, "the same request is at the seller")
        release(seller_server)
        assert again.result().status_code == 200
    assert len(set(seller.nonces)) == 1


def test_wallet_variables_are_gone_and_no_signer_is_loaded(stocked: Path) -> None:
    with serving(stocked, options=("-X", "importtime"), **SECRETS) as running:
        assert httpx.post(running.url + CHAT, json=ask("a")).status_code == 200
        environment = Path(f"/proc/{running.process.pid}/environ").read_bytes()
        assert b"FAREBOX_HOME=" in environment
        for secret in (*SECRETS, *SECRETS.values()):
            assert secret.encode() not in environment
    loaded = set(re.findall(r"\| +(\S+)$", running.log.read_text(), re.MULTILINE))
    assert "gateway.desk" in loaded
    assert not {"buyer.signers", "eth_account", "eth_keyfile"} & loaded


def test_an_address_in_use_is_named(stocked: Path, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", "--listen", address, "--admin-listen", "127.0.0.1:0", home=stocked)
    assert done.code == 2
    assert f"listen: {address}: address already in use" in done.err


def test_a_wrong_setting_is_named_with_its_line(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("listen: 127.0.0.1:0\nadmin_listn: 127.0.0.1:0\n")
    done = run("serve", "--config", str(file), "--json", home=tmp_path / "home")
    assert done.code == 2
    error = json.loads(done.out)["error"]
    assert error["code"] == "config_invalid"
    assert "gateway.yaml:2: `admin_listn` is not a setting; did you mean `admin_listen`?" in error["message"]

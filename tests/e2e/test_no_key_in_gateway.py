"""The gateway spends, and holds no key: not in its memory, not in its environment."""

from __future__ import annotations

import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from contracts.evm.devnet import Devnet
from tests.e2e.parts import MODEL, market
from tests.e2e.secret_scan import found_in_process, readable_bytes, spellings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CALLS = 100

HOLDER = """
import base64, sys
secret = bytes.fromhex(sys.argv[1])[::-1]
held = {form}
print("ready", flush=True)
sys.stdin.read()
"""
FORMS = {
    "raw": "bytearray(secret)",
    "raw little-endian": "bytearray(secret[::-1])",
    "hex": "'0x' + secret.hex()",
    "HEX": "secret.hex().upper()",
    "base64": "base64.b64encode(secret)",
    "base64url": "base64.urlsafe_b64encode(secret)",
}


@pytest.mark.slow
def test_after_a_hundred_paid_calls_the_wallet_key_is_nowhere_in_the_gateway(tmp_path: Path, chain: Devnet) -> None:
    with market(tmp_path, chain) as shop:
        shop.start_model_server()
        shop.start_seller()
        shop.buy(CALLS)
        gateway = shop.start_gateway()

        with httpx.Client(timeout=60) as client:

            def call(number: int) -> int:
                messages = [{"role": "user", "content": f"question {number}"}]
                url = f"{shop.gateway_url}/v1/chat/completions"
                return client.post(url, json={"model": f"paid/{MODEL}", "messages": messages}).status_code

            with ThreadPoolExecutor(8) as threads:
                statuses = list(threads.map(call, range(CALLS)))

        assert statuses == [200] * CALLS
        assert shop.counts()["spent"] == CALLS
        pid = gateway.process.pid
        assert readable_bytes(pid) > 10_000_000
        # The scan reads what the gateway certainly holds, so it would have found the key as well.
        assert found_in_process(pid, bytes.fromhex(shop.payee.removeprefix("0x"))) != {}
        assert found_in_process(pid, shop.wallet_key) == {}


@pytest.mark.parametrize("form", list(FORMS))
def test_the_scan_finds_a_planted_secret_in_every_spelling(form: str) -> None:
    secret = secrets.token_bytes(32)
    # The argument is the secret backwards, so that only the planted form itself can be found.
    command = [sys.executable, "-c", HOLDER.format(form=FORMS[form]), secret[::-1].hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        found = found_in_process(holder.pid, secret)
        holder.kill()
    assert form in found
    assert set(spellings(secret)) == set(FORMS)


def test_the_scan_finds_a_secret_in_the_environment() -> None:
    secret = secrets.token_bytes(32)
    environment = {"WALLET_KEY": "0x" + secret.hex()}
    command = [sys.executable, "-I", "-c", "print('ready', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        found = found_in_process(holder.pid, secret)
        holder.kill()
    assert "hex" in found


def test_the_scan_finds_nothing_where_nothing_is() -> None:
    command = [sys.executable, "-c", "print('ready', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        found = found_in_process(holder.pid, secrets.token_bytes(32))
        holder.kill()
    assert found == {}

"""Keys, endpoints with tokens and unspent signatures are in no output, log, metric or process argument (a full run)."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from buyer.home import Home
from buyer.pool import Pool
from contracts.evm.devnet import Devnet
from gateway.demo.processes import farebox_command
from tests.e2e.parts import MODEL, PRICE, PURCHASE, Market, market
from tests.patience import PATIENCE_S
from tests.warm import Warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

RPC_TOKEN = secrets.token_hex(16)
ADMIN_TOKEN = secrets.token_hex(16)


def farebox(warm: Warm, shop: Market, *arguments: str, **variables: str) -> str:
    """Run one command, whatever becomes of it, and return all it wrote."""
    done = warm.run(arguments, shop.crew.folder, environment={**shop.crew.environment, **variables})
    return done.out + done.err


def arguments_of_all_processes() -> bytes:
    found = b""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                found += (folder / "cmdline").read_bytes()
            except OSError:
                continue
    return found


def unspent_signatures(folder: Path) -> list[bytes]:
    with closing(Pool.open(Home.open(folder / "home"))) as pool:
        query = "SELECT signature FROM authorizations WHERE state IN ('ready', 'unknown')"
        return [row["signature"] for row in pool.database.read(lambda it: it.execute(query).fetchall())]


def test_a_full_run_tells_no_secret(tmp_path: Path, chain: Devnet, warm: Warm) -> None:
    with market(tmp_path, chain) as shop:
        with_token = f"{chain.rpc_url}/?apikey={RPC_TOKEN}"
        settings = tmp_path / "seller.yaml"
        settings.write_text(settings.read_text().replace(f'"{chain.rpc_url}"', f'"{with_token}"'))
        shop.crew.environment |= {"FAREBOX_RPC": with_token, "FAREBOX_ADMIN_TOKEN": ADMIN_TOKEN}
        seen, arguments = [], b""
        key = json.loads(farebox(warm, shop, "key", "create", "alice", "--json"))["key"]
        shop.start_model_server()
        seller = shop.crew.start(
            "sell",
            farebox_command(
                "sell", "--config", "seller.yaml", "--admin-listen", shop.seller_admin_url.removeprefix("http://")
            ),
        )
        shop.crew.wait_ready(seller, f"{shop.seller_admin_url}/readyz")
        where = ["--endpoint", shop.seller_url, "--model", MODEL, "--signer", "keyfile:buyer.key", "--yes"]
        seen.append(farebox(warm, shop, "buy", PURCHASE, *where, "--count", "6", "--max-price", PRICE))
        gateway = shop.start_gateway()
        arguments += arguments_of_all_processes()
        body = {"model": f"paid/{MODEL}", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"authorization": f"Bearer {key}"}
        admin = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        with httpx.Client(timeout=PATIENCE_S) as client:
            for failing in ({}, {"metadata": {"x-test-status": "500"}}, {"model": "paid/none"}, {"messages": "x"}):
                answer = client.post(
                    f"{shop.gateway_url}/v1/chat/completions", json={**body, **failing}, headers=headers
                )
                seen.append(answer.text)
            wrong = {"authorization": "Bearer fbx_wrong", "payment-signature": "x"}
            seen.append(client.post(f"{shop.gateway_url}/v1/chat/completions", json=body, headers=wrong).text)
            seen.append(client.post(f"{shop.seller_url}/v1/chat/completions", json=body, headers=wrong).text)
            for url in (shop.gateway_admin_url, shop.seller_admin_url):
                for path in ("/status", "/metrics", "/readyz"):
                    answer = client.get(url + path, headers=admin)
                    assert answer.status_code in (200, 503)
                    seen += [answer.text, client.get(url + path).text]
        for command in (
            ("status", PURCHASE, "--json"),
            ("receipts", "--json"),
            ("key", "list", "--json"),
            ("process", "--all"),
            ("selfcheck", "--seller", "seller.yaml"),
            ("doctor",),
        ):
            seen.append(farebox(warm, shop, *command))
        # An endpoint that is dead is complained about.
        dead = f"http://127.0.0.1:1/{RPC_TOKEN}?apikey={RPC_TOKEN}"
        seen.append(farebox(warm, shop, "balance", FAREBOX_RPC=dead))
        seen.append(farebox(warm, shop, "buy", "other", *where, "--count", "2", "--max-price", PRICE, FAREBOX_RPC=dead))
        arguments += arguments_of_all_processes()
        signatures = unspent_signatures(tmp_path)
        gateway.kill()
        seen += [log.read_text(errors="replace") for log in (tmp_path / "logs").glob("*.log")]
        assert len(signatures) >= 4
        everything = "\n".join(seen).lower().encode() + arguments.lower()
        hidden = {"wallet key": shop.wallet_key.hex(), "gas key": chain.accounts[1].key.hex()}
        hidden |= {"RPC token": RPC_TOKEN, "admin token": ADMIN_TOKEN, "client key": key.lower()}
        hidden |= {f"signature {number}": one.hex() for number, one in enumerate(signatures)}
        hidden |= {
            f"coded signature {number}": base64.b64encode(one).decode().lower() for number, one in enumerate(signatures)
        }
        told = [name for name, text in hidden.items() if text.encode() in everything]
        assert not told
        assert b"0.001 usdc" in everything, "the search looks at what was really said"

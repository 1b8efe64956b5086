"""Goal: the command line answers at once, groups its commands, and checks what a paid call depends on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import gateway.doctor
import seller.advice
from buyer.home import Home
from buyer.pool import Pool
from contracts.address import parse_address
from contracts.evm.devnet import Devnet
from contracts.evm.rpc import Rpc
from contracts.evm.token import Token
from contracts.evm.toolchain import anvil_binary
from contracts.storage import disk
from gateway import devnet as practice
from gateway.cli import app
from gateway.config import GatewayConfig
from gateway.doctor import Check, examine
from tests.faults.rpc_proxy import RpcProxy
from tests.gateway.conftest import Run
from tests.gateway.parts import Listening, StandInSeller, sign_pool
from tests.patience import PATIENCE_S
from tests.processes import farebox_process

EXAMPLE = Path(__file__).parents[2] / "config" / "seller.example.yaml"
PAYEE = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
HEAVY = {"web3", "litellm", "lightgbm", "numpy", "openai", "pydantic", "httpx", "uvicorn"}


@pytest.mark.parametrize(
    "code", ["import seller", "import buyer", "import gateway.cli", "import sys; sys.argv = ['farebox', '--help']\n"]
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str) -> None:
    ask_for_help = "from gateway.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    program = f"{code}\n{ask_for_help if '--help' in code else ''}\nimport sys; print('loaded:', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    loaded = {name.partition(".")[0] for name in done.stdout.partition("loaded:")[2].split()}
    assert {"seller", "buyer", "gateway"} & loaded
    assert not HEAVY & loaded


def test_help_lists_every_command_under_a_heading(tmp_path: Path, run: Run) -> None:
    text = run("--help", home=tmp_path).out
    for heading, commands in {
        "Start here": ["demo", "devnet"],
        "Buy": ["probe", "buy", "process", "list", "status", "balance", "receipts", "refill", "remove", "pay"],
        "Serve agents": ["serve", "litellm"],
        "Sell": ["sell", "settle"],
        "Look after it": ["doctor", "config", "version"],
    }.items():
        section = text[text.index(f"─ {heading} ─") :]
        for command in commands:
            assert f"│ {command} " in section, command


@pytest.mark.parametrize(
    "command", ["serve", "doctor", "config show", "version", "probe", "buy", "sell", "settle", "demo", "litellm config"]
)
def test_every_command_explains_itself_and_takes_json(tmp_path: Path, run: Run, command: str) -> None:
    text = run(*command.split(), "--help", home=tmp_path).out
    assert f"Usage: farebox {command}" in text
    assert "--json" in text


def test_help_breaks_lines_where_the_terminal_does_and_tells_defaults(tmp_path: Path, run: Run) -> None:
    text = run("serve", "--help", home=tmp_path).out
    assert "Ctrl-C or SIGTERM ends it when the calls in flight have their answers." in text
    assert "The model ids it may call. [all]" in run("key", "create", "--help", home=tmp_path).out


@pytest.mark.parametrize("words", ["buy", "pay", "sell", "wallet policy", "discover sync", "delegate run"])
def test_help_cuts_the_name_of_no_option_at_80_columns(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command: Any = typer.main.get_command(app)
    for word in words.split():
        command = command.commands[word]
    text = CliRunner().invoke(app, [*words.split(), "--help"]).output
    declared = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    long_names = {name for name in declared if name.startswith("--")}
    assert long_names
    assert not long_names - set(re.findall(r"--[a-z0-9-]+", text)), text


@pytest.mark.parametrize(
    "command", ["list", "status", "receipts", "key list", "budget list", "delegate list", "background list"]
)
def test_a_new_home_says_that_there_is_nothing_yet(tmp_path: Path, run: Run, command: str) -> None:
    done = run(*command.split(), home=tmp_path / "home")
    assert (done.code, " yet" in done.out) == (0, True), done.out


@pytest.mark.parametrize("command", ["list", "discover search x", "bid policy", "delegate list", "background list"])
def test_a_home_that_is_a_file_is_named_with_what_to_do(tmp_path: Path, run: Run, command: str) -> None:
    home = tmp_path / "home"
    home.touch()
    done = run(*command.split(), home=home)
    assert (done.code, done.out) == (2, "")
    assert f"{home} is not a folder" in done.err
    assert "FAREBOX_HOME" in done.err.splitlines()[-1]


def test_a_limit_on_what_is_not_there_says_so(tmp_path: Path, run: Run) -> None:
    def told(scope: str) -> str:
        return run("budget", "set", scope, "--max-total", "1", home=tmp_path).err

    assert "no purchase is called 'chta' yet" in told("purchase:chta")
    assert "no key is called 'bob' yet" in told("key:bob")
    run("key", "create", "bob", home=tmp_path)
    assert told("key:bob") == ""


def test_a_practice_chain_whose_keys_cannot_be_written_says_where(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    done = run("devnet", "--port", "0", "--dir", str(tmp_path / "file" / "keys"), home=tmp_path)
    assert done.code == 2
    assert f"--dir: {tmp_path}/file/keys/buyer.key: Not a directory" in done.err


def test_a_practice_chain_has_a_token_for_each_way_to_pay_and_a_wallet_with_both(tmp_path: Path) -> None:
    async def held(rpc_url: str, token: str, wallet: str) -> int:
        async with Rpc([rpc_url]) as rpc:
            facts = await Token(rpc, parse_address(token)).payer_facts(parse_address(wallet))
        return facts.balance_atomic

    with farebox_process(tmp_path, "devnet", "--port", "0") as told:
        for token, decimals in (("token", 6), ("plain_token", 18)):
            assert asyncio.run(held(told["rpc"], told[token], told["buyer"]["address"])) == 100 * 10**decimals


def test_a_practice_chain_that_dies_ends_its_command_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anvil, pid = tmp_path / "anvil", tmp_path / "pid"
    anvil.write_text(f'#!/bin/sh\necho $$ > {pid}\nexec {anvil_binary()} "$@"\n')
    anvil.chmod(0o755)
    monkeypatch.setenv("FAREBOX_ANVIL", str(anvil))
    # Once it has told where it runs, its chain dies. Interrupts stay pytest's own.
    monkeypatch.setattr(practice, "print_document", lambda *_, **__: os.kill(int(pid.read_text()), signal.SIGKILL))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        practice.devnet(port=0, folder=tmp_path)
    assert ended.value.code == 1
    assert "anvil ended with code -9" in capsys.readouterr().err


def test_the_version_is_the_installed_one(tmp_path: Path, run: Run) -> None:
    assert run("--version", home=tmp_path).out.strip() == f"farebox {version('farebox')}"
    assert json.loads(run("version", "--json", home=tmp_path).out)["version"] == version("farebox")


def test_a_wrong_word_is_a_usage_error(tmp_path: Path, run: Run) -> None:
    done = run("srve", home=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "No such command 'srve'" in done.err


def test_config_show_tells_value_and_origin(tmp_path: Path, run: Run) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text('max_price: "0.5"\n')
    settings = json.loads(run("config", "show", "--config", str(file), "--json", home=tmp_path / "h").out)["settings"]
    assert settings["max_price"] == {"value": "0.5", "from": str(file)}
    assert settings["home"] == {"value": str(tmp_path / "h"), "from": "FAREBOX_HOME"}
    assert settings["listen"] == {"value": "127.0.0.1:8403", "from": "default"}
    assert "0.5" in run("config", "show", "--config", str(file), home=tmp_path / "h").out


class TestDoctor:
    def test_a_new_home_is_well(self, tmp_path: Path, run: Run, devnet: Devnet) -> None:
        done = run("doctor", "--rpc", devnet.rpc_url, "--json", home=tmp_path / "home")
        document = json.loads(done.out)
        assert (done.code, document["ok"]) == (0, True)
        found = {check["check"]: check["found"] for check in document["checks"]}
        assert "can be written" in found["store"]
        assert any("chain 31337" in text for text in found.values())
        assert "farebox buy" in found["purchases"]

    @pytest.mark.parametrize(("kind", "is_well"), [("virtiofs", True), ("nfs4", False)])
    def test_a_home_that_another_machine_may_have_open_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_well: bool
    ) -> None:
        (tmp_path / "mounts").write_text(f"ours / ext4 rw 0 0\nhost {tmp_path} {kind} rw 0 0\n")
        monkeypatch.setattr(disk, "_MOUNTS", tmp_path / "mounts")
        checks = asyncio.run(examine(GatewayConfig(home=str(tmp_path / "home")), []))
        (check,) = [each for each in checks if kind in each.found]
        assert check.ok is is_well
        assert "PostgreSQL" in (check.advice if is_well else check.fix)

    def test_a_dead_endpoint_and_a_dead_seller_come_with_a_fix(self, tmp_path: Path, run: Run) -> None:
        home = tmp_path / "home"
        pool = Pool.open(Home.open(home))
        sign_pool(pool, "http://127.0.0.1:9", 1)
        pool.close()
        done = run("doctor", "--rpc", "http://127.0.0.1:9", "--json", home=home)
        document = json.loads(done.out)
        assert (done.code, document["ok"]) == (1, False)
        failed = {check["check"]: check for check in document["checks"] if not check["ok"]}
        assert {"chain http://127.0.0.1:9", "purchase chat: seller"} <= set(failed)
        assert all(check["fix"] for check in failed.values())
        assert "FAIL" in run("doctor", home=home).out

    def test_an_endpoint_that_answers_nonsense_is_a_finding(self, tmp_path: Path, run: Run, devnet: Devnet) -> None:
        with RpcProxy(devnet.rpc_url) as node:
            node.inject("eth_chainId", "lie", times=9, lie=lambda *_: None)
            done = run("doctor", "--rpc", node.url, "--json", home=tmp_path / "home")
        (failed,) = [check for check in json.loads(done.out)["checks"] if not check["ok"]]
        assert "eth_chainId" in failed["found"]

    def test_a_seller_with_other_terms_and_a_token_that_is_none_are_found(
        self, tmp_path: Path, run: Run, devnet: Devnet, seller: StandInSeller, seller_server: Listening
    ) -> None:
        home = tmp_path / "home"
        pool = Pool.open(Home.open(home))
        sign_pool(pool, seller_server.url, 1)
        pool.close()
        well = checks_of(run("doctor", "--json", home=home).out)
        assert well["purchase chat: seller"]["ok"]
        assert "0.001 USDC, as pinned" in str(well["purchase chat: seller"]["found"])

        seller.price_atomic = 5000
        ill = checks_of(run("doctor", "--rpc", devnet.rpc_url, "--json", home=home).out)
        assert "0.005 USDC" in str(ill["purchase chat: seller"]["found"])
        assert "farebox probe" in str(ill["purchase chat: seller"]["fix"])
        assert not ill["purchase chat: token and wallet"]["ok"]
        assert "no token contract" in str(ill["purchase chat: token and wallet"]["found"])

    def test_who_relies_on_one_endpoint_alone_is_told_and_passes(
        self, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def advice(*rpc_urls: str) -> dict[str, str]:
            checks = asyncio.run(examine(GatewayConfig(home=str(home)), rpc_urls, settings))
            return {
                check.name: check.advice for check in checks if check.advice and check.name != "seller: gas account"
            }

        home, settings = tmp_path / "home", tmp_path / "seller.yaml"
        with Pool.open(Home.open(home)) as pool:
            sign_pool(pool, "http://127.0.0.1:9", 1)
        text = EXAMPLE.read_text().replace('8545"]', '9"]')
        settings.write_text(text)
        assert advice("http://127.0.0.1:9") == {}

        # As if the practice chain of both were a public one.
        for module in (gateway.doctor, seller.advice):
            monkeypatch.setattr(module, "DEVNET_CHAIN_ID", 1)
        told = advice("http://127.0.0.1:9")
        assert "farebox refill chat" in told["purchase chat: endpoints"]
        assert told["seller: settings"].startswith("rpc: one endpoint alone")

        settings.write_text(text.replace('9"]', '9", "http://127.0.0.1:8"]'))
        assert advice("http://127.0.0.1:9", "http://127.0.0.1:8") == {}

    def test_a_sellers_token_gas_account_and_server_are_looked_at(
        self, tmp_path: Path, run: Run, devnet: Devnet, seller_server: Listening
    ) -> None:
        def looked(text: str) -> dict[str, Check]:
            settings.write_text(text)
            checks = asyncio.run(examine(GatewayConfig(home=str(tmp_path / "home")), [], settings))
            return {check.name.removeprefix("seller: "): check for check in checks if check.name.startswith("seller: ")}

        settings, key = tmp_path / "seller.yaml", tmp_path / "settler.key"
        parts: dict[str, object] = {
            "network": "eip155:31337",
            "rpc": [devnet.rpc_url],
            "upstream": seller_server.url,
            "pay_to": PAYEE,
        }
        parts |= {
            "settler": {"kind": "chain", "key_file": key.name},
            "routes": [{"match": "POST /v1/x", "price": "0.01"}],
        }
        token = {"address": devnet.token, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"}
        well = yaml.safe_dump(parts | {"asset": token})

        assert "farebox settle" in looked(well)["gas account"].advice
        key.write_text(devnet.accounts[1].key.hex())
        key.chmod(0o600)
        found = looked(well)
        assert {name: check.ok for name, check in found.items()} == {
            "token": True,
            "gas account": True,
            "upstream": True,
        }
        assert "settlements at today's gas price" in found["gas account"].found

        assert "network` says 84532" in looked(well.replace("31337", "84532"))["token"].found
        assert (
            "EIP-712 domain" in looked(yaml.safe_dump(parts | {"asset": token | {"name": "USD Coin"}}))["token"].found
        )
        assert not looked(yaml.safe_dump(parts | {"asset": token, "upstream": "http://127.0.0.1:9"}))["upstream"].ok
        key.write_text("11" * 32)
        assert looked(well)["gas account"].fix.startswith("send ether to 0x")

    def test_a_seller_that_could_not_start_fails_with_the_field_to_mend(self, tmp_path: Path, run: Run) -> None:
        settings = tmp_path / "seller.yaml"
        settings.write_text("upstream: 5\n")
        done = run("doctor", "--seller", str(settings), "--json", home=tmp_path / "home")
        assert done.code == 1
        assert "upstream" in str(checks_of(done.out)["seller"]["found"])

    def test_a_store_that_cannot_be_opened_is_the_first_finding(self, tmp_path: Path, run: Run) -> None:
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        (home / "buyer.db").mkdir()
        done = run("doctor", "--json", home=home)
        assert done.code == 1
        assert checks_of(done.out)["store"]["fix"]


def checks_of(text: str) -> dict[str, dict[str, object]]:
    return {check["check"]: check for check in json.loads(text)["checks"]}

"""`farebox register` on a real chain: once is enough, ids come from receipts, a dry run changes nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from gateway.cli import app
from registry.agent_id import parse_agent_id
from registry.documents import read_document
from registry.uri import locate
from tests.registry.ledger_of_agents import IDENTITY, Registrar

OWNER, PAYEE = 4, 5


@dataclass
class Office:
    """A seller's folder, and the wallet that registers it."""

    registrar: Registrar
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "public" / ".well-known" / "agent-registration.json"

    def key(self, account: int) -> str:
        path = self.folder / f"{account}.key"
        path.write_text(self.registrar.devnet.accounts[account].key.hex())
        path.chmod(0o600)
        return f"keyfile:{path}"

    def run(self, *words: str, code: int = 0, owner: int = OWNER) -> Any:
        options = ["--config", str(self.folder / "seller.yaml"), "--json"]
        if words[0] != "well-known":
            options += ["--signer", self.key(owner), "--yes"]
        if words[0] == "ensure":
            options += ["--index", str(self.folder / "index.db")]
        if words[0] in ("ensure", "well-known"):
            options += ["--out", str(self.folder / "public")]
        result = CliRunner().invoke(app, ["register", *words, *options])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def on_chain(self, function: str, number: int, kind: str) -> Any:
        return self.registrar.call(IDENTITY, f"{function}(uint256)", number, returns=(kind,))


@pytest.fixture
def office(chain: Devnet, tmp_path: Path) -> Office:
    place_registries(chain)
    (tmp_path / "seller.yaml").write_text(
        f"""
network: eip155:31337
rpc: ["{chain.rpc_url}"]
public_url: https://shop.example/
pay_to: "{chain.accounts[OWNER].address}"
settle: auto
routes:
  - {{match: "POST /v1/chat/completions", models: {{"coder-7b": "0.001", "writer": "0.002"}}}}
"""
    )
    registrar = Registrar(chain)
    registrar.register(0, "https://somebody-else.example")
    return Office(registrar, tmp_path)


def test_a_seller_is_registered_once_and_its_file_names_the_id_of_the_receipt(office: Office) -> None:
    first = office.run("ensure", "--name", "Shop of models")
    assert first["agent"] == f"eip155:31337:{IDENTITY}/1"
    assert office.on_chain("tokenURI", 1, "string") == "https://shop.example/.well-known/agent-registration.json"
    again = office.run("ensure", "--name", "Shop of models")
    assert (again["agent"], again["changed"], again["transactions"]) == (first["agent"], False, [])
    document = json.loads(office.file.read_bytes())
    assert document["registrations"] == [{"agentId": 1, "agentRegistry": f"eip155:31337:{IDENTITY}"}]
    assert (document["name"], document["x402Support"]) == ("Shop of models", True)


def test_our_own_client_reads_the_file_without_a_warning(office: Office) -> None:
    office.run("ensure", "--description", "Code models by the call")
    read = read_document(office.file.read_bytes())
    assert read.card is not None
    assert read.warnings == ()
    assert [service.endpoint for service in read.card.services] == ["https://shop.example"]
    assert read.card.skills == ("coder-7b", "writer")


def test_a_dry_run_tells_the_cost_and_changes_nothing(office: Office) -> None:
    block = office.registrar.devnet.rpc("eth_blockNumber")
    plan = office.run("ensure", "--dry-run")
    assert plan["agent"] is None
    assert plan["gas_limit"] > 100_000
    assert int(plan["cost_max_wei"]) > 0
    assert office.registrar.devnet.rpc("eth_blockNumber") == block
    assert not office.file.exists()


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_paid(office: Office) -> None:
    (office.folder / "public").write_text("a file, not a folder")
    block = office.registrar.devnet.rpc("eth_blockNumber")
    assert "--out" in office.run("ensure", code=2)["error"]["message"]
    assert office.registrar.devnet.rpc("eth_blockNumber") == block


def test_a_file_on_chain_names_its_own_id_and_costs_more(office: Office) -> None:
    by_reference = office.run("ensure", "--dry-run")
    planned = office.run("ensure", "--inline", "--dry-run")
    inline = office.run("ensure", "--inline")
    assert inline["gas_limit"] > 3 * by_reference["gas_limit"]
    assert inline["gas_limit"] <= planned["gas_limit"] < 1.5 * inline["gas_limit"]
    uri = office.on_chain("tokenURI", 1, "string")
    located = locate(uri)
    assert located.data is not None
    assert json.loads(located.data)["registrations"][0]["agentId"] == 1
    assert office.run("ensure", "--inline")["changed"] is False


def test_a_file_on_chain_is_replaced_when_the_seller_says_something_else_of_itself(office: Office) -> None:
    office.run("ensure", "--inline")
    renamed = office.run("ensure", "--inline", "--name", "Better shop")
    assert (renamed["changed"], renamed["agent"][-2:]) == (True, "/1")
    located = locate(office.on_chain("tokenURI", 1, "string"))
    assert located.data is not None
    assert json.loads(located.data)["name"] == "Better shop"


def test_what_the_settings_say_of_the_seller_stays_without_saying_it_again(office: Office) -> None:
    with (office.folder / "seller.yaml").open("a") as settings:
        settings.write("registration: {name: Corner shop, description: code by the call}\n")
    registered = office.run("ensure", "--inline")
    again = office.run("ensure", "--inline")
    assert (again["changed"], again["uri"]) == (False, registered["uri"])
    office.run("well-known", "1", "--name", "Shop")
    document = json.loads(office.file.read_bytes())
    assert (document["name"], document["description"]) == ("Shop", "code by the call")


def test_a_registration_that_stopped_half_way_is_finished(office: Office) -> None:
    office.registrar.send(OWNER, IDENTITY, "register()")
    done = office.run("ensure")
    assert done["agent"].endswith("/1")
    assert office.on_chain("tokenURI", 1, "string") == done["uri"]
    assert (
        office.registrar.call(IDENTITY, "balanceOf(address)", office.registrar.account(OWNER), returns=("uint256",))
        == 1
    )


def test_a_wallet_with_another_registration_is_asked_what_it_means(office: Office) -> None:
    office.registrar.register(OWNER, "https://old.example/agent.json")
    refused = office.run("ensure", code=2)
    assert refused["error"]["code"] == "already_registered"
    assert "agent 1" in refused["error"]["message"]
    assert office.run("ensure", "--another")["agent"].endswith("/2")


def test_an_agent_that_was_sold_is_not_taken_for_ones_own(office: Office) -> None:
    office.run("ensure")
    office.registrar.transfer(OWNER, 0, 1)
    assert office.run("ensure")["agent"].endswith("/2")


def test_the_uri_is_changed_by_its_owner_and_not_twice(office: Office) -> None:
    office.run("ensure")
    assert office.run("set-uri", "1", "https://new.example/a.json")["changed"] is True
    assert office.on_chain("tokenURI", 1, "string") == "https://new.example/a.json"
    assert office.run("set-uri", "1", "https://new.example/a.json")["changed"] is False
    assert "belongs to" in office.run("set-uri", "0", "https://new.example/a.json", code=2)["error"]["message"]
    assert "there is none" in office.run("set-uri", "9", "https://new.example/a.json", code=2)["error"]["message"]
    assert "expected https://" in office.run("set-uri", "1", "ftp://new.example", code=2)["error"]["message"]


@pytest.mark.parametrize("public_url", ["", "public_url: http://shop.example"])
def test_a_shop_that_buyers_could_not_reach_is_not_registered_on_a_real_chain(office: Office, public_url: str) -> None:
    settings = office.folder / "seller.yaml"
    text = settings.read_text().replace("eip155:31337", "base-sepolia")
    settings.write_text(text.replace("public_url: https://shop.example/", public_url))
    for words in (("ensure",), ("well-known", "1")):
        refused = office.run(*words, code=2)["error"]
        assert "public_url: expected https://" in refused["message"]
    settings.write_text(text)
    refused = office.run("set-uri", "1", "http://shop.example/a.json", code=2)["error"]
    assert "--uri: expected https://" in refused["message"]


def test_a_wallet_becomes_payee_by_its_own_signature(office: Office) -> None:
    office.run("ensure")
    done = office.run("set-wallet", "1", "--wallet", office.key(PAYEE))
    assert done["changed"] is True
    payee = office.registrar.account(PAYEE).lower()
    assert office.on_chain("getAgentWallet", 1, "address") == payee
    assert office.run("set-wallet", "1", "--wallet", office.key(PAYEE))["changed"] is False


def test_a_wallets_proof_lives_minutes_by_the_clock_of_the_chain(office: Office) -> None:
    office.run("ensure")
    office.registrar.devnet.rpc("evm_increaseTime", 86_400)
    office.registrar.devnet.mine()
    sent = office.run("set-wallet", "1", "--wallet", office.key(PAYEE))["transactions"][0]
    call = office.registrar.devnet.rpc("eth_getTransactionByHash", sent)
    deadline_s = int(call["input"][10 + 2 * 64 : 10 + 3 * 64], 16)
    assert 0 < deadline_s - office.registrar.chain_time_s() <= 240


def test_a_payee_that_buyers_would_refuse_is_pointed_out(office: Office) -> None:
    settings = office.folder / "seller.yaml"
    owner, payee = office.registrar.account(OWNER), office.registrar.account(PAYEE)
    settings.write_text(settings.read_text().replace(owner, payee))
    (note,) = office.run("ensure")["notes"]
    assert payee in note
    assert "set-wallet 1" in note
    office.run("set-wallet", "1", "--wallet", office.key(PAYEE))
    assert office.run("ensure")["notes"] == []


def test_the_proof_keeps_the_agents_of_other_chains(office: Office) -> None:
    office.run("ensure")
    office.run("well-known", "84532:7")
    document = json.loads(office.file.read_bytes())
    assert [entry["agentId"] for entry in document["registrations"]] == [1, 7]
    office.run("well-known", "1")
    assert json.loads(office.file.read_bytes()) == document
    assert parse_agent_id(f"{document['registrations'][1]['agentRegistry']}/7")[0] == 84532


def test_a_waiting_transaction_holds_a_second_registration_back(office: Office) -> None:
    office.registrar.devnet.rpc("evm_setAutomine", False)
    try:
        transaction = {"from": office.registrar.account(OWNER), "to": office.registrar.account(0), "value": "0x1"}
        office.registrar.devnet.rpc("eth_sendTransaction", transaction)
        refused = office.run("ensure", code=4)
        assert "waiting to be mined" in refused["error"]["message"]
    finally:
        office.registrar.devnet.mine()
        office.registrar.devnet.rpc("evm_setAutomine", True)

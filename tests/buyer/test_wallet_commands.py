"""`farebox wallet` on a real chain: what the owner sets is what the agent can spend, and nothing is sent unasked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from buyer.wallet_commands import wallet_commands
from contracts.address import address_text, parse_address
from contracts.evm.devnet import Devnet
from contracts.keccak import keccak
from contracts.signature import SigningKey
from tests.contracts.wallets import Wallet, offer_for, pass_days, to_noon

OK, USAGE, NOT_ALLOWED = 0, 2, 4
UNIT = 10_000


@dataclass(frozen=True)
class Desk:
    """An owner at the command line: a key file, a chain, and the wallet once it is there."""

    chain: Devnet
    key_file: Path
    wallet: str = ""

    def run(self, *words: str, signed: bool = True) -> tuple[int, Any]:
        """Run `farebox wallet … --json` and return exit code and document."""
        given = [*words, "--rpc", self.chain.rpc_url, "--json"]
        if signed:
            given += ["--signer", f"keyfile:{self.key_file}"]
        result = CliRunner().invoke(wallet_commands, given)
        assert result.stdout.strip(), result.stderr
        return result.exit_code, json.loads(result.stdout)

    def done(self, *words: str) -> Any:
        """Run a command that must succeed."""
        code, document = self.run(*words, "--yes")
        assert code == OK, document
        return document

    def shown(self, token: str | None = None) -> Any:
        code, document = self.run("show", self.wallet, "--token", token or self.chain.token, signed=False)
        assert code == OK, document
        return document

    def policy(self, *words: str, slots: int = 3, token: str | None = None) -> tuple[str, ...]:
        terms = ("--unit", "0.01", "--slots", str(slots), "--token", token or self.chain.token)
        return ("policy", self.wallet, *terms, *words)

    def agents_wallet(self, rail: str = "eip3009") -> Wallet:
        agent = SigningKey(self.chain.accounts[2].key)
        address, owner = parse_address(self.wallet), self.chain.accounts[1].address
        return Wallet(self.chain, address, owner, agent, offer_for(self.chain, rail))


@pytest.fixture
def desk(chain: Devnet, tmp_path: Path) -> Desk:
    """An owner with a wallet of 100 test dollars and no policy yet."""
    to_noon(chain)
    key_file = tmp_path / "owner.key"
    key_file.write_text(chain.accounts[1].key.hex())
    key_file.chmod(0o600)
    chain.mint(chain.accounts[1].address, 10**9)
    empty = Desk(chain, key_file)
    made = empty.done("create", "--agent", chain.accounts[2].address)
    desk = replace(empty, wallet=made["wallet"])
    desk.done("fund", desk.wallet, "--amount", "100", "--token", chain.token)
    return desk


def test_creating_brings_the_factory_once_and_the_wallet_where_it_was_foretold(desk: Desk) -> None:
    again = desk.done("create", "--agent", desk.chain.accounts[2].address)
    assert (again["wallet"], again["already_done"], again["transactions"]) == (desk.wallet, True, [])
    other = ("create", "--agent", desk.chain.accounts[2].address, "--salt", "second")
    code, foretold = desk.run(*other, "--dry-run")
    assert (code, foretold["dry_run"], foretold["transactions"]) == (OK, True, [])
    assert foretold["wallet"] != desk.wallet
    made = desk.done(*other)
    assert made["wallet"] == foretold["wallet"]
    assert len(made["transactions"]) == 1, "the factory was there"


def test_a_wallet_shows_its_owner_agent_balance_and_that_it_has_no_policy(desk: Desk) -> None:
    shown = desk.shown()
    assert shown["owner"] == desk.chain.accounts[1].address
    assert shown["agent"] == desk.chain.accounts[2].address
    assert shown["balance_atomic"] == str(100 * 10**6)
    assert (shown["policy"]["rail"], shown["policy"]["in_force"]) == ("none", False)


def test_the_agent_spends_what_the_policy_says_and_a_change_waits_for_tomorrow(desk: Desk) -> None:
    desk.done(*desk.policy())
    shown = desk.shown()
    assert shown["policy"]["in_force"]
    assert shown["policy"]["day_cap_atomic"] == shown["spendable_today_at_most_atomic"] == str(3 * UNIT)
    wallet = desk.agents_wallet()
    assert [wallet.pays(wallet.authorization(number)) for number in range(4)] == [True, True, True, False]
    desk.done(*desk.policy(slots=5))
    assert not desk.shown()["policy"]["in_force"]
    assert not wallet.pays(wallet.authorization(4))
    pass_days(desk.chain, 1)
    assert wallet.pays(wallet.authorization(4))


def test_a_token_without_eip3009_is_paid_by_permit2_up_to_its_allowance(desk: Desk) -> None:
    plain = desk.chain.plain_token
    desk.chain.mint(desk.wallet, 10**18, plain)
    terms = ("--rail", "permit2", "--allowance", "0.01")
    desk.done(*desk.policy(*terms, token=plain))
    shown = desk.shown(plain)
    assert shown["permit2_allowance_atomic"] == str(10**16)
    wallet = desk.agents_wallet("permit2")
    assert wallet.pays(wallet.authorization(0, 10**16))
    assert not wallet.pays(wallet.authorization(1, 10**16)), "the allowance is used up"


def test_an_allowance_is_renewed_without_a_day_of_waiting(desk: Desk) -> None:
    plain = desk.chain.plain_token
    desk.chain.mint(desk.wallet, 10**18, plain)
    desk.done(*desk.policy("--rail", "permit2", "--allowance", "0.01", token=plain))
    wallet = desk.agents_wallet("permit2")
    assert wallet.pays(wallet.authorization(0, 10**16))
    assert desk.done(*desk.policy("--rail", "permit2", token=plain))["already_done"]
    renewed = desk.done(*desk.policy("--rail", "permit2", "--allowance", "0.02", token=plain))
    assert len(renewed["transactions"]) == 1
    assert "Permit2 move up to 0.02" in renewed["what"]
    assert desk.shown(plain)["policy"]["in_force"]
    assert wallet.pays(wallet.authorization(1, 10**16))


def test_a_frozen_wallet_pays_nothing_until_it_is_given_an_agent_again(desk: Desk) -> None:
    desk.done(*desk.policy())
    wallet = desk.agents_wallet()
    desk.done("freeze", desk.wallet)
    assert desk.shown()["frozen"]
    assert not wallet.pays(wallet.authorization(0))
    desk.done("freeze", desk.wallet, "--agent", desk.chain.accounts[2].address)
    assert wallet.pays(wallet.authorization(0))


@pytest.mark.parametrize("rail", ["eip3009", "permit2"])
def test_revoked_slots_pay_nothing_and_the_others_do(desk: Desk, rail: str) -> None:
    token = desk.chain.token if rail == "eip3009" else desk.chain.plain_token
    desk.chain.mint(desk.wallet, 10**18, token)
    desk.done(*desk.policy("--rail", rail, "--allowance", "1", slots=300, token=token))
    wallet = desk.agents_wallet(rail)
    revoked = desk.done("revoke", desk.wallet, "--token", token, "--slots", "1-250")
    assert len(revoked["transactions"]) == (3 if rail == "eip3009" else 1), "a token burns slots one by one"
    assert [wallet.pays(wallet.authorization(number)) for number in (0, 1, 250, 251)] == [True, False, False, True]
    tomorrow = desk.done("revoke", desk.wallet, "--token", token, "--slots", "7", "--day", "tomorrow")
    assert "slots 7 to 7" in tomorrow["what"]


@pytest.mark.parametrize(
    ("rail", "slots", "reason"), [("drip", 3, "this token has no slots to revoke"), ("eip3009", 0, "has no slots")]
)
def test_where_there_are_no_slots_none_is_revoked(desk: Desk, rail: str, slots: int, reason: str) -> None:
    desk.done(*desk.policy("--rail", rail, slots=slots))
    code, document = desk.run("revoke", desk.wallet, "--token", desk.chain.token, "--yes")
    assert (code, document["error"]["code"]) == (NOT_ALLOWED, "terms_not_allowed")
    assert reason in document["error"]["message"]


def test_a_stranger_is_told_who_the_owner_is(desk: Desk, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.key"
    stranger.write_text(desk.chain.accounts[7].key.hex())
    stranger.chmod(0o600)
    outside = replace(desk, key_file=stranger)
    for words in (desk.policy(), ("freeze", desk.wallet), ("revoke", desk.wallet, "--token", desk.chain.token)):
        code, document = outside.run(*words, "--yes")
        assert (code, document["error"]["code"]) == (NOT_ALLOWED, "terms_not_allowed")
        assert desk.chain.accounts[1].address in document["error"]["message"]


def test_a_dry_run_and_an_unanswered_question_send_nothing(desk: Desk) -> None:
    code, would = desk.run("freeze", desk.wallet, "--dry-run")
    assert (code, would["dry_run"]) == (OK, True)
    assert int(would["gas_cost_max_wei"]) > 0
    code, refused = desk.run("freeze", desk.wallet)
    assert (code, refused["error"]["code"]) == (USAGE, "usage")
    assert "--yes" in refused["error"]["remedy"]
    assert not desk.shown()["frozen"]


MISTYPED = (
    (("policy", "W", "--token", "T", "--unit", "0.01", "--slots", "3", "--rail", "pigeon"), "--rail"),
    (("policy", "W", "--token", "T", "--unit", "1e3", "--slots", "3"), "--unit"),
    (
        ("policy", "W", "--token", "T", "--unit", "1", "--slots", "3", "--rail", "drip", "--reserve", "1"),
        "--reserve",
    ),
    (("policy", "W", "--token", "PLAIN", "--unit", "1", "--slots", "3"), "EIP-3009"),
    (("revoke", "W", "--token", "T", "--day", "someday"), "--day"),
    (("revoke", "W", "--token", "T", "--slots", "9-3"), "--slots"),
    (("create", "--agent", "0x12"), "--agent"),
    (("create", "--agent", "AGENT", "--forwarder", "NOBODY"), "--forwarder"),
    (("freeze", "0x12"), "WALLET"),
    (("freeze", "NOBODY"), "no AgentWallet"),
    (("fund", "W", "--token", "NOBODY", "--amount", "1"), "--token"),
)


def test_what_is_mistyped_is_named(desk: Desk) -> None:
    desk.done(*desk.policy())
    names = {
        "W": desk.wallet,
        "T": desk.chain.token,
        "PLAIN": desk.chain.plain_token,
        "AGENT": desk.chain.accounts[3].address,
        "NOBODY": "0x" + "ab" * 20,
    }
    for words, named in MISTYPED:
        code, document = desk.run(*(names.get(word, word) for word in words), "--yes")
        assert code != OK, words
        assert named in document["error"]["message"], words


def test_more_than_the_signer_holds_is_not_sent(desk: Desk) -> None:
    code, document = desk.run("fund", desk.wallet, "--amount", "100000", "--token", desk.chain.token, "--yes")
    assert (code, document["error"]["code"]) == (NOT_ALLOWED, "insufficient_balance")


def test_an_owner_without_gas_makes_and_rules_a_wallet_through_a_relay(desk: Desk, tmp_path: Path) -> None:
    owner = SigningKey(keccak(b"an owner without gas"))
    owner_file, relay_file = tmp_path / "poor.key", tmp_path / "relay.key"
    owner_file.write_text(keccak(b"an owner without gas").hex())
    relay_file.write_text(desk.chain.accounts[6].key.hex())
    for file in (owner_file, relay_file):
        file.chmod(0o600)
    relay = ("--relay", f"keyfile:{relay_file}")
    poor = replace(desk, key_file=owner_file)
    made = poor.done("create", "--agent", desk.chain.accounts[2].address, "--forwarder", "own", *relay)
    poor = replace(poor, wallet=made["wallet"])
    desk.chain.mint(poor.wallet, 10 * UNIT)
    code, would = poor.run(*poor.policy("--allowance", "1"), *relay, "--dry-run")
    assert (code, would["dry_run"]) == (OK, True)
    poor.done(*poor.policy("--allowance", "1"), *relay)
    shown = poor.shown()
    assert shown["owner"] == address_text(owner.address)
    assert shown["permit2_allowance_atomic"] == str(10**6)
    wallet = poor.agents_wallet()
    assert wallet.pays(wallet.authorization(0))
    poor.done("revoke", poor.wallet, "--token", desk.chain.token, "--slots", "1", *relay)
    assert not wallet.pays(wallet.authorization(1))
    poor.done("freeze", poor.wallet, *relay)
    assert not wallet.pays(wallet.authorization(2))
    assert int(desk.chain.rpc("eth_getTransactionCount", address_text(owner.address), "latest"), 16) == 0


def test_a_wallet_without_a_forwarder_refuses_a_relay_in_words(desk: Desk) -> None:
    code, document = desk.run("freeze", desk.wallet, "--relay", f"keyfile:{desk.key_file}", "--yes")
    assert (code, document["error"]["code"]) == (NOT_ALLOWED, "terms_not_allowed")
    assert "forwarder" in document["error"]["message"]

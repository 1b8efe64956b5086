"""The commands, against a real chain and a real HTTP seller. `--json` is one document; the exit code tells the kind."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from buyer.cli import commands
from buyer.pool import Counts, Pool
from contracts.address import address_text, parse_address
from contracts.offers import Offer
from tests.buyer.parts import closed_port_url, hanging_up, serving
from tests.buyer.signing_server import SigningServer
from tests.buyer.town import FAILED, OK, OVER_CAP, REFUSED, UNKNOWN, UNREACHABLE, USAGE, Town
from tests.patience import PATIENCE_S


def test_probe_tells_every_option_and_why_some_cannot_be_paid(town: Town) -> None:
    town.shop.offers.append(replace(town.shop.offers[0], scheme="upto"))
    code, document, _ = town.run("probe", town.url, "--model", "m")
    assert code == OK
    first, second = document["options"]
    assert (first["price_atomic"], first["price"], first["payable"]) == ("1000", "0.001 USDC", True)
    assert (second["payable"], second["problem"]["code"]) == (False, "terms_not_allowed")
    words = CliRunner().invoke(commands, ["probe", town.url, "--model", "m"]).stdout
    assert "0.001 USDC on local devnet" in words
    assert "not payable" in words


def test_probing_a_free_or_dead_endpoint_is_exit_5_with_the_reason(town: Town) -> None:
    town.shop.free = True
    code, document, _ = town.run("probe", town.url)
    assert (code, document["error"]["code"]) == (UNREACHABLE, "not_for_sale")
    code, document, _ = town.run("probe", closed_port_url())
    assert (code, document["error"]["code"]) == (UNREACHABLE, "seller_unavailable")


def test_buy_signs_stores_and_says_what_can_be_lost(town: Town) -> None:
    code, document, _ = town.buy()
    assert code == OK
    assert (document["ready"], document["signed"], document["remaining"]) == (5, 5, 5)
    assert (document["worst_case_loss_atomic"], document["worst_case_loss"]) == ("5000", "0.005 USDC")
    assert document["plan"]["worst_case_loss_atomic"] == "5000"
    shown = CliRunner().invoke(commands, ["status", "p"]).stdout
    assert "worst-case loss 0.005 USDC" in shown


def test_the_worst_case_is_printed_before_anybody_is_asked(town: Town) -> None:
    words = ["buy", "p", "--endpoint", town.url, "--model", "m", "--count", "5", "--max-price", "0.001"]
    result = CliRunner().invoke(commands, [*words, *town.wallet])
    assert result.exit_code == USAGE
    assert "worst-case loss  5 x 0.001 USDC = 0.005 USDC" in result.stdout
    assert "--yes" in result.stderr
    with Pool.open(town.home) as pool:
        assert pool.purchases() == []


def test_a_dry_run_signs_nothing(town: Town) -> None:
    code, document, _ = town.buy("--max-price", "0.001", "--dry-run")
    assert (code, document["dry_run"], document["plan"]["count"]) == (OK, True, 5)
    with Pool.open(town.home) as pool:
        assert pool.purchases() == []


def test_a_price_cap_is_mandatory_unless_the_quote_is_accepted(town: Town) -> None:
    code, document, _ = town.buy("--yes")
    assert (code, document["error"]["code"]) == (USAGE, "usage")
    assert "--max-price" in document["error"]["message"]
    code, document, _ = town.buy("--accept-quote", "--yes")
    assert (code, document["price_cap_atomic"]) == (OK, "1000")


def test_a_wallet_that_is_short_is_named_so_that_it_can_be_funded(town: Town) -> None:
    stranger = town.chain.accounts[7]
    town.key_file.write_text(stranger.key.hex())
    address = address_text(parse_address(stranger.address))
    code, document, _ = town.buy()
    assert (code, document["error"]["code"]) == (OVER_CAP, "insufficient_balance")
    assert document["error"]["remedy"] == f"fund {address}, or sign for less"
    town.chain.mint(stranger.address, 4_000)
    assert town.buy()[1]["error"]["remedy"] == f"fund {address}, or sign for less"


def test_a_price_above_the_cap_is_exit_4(town: Town) -> None:
    code, document, _ = town.buy("--max-price", "0.0009", "--yes")
    assert (code, document["error"]["code"]) == (OVER_CAP, "price_above_cap")


@pytest.mark.parametrize(
    ("option", "value"), [("--max-price", "0,001"), ("--network", "nowhere"), ("--asset", "0x12"), ("--tier", "soon")]
)
def test_what_cannot_be_read_is_named_as_it_was_typed(town: Town, option: str, value: str) -> None:
    words = {"--max-price": "0.001"} | {option: value}
    code, document, _ = town.buy(*(part for pair in words.items() for part in pair), "--yes")
    assert code == USAGE
    assert document["error"]["message"].startswith(f"{option}: expected "), document


@pytest.mark.parametrize("ttl", ["5m", "91d", "forever", "0", "-1d"])
def test_a_ttl_out_of_bounds_is_a_usage_error(town: Town, ttl: str) -> None:
    code, document, _ = town.buy("--max-price", "0.001", "--yes", f"--ttl={ttl}")
    assert (code, document["error"]["code"]) == (USAGE, "usage")
    assert "--ttl" in document["error"]["message"]


def test_a_chain_that_is_not_named_is_asked_for(town: Town) -> None:
    words = ["--endpoint", town.url, "--model", "m", "--count", "1", "--max-price", "0.001", "--yes"]
    code, document, _ = town.run("buy", "p", *words, "--signer", f"keyfile:{town.key_file}")
    assert (code, document["error"]["code"]) == (FAILED, "chain_unavailable")
    assert "--rpc" in document["error"]["remedy"]


def test_signer_and_chain_may_come_from_the_environment(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_SIGNER", f"keyfile:{town.key_file}")
    monkeypatch.setenv("FAREBOX_RPC", f"{closed_port_url()},{town.chain.rpc_url}")
    words = ["--endpoint", town.url, "--model", "m", "--budget", "0.0039", "--max-price", "0.001", "--yes"]
    code, document, _ = town.run("buy", "p", *words)
    assert (code, document["ready"]) == (OK, 3)


def test_a_remote_signer_signs_a_pool(town: Town) -> None:
    with serving(SigningServer([town.chain.accounts[0].key])) as signer:
        words = ["--endpoint", town.url, "--model", "m", "--count", "60", "--max-price", "0.001", "--yes"]
        code, document, _ = town.run("buy", "p", *words, "--signer", f"remote:{signer}", "--rpc", town.chain.rpc_url)
    assert (code, document["ready"]) == (OK, 60)


def test_the_signer_is_written_nowhere_that_a_spending_process_reads(town: Town) -> None:
    town.buy()
    for path in town.home.path.glob("buyer.db*"):
        content = path.read_bytes()
        assert str(town.key_file).encode() not in content
        assert town.chain.accounts[0].key not in content


def test_a_tier_is_bought_by_name_and_refilled_in_itself_when_prices_move(town: Town) -> None:
    plain = town.shop.offers[0]

    def priced(factor: int) -> list[Offer]:
        tiers = {"normal": 200, "urgent": 400, "background": 100}
        return [replace(plain, amount_atomic=base * factor, extra={"tier": tier}) for tier, base in tiers.items()]

    town.shop.offers = priced(1)
    code, document, _ = town.buy("--max-price", "0.001", "--yes", "--tier", "urgent", count=2)
    assert (code, document["tier"], document["price_atomic"]) == (OK, "urgent", "400")
    assert town.buy("--max-price", "0.001", "--yes", name="q", count=2)[1]["tier"] == "normal"
    code, document, _ = town.buy("--max-price", "0.001", "--yes", "--tier", "background", count=2)
    assert code == USAGE
    assert "another tier" in document["error"]["message"]
    town.shop.offers = priced(2)
    code, document, _ = town.run("refill", "p", "--count", "3", *town.wallet)
    assert (code, document["tier"], document["price_atomic"]) == (OK, "urgent", "800")


def test_process_refills_with_the_remembered_signer_and_reports_each_purchase(town: Town) -> None:
    refill = ["--auto-refill", "--refill-threshold", "2", "--refill-count", "4", "--max-total", "0.01"]
    town.buy("--max-price", "0.001", "--yes", *refill)
    town.buy(name="q", count=1)
    town.spend(3)
    code, document, _ = town.run("process", "--all")
    assert code == OK
    by_name = {entry["name"]: entry for entry in document["processed"]}
    assert (by_name["p"]["action"], by_name["p"]["signed"]) == ("refilled", 4)
    assert (by_name["q"]["action"], by_name["q"]["reason"]) == ("skipped", "automatic refill is off")
    assert town.counts() == Counts(ready=6, spent=3)


def test_two_processes_at_once_never_sign_twice(town: Town) -> None:
    refill = ["--auto-refill", "--refill-threshold", "5", "--refill-count", "40"]
    town.buy("--max-price", "0.001", "--yes", *refill)
    script = "import sys; from buyer.cli import commands; commands(sys.argv[1:])"
    command = [sys.executable, "-c", script, "process", "p", "--json"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) for _ in range(3)]
    documents = [json.loads(run.communicate(timeout=PATIENCE_S)[0]) for run in runs]
    signed = [document["processed"][0]["signed"] for document in documents]
    assert sorted(signed) == [0, 0, 40]
    assert town.counts() == Counts(ready=45)


def test_a_run_steps_back_while_another_process_signs_for_the_same_purchase(town: Town) -> None:
    town.buy("--max-price", "0.001", "--yes", "--auto-refill", "--refill-threshold", "9")
    with Pool.open(town.home) as pool, pool.exclusively("sign-p"):
        code, document, _ = town.run("process", "p")
        assert (code, document["processed"][0]["action"]) == (OK, "skipped")
        assert "another farebox process" in document["processed"][0]["reason"]
        code, document, _ = town.buy()
        assert (code, document["error"]["code"]) == (FAILED, "request_in_progress")
    assert town.counts() == Counts(ready=5)


def test_process_asks_the_chain_about_open_outcomes(town: Town) -> None:
    town.buy()
    town.spend(1, ending="lost")
    code, document, _ = town.run("process", "p")
    assert code == OK
    assert document["processed"][0]["chain"]["unknown"] == 1


def test_process_without_a_seller_fails_with_its_exit_code(town: Town) -> None:
    town.buy("--max-price", "0.001", "--yes", "--auto-refill", "--refill-threshold", "9")
    town.shop.free = True
    code, document, _ = town.run("process", "p")
    assert (code, document["ok"], document["processed"][0]["code"]) == (UNREACHABLE, False, "not_for_sale")


def test_refill_signs_more_and_list_balance_and_receipts_agree(town: Town) -> None:
    town.buy()
    code, document, _ = town.run("refill", "p", "--count", "3")
    assert (code, document["newly_signed"], document["ready"]) == (OK, 3, 8)
    town.spend(2)
    _, listed, _ = town.run("list")
    assert [(entry["name"], entry["ready"], entry["spent"]) for entry in listed["purchases"]] == [("p", 6, 2)]
    _, balances, _ = town.run("balance")
    (entry,) = balances["balances"]
    assert (entry["balance_atomic"], entry["promised_atomic"], entry["free_atomic"]) == ("1000000", "6000", "994000")
    _, receipts, _ = town.run("receipts", "p", "--limit", "1")
    assert [(entry["state"], entry["price"]) for entry in receipts["receipts"]] == [("spent", "0.001 USDC")]
    for words in (["list"], ["balance"], ["receipts"], ["status", "p"]):
        assert CliRunner().invoke(commands, words).exit_code == OK


def test_status_without_a_name_shows_each_purchase_and_what_all_could_cost(town: Town) -> None:
    assert CliRunner().invoke(commands, ["status"]).stdout == "no purchases yet; `farebox buy` makes one\n"
    town.buy(name="p", count=5)
    town.buy(name="q", count=3)
    town.spend(1)
    shown = CliRunner().invoke(commands, ["status"]).stdout
    for words in ("signed 5 = ready 4  spent 1", "signed 3 = ready 3", "loss of all: 0.007 USDC on local devnet"):
        assert words in shown
    assert "worst-case loss of all: 0.007 USDC" in CliRunner().invoke(commands, ["list"]).stdout
    (total,) = town.run("status")[1]["totals"]
    assert (total["network"], total["worst_case_loss_atomic"]) == ("eip155:31337", "7000")


def test_an_unknown_name_is_a_usage_error_everywhere(town: Town) -> None:
    wallet = ["--signer", f"keyfile:{town.key_file}"]
    names = (["status", "x"], ["process", "x"], ["receipts", "x"], ["remove", "x"])
    for words in (*names, ["refill", "x", "--count", "1", *wallet]):
        code, document, _ = town.run(*words)
        assert (code, document["error"]["code"]) == (USAGE, "not_found"), words


def test_remove_drains_by_default_and_process_then_forgets_it(town: Town) -> None:
    town.buy(count=1)
    code, document, _ = town.run("remove", "p")
    assert (code, document["state"], document["live"]) == (OK, "draining", 1)
    town.spend(1)
    _, document, _ = town.run("process", "--all")
    assert document["processed"][0]["action"] == "removed"
    assert town.run("list")[1]["purchases"] == []


def test_remove_now_tells_what_stays_valid(town: Town) -> None:
    town.buy()
    code, document, _ = town.run("remove", "p", "--now")
    assert (code, document["state"], document["worst_case_loss_atomic"]) == (OK, "removed", "5000")
    assert town.run("list")[1]["purchases"] == []


def test_remove_cancel_onchain_shows_the_cost_and_leaves_nothing_valid(town: Town) -> None:
    town.buy()
    code, document, _ = town.run("remove", "p", "--cancel-onchain")
    assert (code, document["error"]["code"]) == (USAGE, "usage")
    assert town.counts() == Counts(ready=5)
    code, document, _ = town.run("remove", "p", "--cancel-onchain", "--yes")
    assert (code, document["cancelled"], document["worst_case_loss_atomic"]) == (OK, 5, "0")


def test_pay_prints_the_answer_and_moves_the_money(town: Town) -> None:
    before = town.chain.balance_of(town.chain.accounts[1].address)
    words = ["pay", f"{town.url}/v1/chat/completions", "--max-price", "0.001", "--data", "hello", *town.wallet]
    result = CliRunner().invoke(commands, words)
    assert (result.exit_code, result.stdout) == (OK, "answer to hello")
    assert town.chain.balance_of(town.chain.accounts[1].address) - before == 1000
    code, document, _ = town.run("pay", f"{town.url}/report", "--max-price", "0.001", *town.wallet)
    assert (code, document["status"], document["price_atomic"]) == (OK, 200, "1000")
    assert document["transaction"].startswith("0x")
    assert town.run("list")[1]["purchases"] == []
    assert len(town.run("receipts")[1]["receipts"]) == 2


def test_pay_above_its_cap_or_for_nothing_signs_nothing(town: Town) -> None:
    code, document, _ = town.run("pay", f"{town.url}/report", "--max-price", "0.0009", *town.wallet)
    assert (code, document["error"]["code"]) == (OVER_CAP, "price_above_cap")
    town.shop.free = True
    code, document, _ = town.run("pay", f"{town.url}/report", "--max-price", "0.001", *town.wallet)
    assert (code, document["error"]["code"]) == (UNREACHABLE, "not_for_sale")
    assert town.shop.paid == []
    assert town.run("receipts")[1]["receipts"] == []


def test_pay_again_after_an_open_outcome_presents_the_same_payment(town: Town) -> None:
    words = ["pay", f"{town.url}/report", "--max-price", "0.001", *town.wallet]
    town.shop.status = 503
    code, document, _ = town.run(*words)
    assert (code, document["error"]["code"]) == (UNKNOWN, "outcome_unknown")
    town.shop.status = 200
    assert town.run(*words)[0] == OK
    assert len({authorization.nonce for authorization in town.shop.paid}) == 1


def test_pay_that_is_refused_is_exit_3(town: Town) -> None:
    words = ["pay", f"{town.url}/report", "--max-price", "0.001", *town.wallet]
    town.shop.status = 402
    code, document, _ = town.run(*words)
    assert (code, document["error"]["code"]) == (REFUSED, "payment_invalid")


def test_a_key_file_that_others_can_read_is_refused(town: Town) -> None:
    town.key_file.chmod(0o644)
    code, document, _ = town.buy()
    assert (code, document["error"]["code"]) == (FAILED, "signer_failed")
    assert "chmod 600" in document["error"]["remedy"]


def test_a_seller_that_hangs_up_on_a_probe_is_unreachable(town: Town) -> None:
    with hanging_up() as url:
        code, document, _ = town.run("probe", url)
    assert (code, document["error"]["code"]) == (UNREACHABLE, "seller_unavailable")


def test_plain_http_beyond_this_machine_is_refused(town: Town) -> None:
    for words in (["probe", "http://seller.example/"], ["pay", "http://seller.example/", "--max-price", "1"]):
        code, document, _ = town.run(*words)
        assert code == USAGE
        assert "--allow-http" in document["error"]["remedy"]


def test_names_complete(town: Town) -> None:
    from buyer.options import complete_name

    town.buy(name="chat", count=1)
    assert complete_name("ch") == ["chat"]
    assert complete_name("x") == []


def test_completing_a_name_in_a_home_that_cannot_be_read_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from buyer.options import complete_name

    (tmp_path / "file").touch()
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "file"))
    assert complete_name("ch") == []

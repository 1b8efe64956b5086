"""`farebox litellm config` as its user meets it: the files, the refusals, and nothing of LiteLLM imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from contracts.errors import UsageError
from gateway.litellm.cli import commands
from gateway.litellm.config import ProxyConfig, callback_source
from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).resolve().parents[2]


def farebox_litellm(*arguments: str) -> Result:
    """Run `farebox litellm ARGUMENTS` in this process."""
    return CliRunner().invoke(commands, arguments)


def paid_entry(config: ProxyConfig) -> dict[str, Any]:
    entry: dict[str, Any] = yaml.safe_load(config.yaml())["model_list"][0]
    return entry


def test_paid_models_go_to_the_gateway_and_are_never_retried() -> None:
    entry = paid_entry(ProxyConfig(gateway_url="http://127.0.0.1:8403"))
    assert entry["model_name"] == "paid/*"
    settings = entry["litellm_params"]
    assert settings["model"] == "openai/paid/*"
    assert settings["api_base"] == "http://127.0.0.1:8403/v1"
    assert settings["num_retries"] == 0
    assert settings["max_retries"] == 0
    assert settings["cooldown_time"] == 0


def test_the_proxy_asks_the_gateway_for_models_and_lets_farebox_headers_through() -> None:
    document = yaml.safe_load(ProxyConfig().yaml())
    assert document["litellm_settings"]["check_provider_endpoint"] is True
    assert document["litellm_settings"]["callbacks"] == ["farebox_callback.handler"]
    assert document["general_settings"]["forward_client_headers_to_llm_api"] is True


def test_retries_of_other_models_are_left_to_the_user() -> None:
    document = yaml.safe_load(ProxyConfig(fallback="free-model").yaml())
    assert "router_settings" not in document
    assert "num_retries" not in document["litellm_settings"]
    assert not {"num_retries", "max_retries", "cooldown_time"} & set(document["model_list"][1]["litellm_params"])


def test_the_proxys_own_key_is_named_never_written() -> None:
    text = ProxyConfig(master_key_env="TEAM_KEY").yaml()
    assert yaml.safe_load(text)["general_settings"]["master_key"] == "os.environ/TEAM_KEY"
    assert "LITELLM_MASTER_KEY" not in text


@pytest.mark.parametrize(
    ("url", "api_base"),
    [
        ("http://127.0.0.1:8403", "http://127.0.0.1:8403/v1"),
        ("http://127.0.0.1:8403/", "http://127.0.0.1:8403/v1"),
        ("http://127.0.0.1:8403/v1", "http://127.0.0.1:8403/v1"),
        ("http://127.0.0.1:8403/v1/", "http://127.0.0.1:8403/v1"),
        ("https://pay.example/team", "https://pay.example/team/v1"),
        ("http://[::1]:8403", "http://[::1]:8403/v1"),
    ],
)
def test_every_usual_way_to_write_the_gateway_reaches_its_openai_routes(url: str, api_base: str) -> None:
    assert paid_entry(ProxyConfig(gateway_url=url))["litellm_params"]["api_base"] == api_base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8403",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:port",
        "http://user:secret@127.0.0.1:8403",
        "http://127.0.0.1:8403?x=1",
        "http://127.0.0.1:8403#x",
        'http://127.0.0.1:8403/"\nmaster_key: x',
        "http://[::1",
    ],
)
def test_an_address_that_litellm_would_misread_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--gateway"):
        ProxyConfig(gateway_url=url)


def test_without_a_fallback_a_refused_payment_is_the_clients_to_see() -> None:
    assert "fallbacks" not in yaml.safe_load(ProxyConfig().yaml())["litellm_settings"]


def test_a_fallback_is_served_by_the_gateway_unless_told_otherwise() -> None:
    at_gateway = yaml.safe_load(ProxyConfig(fallback="llama3.2:3b").yaml())
    assert at_gateway["model_list"][1] == {
        "model_name": "llama3.2:3b",
        "litellm_params": {
            "model": "openai/llama3.2:3b",
            "api_base": "http://127.0.0.1:8403/v1",
            "api_key": "unused",
        },
    }
    assert at_gateway["litellm_settings"]["fallbacks"] == [{"*": ["llama3.2:3b"]}]
    elsewhere = ProxyConfig(fallback="llama3.2:3b", fallback_url="http://127.0.0.1:11434")
    free_entry = yaml.safe_load(elsewhere.yaml())["model_list"][1]
    assert free_entry["litellm_params"]["api_base"] == "http://127.0.0.1:11434/v1"


@pytest.mark.parametrize("model", ["", "paid/other", "two words", "all/*", 'x"\ny', "näh"])
def test_a_fallback_that_costs_money_or_is_no_name_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="--fallback"):
        ProxyConfig(fallback=model)


def test_a_fallback_address_without_a_model_is_refused() -> None:
    with pytest.raises(UsageError, match="--fallback MODEL"):
        ProxyConfig(fallback_url="http://127.0.0.1:11434")


@pytest.mark.parametrize(("price", "shown"), [("0", 0), ("0.000001", 0.000001), ("1e-7", 0.0000001)])
def test_a_displayed_price_is_a_number_to_litellm(price: str, shown: float) -> None:
    settings = paid_entry(ProxyConfig(display_price=price))["litellm_params"]
    assert settings["input_cost_per_token"] == shown
    assert settings["output_cost_per_token"] == shown


@pytest.mark.parametrize("price", ["", "-1", "2", "nan", "inf", "0,01", "free"])
def test_a_displayed_price_that_is_no_price_is_refused(price: str) -> None:
    with pytest.raises(UsageError, match="--display-price"):
        ProxyConfig(display_price=price)


@pytest.mark.parametrize("name", ["", "1KEY", "MY KEY", "KEY\nx: y", "sk-1234"])
def test_a_key_in_place_of_its_variables_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--master-key-env"):
        ProxyConfig(master_key_env=name)


def test_the_callback_is_written_beside_the_configuration(tmp_path: Path) -> None:
    result = farebox_litellm("config", "--out", str(tmp_path / "litellm.yaml"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "litellm.yaml").read_text() == ProxyConfig().yaml()
    assert (tmp_path / "farebox_callback.py").read_text() == callback_source()
    assert "--host 127.0.0.1" in result.stdout


def test_writing_the_same_files_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "litellm.yaml"
    assert farebox_litellm("config", "--out", str(out)).exit_code == 0
    before = out.stat().st_mtime_ns
    assert farebox_litellm("config", "--out", str(out)).exit_code == 0
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize("edited", ["litellm.yaml", "farebox_callback.py"])
def test_an_edited_file_is_replaced_only_when_asked(tmp_path: Path, edited: str) -> None:
    out = tmp_path / "litellm.yaml"
    (tmp_path / edited).write_text("mine\n")
    refused = farebox_litellm("config", "--out", str(out))
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == [edited]
    assert (tmp_path / edited).read_text() == "mine\n"
    assert farebox_litellm("config", "--out", str(out), "--force").exit_code == 0
    assert (tmp_path / edited).read_text() != "mine\n"


def test_a_folder_that_does_not_exist_is_a_usage_error_in_words(tmp_path: Path) -> None:
    result = farebox_litellm("config", "--json", "--out", str(tmp_path / "no" / "litellm.yaml"))
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["ok"] is False
    assert document["error"]["code"] == "usage"
    assert str(tmp_path / "no" / "litellm.yaml") in document["error"]["message"]


def test_without_out_the_configuration_alone_is_on_stdout() -> None:
    result = farebox_litellm("config", "--fallback", "free-model")
    assert result.exit_code == 0
    assert result.stdout == ProxyConfig(fallback="free-model").yaml()
    assert "--out" in result.stderr


def test_json_carries_both_files_or_where_they_are(tmp_path: Path) -> None:
    inline = json.loads(farebox_litellm("config", "--json").stdout)
    assert inline == {"ok": True, "config": ProxyConfig().yaml(), "callback": callback_source()}
    written = json.loads(farebox_litellm("config", "--json", "--out", str(tmp_path / "l.yaml")).stdout)
    assert written["config_file"] == str(tmp_path / "l.yaml")
    assert written["callback_file"] == str(tmp_path / "farebox_callback.py")


def test_the_committed_example_is_what_the_command_prints() -> None:
    result = farebox_litellm("config")
    assert (REPOSITORY / "config" / "litellm.example.yaml").read_text() == result.stdout


def test_the_command_runs_without_litellm_being_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from gateway.litellm.cli import commands\n"
        f"commands(['config', '--out', {str(tmp_path / 'litellm.yaml')!r}], standalone_mode=False)\n"
        "sys.exit('litellm' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "farebox_callback.py").exists()

"""Goal: gateway.yaml says what it does or is refused with the line. Method: read good and bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import ConfigInvalid
from gateway.config import GatewayConfig, Listen, host_only, load_config, override, parse_listen, shown

EXAMPLE = Path(__file__).parents[2] / "config" / "gateway.example.yaml"


def test_without_a_file_everything_has_a_default() -> None:
    config = load_config(None)
    assert (config.listen, config.admin_listen) == ("127.0.0.1:8403", "127.0.0.1:9403")
    assert config.fallback is config.max_price is config.home is None


def test_the_example_names_every_setting_and_its_defaults() -> None:
    config = load_config(EXAMPLE)
    assert set(GatewayConfig.model_fields) == config.model_fields_set
    assert (config.listen, config.admin_listen) == (GatewayConfig().listen, GatewayConfig().admin_listen)
    assert config.fallback == "http://127.0.0.1:11434"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("listen: 127.0.0.1\n", "gateway.yaml:1: `listen`: expected host:port"),
        ("listen: 127.0.0.1:99999\n", "gateway.yaml:1: `listen`"),
        ("\nlisten: 8403\n", "gateway.yaml:2: `listen`"),
        ("lisen: 127.0.0.1:1\n", "did you mean `listen`?"),
        ("fallback: localhost:11434\n", "`fallback`: expected a base URL"),
        ("fallback: http://user:pw@host\n", "`fallback`: expected a base URL"),
        ("fallback_key_env: KEY\n", "fallback_key_env needs fallback"),
        ("fallback: http://h\nfallback_key_env: sk-123\n", "never the key itself"),
        ("max_price: 0.01\n", "gateway.yaml:1: `max_price`"),
        ("max_price: '0,01'\n", "gateway.yaml:1: `max_price`: expected digits with a decimal point"),
        ("rpc: [mainnet.example/secret]\n", "gateway.yaml:1: `rpc.0`: expected http://host:port or https://host"),
        ("store: mysql://u:s3cret@h/db\n", "gateway.yaml:1: `store`: expected sqlite:///file.db or postgresql://"),
        ("store: 'postgresql://u:s3/cret@h/db'\n", "as %40, %2F"),
        ("delegate:\n  budget: '2'\n", "gateway.yaml:2: `delegate.budget`: expected at most max_budget, which is 1"),
        ("delegate:\n  deadline_s: 700\n", "`delegate.deadline_s`: expected at most max_deadline_s, which is 600"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as refused:
        load_config(file)
    assert problem in refused.value.message
    assert "cret" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "host", "loopback"),
    [
        ("127.0.0.1:8403", "127.0.0.1", True),
        ("localhost:0", "localhost", True),
        ("[::1]:8403", "::1", True),
        ("0.0.0.0:8403", "0.0.0.0", False),
        ("gateway.local:80", "gateway.local", False),
    ],
)
def test_addresses_are_read_and_written_alike(text: str, host: str, loopback: bool) -> None:
    listen = parse_listen(text)
    assert (listen.host, listen.is_loopback, listen.text) == (host, loopback, text)


def test_a_base_url_may_end_with_v1() -> None:
    assert GatewayConfig(fallback="http://h:1/api/v1/").fallback == "http://h:1/api"


def test_options_win_over_the_file_and_are_checked() -> None:
    assert override(GatewayConfig(), listen="127.0.0.1:1", admin_listen=None).listen == "127.0.0.1:1"
    with pytest.raises(ConfigInvalid, match="--admin-listen: expected host:port"):
        override(GatewayConfig(), admin_listen="nowhere")


def test_the_store_is_the_files_else_the_environments_else_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
    assert GatewayConfig().open_home().database_url == f"sqlite:///{tmp_path}/home/buyer.db"
    monkeypatch.setenv("FAREBOX_STORE", "postgresql://u:s3cret@db.example/books")
    assert GatewayConfig().open_home().database_url == "postgresql://u:s3cret@db.example/books"
    row = next(row for row in shown(GatewayConfig(), None) if row.name == "store")
    assert (row.value, row.origin) == ("postgresql://u@db.example/books", "FAREBOX_STORE")
    (tmp_path / "gateway.yaml").write_text("store: sqlite:///pool.db\n")
    config = load_config(tmp_path / "gateway.yaml")
    assert config.open_home().database_url == f"sqlite:///{tmp_path}/pool.db"
    monkeypatch.setenv("FAREBOX_STORE", "nonsense")
    with pytest.raises(ConfigInvalid, match="store: expected sqlite:///"):
        GatewayConfig().open_home()


def test_shown_settings_say_where_they_come_from_and_hide_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_HOME", "/somewhere")
    config = GatewayConfig(rpc=["https://rpc.example/v2/secret", "http://127.0.0.1:8545"], max_price="1")
    rows = {row.name: row for row in shown(config, Path("g.yaml"))}
    assert rows["rpc"].value == ["https://rpc.example/***", "http://127.0.0.1:8545"]
    assert (rows["home"].value, rows["home"].origin) == ("/somewhere", "FAREBOX_HOME")
    assert (rows["max_price"].origin, rows["listen"].origin) == ("g.yaml", "default")
    assert set(rows) == set(GatewayConfig.model_fields)


@pytest.mark.parametrize("url", ["https://u:p@h.example", "https://h.example?key=1", "https://h.example/1"])
def test_only_the_host_of_a_url_with_a_key_is_shown(url: str) -> None:
    assert host_only(url) == "https://h.example/***"


def test_what_is_no_url_is_not_shown_as_one() -> None:
    assert host_only("mainnet.example/s3cret") == "(not a URL)"


def test_a_missing_fallback_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigInvalid, match="NO_SUCH_KEY"):
        GatewayConfig(fallback="http://h", fallback_key_env="NO_SUCH_KEY").fallback_key()


def test_any_address_of_127_is_loopback() -> None:
    assert Listen(host="127.1.2.3", port=1).is_loopback

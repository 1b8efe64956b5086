"""The variables of the environment that several rooms read."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.environment import Environment


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "RPC"):
        monkeypatch.delenv(f"FAREBOX_{name}", raising=False)


def test_a_variable_set_to_nothing_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_HOME", "")
    assert Environment().home_folder == Path("~/.farebox").expanduser()


def test_endpoints_are_separated_by_commas_or_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_RPC", "http://one, http://two  http://three")
    assert Environment().rpc_urls == ["http://one", "http://two", "http://three"]


def test_no_endpoint_is_none() -> None:
    assert Environment().rpc_urls == []


def test_a_home_below_the_users_own_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FAREBOX_HOME", "~/agent")
    assert Environment().home_folder == tmp_path / "agent"


def test_what_other_programs_set_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME_FOLDER", "/elsewhere")
    monkeypatch.setenv("FAREBOX_UNHEARD_OF", "1")
    assert Environment().home is None

"""Every test that takes `place` runs once on each kind of store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.seller.shop import STORE_VARIABLE
from tests.stores.parts import Migrations, Place
from tests.stores.servers import URL_VARIABLE, OwnServer, Server, own_server

_running: list[Server] = []


@pytest.fixture(autouse=True)
def _clean_databases() -> Iterator[None]:
    """Leave the next test the databases of this one, empty."""
    yield
    for server in _running:
        server.clean()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One server for the whole run: the one that FAREBOX_POSTGRES_URL names, else our own."""
    given = os.environ.get(URL_VARIABLE)
    if given:
        server = Server(given)
        _running.append(server)
        yield server
        server.drop_databases()
        return
    with own_server() as own:
        own.wait_settled()
        _running.append(own)
        yield own


@pytest.fixture(scope="session")
def breakable() -> Iterator[OwnServer]:
    """A second server. Take `fragile` instead."""
    with own_server() as server:
        yield server


@pytest.fixture
def fragile(breakable: OwnServer) -> Iterator[OwnServer]:
    """A server that no other test uses meanwhile: it may be stopped, crashed, frozen and set wrongly."""
    yield breakable
    breakable.start()
    breakable.reset_settings()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place without any store yet."""
    if request.param == "sqlite":
        return Place("sqlite", lambda room: f"sqlite:///{tmp_path}/{room}.db")
    server: Server = request.getfixturevalue("postgres")
    url = server.new_database()
    return Place("postgresql", lambda _room: url)


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Migrations:
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return Migrations(folder)


@pytest.fixture(params=["written", "not written"])
def doubt(request: pytest.FixtureRequest) -> str:
    """What really became of a commit whose answer was lost."""
    mode: str = request.param
    return mode


@pytest.fixture
def seller_on_postgres(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the seller's own tests keep their books in a database."""
    monkeypatch.setenv(STORE_VARIABLE, postgres.new_database())

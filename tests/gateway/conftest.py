"""A seller, a pool of twenty authorizations, and a gateway between them and the test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import pytest
from openai import OpenAI

from buyer.home import Home
from buyer.pool import Pool
from tests.gateway.parts import Gateway, Listening, StandInSeller, gateway, listening, sign_pool
from tests.patience import PATIENCE_S
from tests.warm import Done, Warm

COUNT = 20


@dataclass
class Street:
    """Everything between a client and a model."""

    seller: StandInSeller
    seller_server: Listening
    gateway: Gateway
    http: httpx.Client
    openai: OpenAI
    home: Path

    def release(self, hold: str) -> None:
        """Let the model go on that waits for `hold`."""
        httpx.post(f"{self.seller_server.url}/test/release/{hold}")


class Run(Protocol):
    """Run one farebox command with a home of its own choice, and further variables, to its end."""

    def __call__(self, *words: str, home: Path, **variables: str) -> Done: ...


@pytest.fixture
def run(warm: Warm, tmp_path: Path) -> Run:
    def run(*words: str, home: Path, **variables: str) -> Done:
        environment = {"FAREBOX_HOME": str(home), "COLUMNS": "200", **variables}
        return warm.run(words, tmp_path, environment=environment)

    return run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def seller() -> StandInSeller:
    return StandInSeller()


@pytest.fixture
def seller_server(seller: StandInSeller) -> Iterator[Listening]:
    with listening(seller) as server:
        yield server


@pytest.fixture
def street(home: Path, seller: StandInSeller, seller_server: Listening) -> Iterator[Street]:
    pool = Pool.open(Home.open(home))
    sign_pool(pool, seller_server.url, COUNT)
    pool.close()
    with (
        gateway(home) as running,
        httpx.Client(base_url=running.url, timeout=PATIENCE_S) as http,
        OpenAI(base_url=f"{running.url}/v1", api_key="not-a-key", max_retries=0) as client,
    ):
        yield Street(seller, seller_server, running, http, client, home)

"""LiteLLM proxy -> `farebox serve` -> `farebox sell` -> model server, all real but the last, on a chain of their own.

The model server is a stand-in with a switch: `model.status` makes it refuse every call, and `model.calls` counts what
reached it. LiteLLM's configuration is `farebox litellm config`'s, with a model and retries of the user's own added.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest
import uvicorn
import yaml
from starlette.types import Receive, Scope, Send

from contracts.evm.devnet import Devnet
from gateway.demo.model_server import model_server_app
from gateway.demo.ports import free_ports
from gateway.demo.processes import Child, Crew, farebox_command, wait_until
from tests.patience import PATIENCE_S

MODEL = "demo-model"
PAID = f"paid/{MODEL}"
RARE_MODEL = "rare-model"
FREE_MODEL = "free-model"
OWN_MODEL = "own-model"
OWN_NAME = "paid/own-name"
PRICE = "0.001"
PRICE_ATOMIC = 1000
COUNT = 60
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")

_PROGRAM = Path(__file__).resolve().parents[2] / ".venv-litellm" / "bin" / "litellm"
_MASTER_KEY = "sk-tests-only"
_WALLET_ATOMIC = 10_000_000


@dataclass(frozen=True, slots=True)
class Books:
    """Every count that a call may move: the buyer's authorizations, the calls that reached the model, the money."""

    ready: int
    spent: int
    unknown: int
    model_calls: int
    seller_balance_atomic: int

    def __sub__(self, before: Books) -> Books:
        return Books(
            self.ready - before.ready,
            self.spent - before.spent,
            self.unknown - before.unknown,
            self.model_calls - before.model_calls,
            self.seller_balance_atomic - before.seller_balance_atomic,
        )


class ModelServer:
    """The model server stand-in on a thread of this process. `status` None answers; a status refuses every call."""

    def __init__(self, *models: str) -> None:
        self.status: int | None = None
        self.calls = 0
        self._app = model_server_app(models)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",  # a bound method looks like ASGI 2 to uvicorn's guess
            log_level="critical",
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        self._listener.close()

    @contextmanager
    def refusing(self, status: int) -> Iterator[None]:
        """Answer `status` to every call for the time of the context."""
        self.status = status
        try:
            yield
        finally:
            self.status = None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            self.calls += 1
            if self.status is not None:
                scope = {**scope, "headers": [*scope["headers"], (b"x-test-status", str(self.status).encode())]}
        await self._app(scope, receive, send)


class Stack:
    """The running parts. `model` is what is sold, `free_model` the user's own; `proxy_url` is LiteLLM's."""

    def __init__(self, crew: Crew, chain: Devnet, model: ModelServer, free_model: ModelServer) -> None:
        self.crew, self.chain, self.model, self.free_model = crew, chain, model, free_model
        ports = free_ports(5)
        self._seller, self._seller_admin, self._gateway, self._gateway_admin, proxy = (
            f"127.0.0.1:{port}" for port in ports
        )
        self.proxy_url = f"http://{proxy}"
        self.proxy_port = ports[-1]
        self._payee = chain.accounts[2].address
        self._sell: Child | None = None

    def start(self) -> None:
        """Start every part, in the order a user would."""
        buyer, settler, _ = self.chain.accounts[:3]
        self.chain.mint(buyer.address, _WALLET_ATOMIC)
        _write_key(self.crew.folder / "buyer.key", buyer.key)
        _write_key(self.crew.folder / "settler.key", settler.key)
        (self.crew.folder / "seller.yaml").write_text(json.dumps(self._seller_settings()))
        self._sell = self._started(
            "sell",
            farebox_command("sell", "--config", "seller.yaml", "--admin-listen", self._seller_admin),
            f"http://{self._seller_admin}/readyz",
        )
        self._buy("demo", MODEL, COUNT)
        self._buy("rare", RARE_MODEL, 1)
        settings = {"listen": self._gateway, "admin_listen": self._gateway_admin, "fallback": self.free_model.url}
        (self.crew.folder / "gateway.yaml").write_text(json.dumps(settings))
        self._started("serve", farebox_command("serve", "--config", "gateway.yaml"), f"http://{self._gateway}/readyz")
        self._start_proxy()

    def openai(self, *, max_retries: int = 0) -> openai.OpenAI:
        """Return the official client, pointed at LiteLLM."""
        return openai.OpenAI(base_url=f"{self.proxy_url}/v1", api_key=_MASTER_KEY, max_retries=max_retries, timeout=60)

    def get(self, path: str) -> httpx.Response:
        """GET a path of LiteLLM."""
        return httpx.get(self.proxy_url + path, headers=_KEY, timeout=60, trust_env=False)

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        """POST a body to a path of LiteLLM."""
        headers = {**_KEY, **(headers or {})}
        return httpx.post(self.proxy_url + path, json=body, headers=headers, timeout=60, trust_env=False)

    def books(self, name: str = "demo") -> Books:
        """Return the books of one purchase, once the seller is owed nothing."""
        assert self._sell is not None
        wait_until(self._settled, self._sell, "payments were not settled", timeout_s=PATIENCE_S)
        status = httpx.get(f"http://{self._gateway_admin}/status", timeout=PATIENCE_S, trust_env=False).json()
        purchase = next(each for each in status["purchases"] if each["name"] == name)
        assert purchase["claimed"] == purchase["sent"] == 0
        balance = self.chain.balance_of(self._payee)
        return Books(purchase["ready"], purchase["spent"], purchase["unknown"], self.model.calls, balance)

    @contextmanager
    def moving(
        self, *, ready: int = 0, spent: int = 0, unknown: int = 0, model_calls: int = 0, name: str = "demo"
    ) -> Iterator[None]:
        """Assert that what happens inside moves the books by exactly this, and pays the seller for `spent` calls."""
        before = self.books(name)
        yield
        expected = Books(ready, spent, unknown, model_calls, spent * PRICE_ATOMIC)
        moved = self.books(name) - before
        assert moved == expected, f"the books moved by {moved}, expected {expected}"

    def _settled(self) -> bool:
        status = httpx.get(f"http://{self._seller_admin}/status", timeout=PATIENCE_S, trust_env=False).json()
        return int(status["unsettled_atomic"]) == 0

    def _buy(self, name: str, model: str, count: int) -> None:
        where = ["--endpoint", f"http://{self._seller}", "--model", model, "--rpc", self.chain.rpc_url]
        limits = ["--count", str(count), "--max-price", PRICE, "--signer", "keyfile:buyer.key", "--yes"]
        self.crew.run("buy", farebox_command("buy", name, *where, *limits, "--json"))

    def _start_proxy(self) -> None:
        options = ["--gateway", f"http://{self._gateway}", "--fallback", FREE_MODEL]
        self.crew.run("litellm config", farebox_command("litellm", "config", "--out", "litellm.yaml", *options))
        self._add_the_users_own_settings(self.crew.folder / "litellm.yaml")
        command = [str(_PROGRAM), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(self.proxy_port)]
        variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": _MASTER_KEY}
        proxy = self.crew.start("litellm", command, variables=variables)
        self.crew.wait_ready(proxy, f"{self.proxy_url}/health/liveliness", timeout_s=PATIENCE_S)

    def _add_the_users_own_settings(self, file: Path) -> None:
        """Add what a user has besides: two retries, a model of its own, and a copy of the paid entry for one model."""
        document = yaml.safe_load(file.read_text())
        own = {"model": f"openai/{FREE_MODEL}", "api_base": f"{self.free_model.url}/v1", "api_key": "none"}
        paid = document["model_list"][0]
        copied = {
            **paid,
            "model_name": OWN_NAME,
            "litellm_params": {**paid["litellm_params"], "model": f"openai/{PAID}"},
        }
        document["model_list"] += [
            {"model_name": OWN_MODEL, "litellm_params": own},
            copied,
        ]
        document["router_settings"] = {"num_retries": 2}
        file.write_text(yaml.safe_dump(document))

    def _seller_settings(self) -> dict[str, Any]:
        prices = {MODEL: PRICE, RARE_MODEL: PRICE}
        return {
            "upstream": self.model.url,
            "listen": self._seller,
            "public_url": f"http://{self._seller}",
            "network": self.chain.network,
            "rpc": [self.chain.rpc_url],
            "asset": {"address": self.chain.token, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"},
            "pay_to": self._payee,
            "settler": {"kind": "chain", "key_file": "settler.key"},
            "store": "sqlite:///seller.db",
            "routes": [{"match": f"POST {path}", "models": prices} for path in ROUTES],
        }

    def _started(self, name: str, command: list[str], ready_url: str) -> Child:
        child = self.crew.start(name, command)
        self.crew.wait_ready(child, ready_url)
        return child


@contextmanager
def stack(folder: Path) -> Iterator[Stack]:
    """Give the running stack, and end all of it afterwards. Fails with the make target when LiteLLM is missing."""
    if not _PROGRAM.is_file():
        pytest.fail(f"{_PROGRAM} is missing; run `make setup-litellm` (`make test` does)")
    home = folder / "home"
    home.mkdir(mode=0o700)
    with (
        Devnet(log_file=folder / "anvil.log") as chain,
        ModelServer(MODEL, RARE_MODEL) as model,
        ModelServer(FREE_MODEL) as free_model,
        Crew(folder, {"FAREBOX_HOME": str(home)}) as crew,
    ):
        running = Stack(crew, chain, model, free_model)
        try:
            running.start()
            yield running
        except BaseException:
            for log in sorted((folder / "logs").glob("*.log")):
                sys.stderr.write(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}\n")
            raise


_KEY = {"authorization": f"Bearer {_MASTER_KEY}"}


def _write_key(file: Path, key: bytes) -> None:
    file.touch(mode=0o600)
    file.write_text(key.hex() + "\n")

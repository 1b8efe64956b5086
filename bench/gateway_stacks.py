"""The proxies that `bench.gateway` compares, each started as its users start it, on a core of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.nginx import configuration, nginx_program
from bench.rig import FREE
from bench.tree import Tree, on_core
from bench.workload import MODEL, PATH, PRICE_ATOMIC, an_offer, keys, presign, sign_payments
from buyer.home import Home
from buyer.pool import Pool
from buyer.signers import KeySigner
from contracts.address import address_text
from contracts.evm.devnet import Devnet
from contracts.headers import decode_payment_required
from contracts.offers import Offer, offer_from_wire
from gateway.demo.ports import free_ports
from gateway.demo.processes import Crew, farebox_command, wait_until
from gateway.demo.proxy import litellm_program

__all__ = ["Place", "Proxy", "direct", "farebox", "farebox_to_farebox", "litellm", "nginx", "official_sdk"]

_SECRET = b"\x01" * 32
_LITELLM_KEY = "sk-bench"
# LiteLLM imports thousands of modules; on a busy machine that takes minutes.
_START_S = 240.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where proxies run: a folder, the core they are kept on, the stand-in seller's port, and the size of pools.

    `fetches` allows to get a peer that is not installed from its public source.
    """

    folder: Path
    core: int
    others_core: int
    seller_port: int
    authorizations: int
    fetches: bool


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy: where to ask, what to say, and its processes."""

    ports: tuple[int, ...]
    tree: Tree
    path: str = PATH
    model: str = MODEL
    headers: tuple[tuple[str, str], ...] = ()


@contextmanager
def direct(place: Place) -> Iterator[Proxy]:
    """No proxy: the stand-in itself."""
    yield Proxy((place.seller_port,), Tree(()), path=FREE + PATH)


@contextmanager
def nginx(place: Place) -> Iterator[Proxy]:
    """One worker that adds one and the same payment to every request. Raises `NginxMissing`."""
    program = nginx_program(fetches=place.fetches)
    folder = _folder(place, "nginx")
    (port,) = free_ports(1)
    (payment,) = sign_payments(an_offer(), keys(1), 1)
    settings = folder / "nginx.conf"
    settings.write_text(configuration(folder, port, place.seller_port, payment.header))
    with Crew(folder, {}) as crew:
        command = [str(program), "-p", str(folder), "-e", str(folder / "nginx.err"), "-c", str(settings)]
        with on_core(place.core):
            child = crew.start("nginx", command)
        wait_until(_listens(port), child, "nginx does not answer", timeout_s=_START_S)
        yield Proxy((port,), Tree((child.process.pid,)))


@contextmanager
def farebox(place: Place, *, workers: int = 1) -> Iterator[Proxy]:
    """`farebox serve`, once or several times over one pool, which buys from the stand-in."""
    folder = _folder(place, f"farebox-{workers}")
    _stock(folder, an_offer(), place.authorizations, f"http://127.0.0.1:{place.seller_port}")
    with Crew(folder, {"FAREBOX_HOME": str(folder / "home")}) as crew:
        yield _serve(crew, place, workers)


@contextmanager
def farebox_to_farebox(place: Place) -> Iterator[Proxy]:
    """`farebox serve` that buys from a real `farebox sell`, which verifies every payment, on a local chain."""
    folder = _folder(place, "farebox-sell")
    with Devnet() as devnet, Crew(folder, {"FAREBOX_HOME": str(folder / "home")}) as crew:
        port, admin_port = free_ports(2)
        (folder / "seller.yaml").write_text(yaml.safe_dump(_for_sale(place, devnet, f"127.0.0.1:{port}")))
        (folder / "settler.key").touch(0o600)
        (folder / "settler.key").write_text(devnet.accounts[2].key.hex())
        devnet.mint(address_text(KeySigner(_SECRET).address), PRICE_ATOMIC * 10**6)
        sell = farebox_command("sell", "--config", "seller.yaml", "--admin-listen", f"127.0.0.1:{admin_port}")
        with on_core(place.others_core):
            child = crew.start("sell", sell)
        crew.wait_ready(child, f"http://127.0.0.1:{admin_port}/readyz", timeout_s=_START_S)
        endpoint = f"http://127.0.0.1:{port}"
        asked = httpx.post(endpoint + PATH, json={"model": MODEL, "messages": []}, trust_env=False)
        offer = offer_from_wire(decode_payment_required(asked.headers["PAYMENT-REQUIRED"]).accepts[0])
        _stock(folder, offer, place.authorizations, endpoint)
        yield _serve(crew, place, 1)


@contextmanager
def litellm(place: Place) -> Iterator[Proxy]:
    """The LiteLLM proxy in front of the stand-in, which asks it for no payment. Raises `ToolMissing`."""
    program = litellm_program()
    folder = _folder(place, "litellm")
    (port,) = free_ports(1)
    base_url = f"http://127.0.0.1:{place.seller_port}{FREE}/v1"
    behind = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": "sk-x"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": behind}],
        "litellm_settings": {"telemetry": False, "drop_params": True, "request_timeout": 60},
        "general_settings": {"master_key": _LITELLM_KEY},
    }
    (folder / "litellm.yaml").write_text(yaml.safe_dump(settings))
    command = [str(program), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with Crew(folder, {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}) as crew:
        with on_core(place.core):
            child = crew.start("litellm", command)
        crew.wait_ready(child, f"http://127.0.0.1:{port}/health/liveliness", timeout_s=_START_S)
        yield Proxy((port,), Tree((child.process.pid,)), headers=(("authorization", f"Bearer {_LITELLM_KEY}"),))


@contextmanager
def official_sdk(place: Place) -> Iterator[Proxy]:
    """The official SDK's httpx client in a small proxy."""
    folder = _folder(place, "sdk")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "bench.sdk_proxy", str(port), f"http://127.0.0.1:{place.seller_port}"]
    with Crew(folder, {"PYTHONPATH": str(Path(__file__).parents[1])}) as crew:
        with on_core(place.core):
            child = crew.start("sdk", command)
        wait_until(_listens(port), child, "the proxy does not answer", timeout_s=_START_S)
        yield Proxy((port,), Tree((child.process.pid,)))


def _serve(crew: Crew, place: Place, workers: int) -> Proxy:
    ports, children = [], []
    free = iter(free_ports(2 * workers))
    for number, (port, admin_port) in enumerate(zip(free, free, strict=True)):
        addresses = ("--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin_port}")
        with on_core(place.core):
            child = crew.start(f"serve-{number}", farebox_command("serve", *addresses))
        crew.wait_ready(child, f"http://127.0.0.1:{admin_port}/readyz", timeout_s=_START_S)
        ports.append(port)
        children.append(child)
    return Proxy(tuple(ports), Tree([child.process.pid for child in children]), model=f"paid/{MODEL}")


def _stock(folder: Path, offer: Offer, count: int, endpoint: str) -> None:
    pool = Pool.open(Home.open(folder / "home"))
    try:
        presign(pool, offer, KeySigner(_SECRET), count, endpoint=endpoint)
    finally:
        pool.close()


def _for_sale(place: Place, devnet: Devnet, listen: str) -> dict[str, Any]:
    """Return a shop whose caps no run exhausts."""
    return {
        "upstream": f"http://127.0.0.1:{place.seller_port}{FREE}",
        "listen": listen,
        "public_url": f"http://{listen}",
        "network": devnet.network,
        "rpc": [devnet.rpc_url],
        "asset": {"address": devnet.token, "name": "USDC", "version": "2", "decimals": 6, "symbol": "USDC"},
        "pay_to": devnet.accounts[4].address,
        "settle": "async",
        "settler": {"kind": "chain", "key_file": "settler.key"},
        "exposure": {"per_payer": "1000000", "total": "1000000"},
        "store": "sqlite:///seller.db",
        "routes": [{"match": f"POST {PATH}", "price": f"{PRICE_ATOMIC} atomic"}],
        "default": "deny",
    }


def _folder(place: Place, name: str) -> Path:
    folder = place.folder / name
    folder.mkdir()
    return folder


def _listens(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=5.0, trust_env=False)
        except httpx.HTTPError:
            return False
        return True

    return answers

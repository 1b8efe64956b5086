"""Two sellers and two gateways on one PostgreSQL: one payment, one service; and when the store is gone, all refuse."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from contracts.evm.devnet import Devnet
from gateway.demo.ports import free_ports
from tests.faults.asking import body_of
from tests.faults.town import MODEL, PRICE_ATOMIC, Town, town
from tests.patience import PATIENCE_S
from tests.stores.servers import OwnServer, own_server
from tests.warm import Warm


@pytest.fixture(scope="module")
def postgres() -> Iterator[OwnServer]:
    with own_server() as server:
        yield server


def share(here: Town, store: str) -> tuple[str, str]:
    """Put all books into one PostgreSQL; return the addresses of a second seller and a second gateway."""
    ports = [f"127.0.0.1:{port}" for port in free_ports(4)]
    seller = (here.folder / "seller.yaml").read_text().replace("sqlite:///seller.db", store)
    (here.folder / "seller.yaml").write_text(seller)
    (here.folder / "seller-2.yaml").write_text(seller.replace(here.seller_url.removeprefix("http://"), ports[0]))
    with (here.folder / "gateway.yaml").open("a") as file:
        file.write(f"store: {store}\n")
    shutil.copy(here.folder / "gateway.yaml", here.folder / "gateway-2.yaml")
    home = {"FAREBOX_HOME": str(here.home), "FAREBOX_STORE": store}
    sell = ["sell", "--no-settle", "--config", "seller-2.yaml", "--admin-listen", ports[1]]
    serve = ["serve", "--config", "gateway-2.yaml", "--listen", ports[2], "--admin-listen", ports[3]]
    here.environment |= home
    for name in ("model-server", "settle", "sell"):
        here.start(name)
    here.buy(20)
    here.start("serve")
    for name, words in (("sell-2", sell), ("serve-2", serve)):
        log = here.folder / "logs" / f"{name}.log"
        here.running[name] = here.warm.start(words, here.folder, log, environment=home)
    urls = f"http://{ports[0]}", f"http://{ports[2]}"
    here.wait_for(lambda: answers(f"{urls[0]}/v1/models"), here.running["sell-2"], "did not answer")
    here.wait_for(lambda: answers(f"{urls[1]}/healthz"), here.running["serve-2"], "did not answer")
    return urls


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def ask(url: str, prompt: str, request_id: str) -> httpx.Response:
    headers = {"x-farebox-request-id": request_id}
    return httpx.post(f"{url}/v1/chat/completions", json=body_of(prompt), headers=headers, timeout=60)


@pytest.mark.slow
def test_two_gateways_and_two_sellers_share_one_store_and_refuse_without_it(
    tmp_path: Path, chain: Devnet, warm: Warm, postgres: OwnServer
) -> None:
    with town(tmp_path, chain, warm) as here:
        second_seller, second_gateway = share(here, postgres.new_database())
        gateways = [here.gateway_url, second_gateway]

        # Different requests on both gateways at once, and one request on both at once.
        with ThreadPoolExecutor(8) as threads:
            own = list(threads.map(lambda n: ask(gateways[n % 2], f"own {n}", f"own-{n}"), range(8)))
            same = list(threads.map(lambda n: ask(gateways[n % 2], "the same", "the-same"), range(8)))
        assert [answer.status_code for answer in own] == [200] * 8
        assert {answer.status_code for answer in same} <= {200, 409}, [answer.text for answer in same]
        runs = here.runs_by_prompt()
        assert runs == {**{f"own {n}": 1 for n in range(8)}, "the same": 1}
        here.wait_for(lambda: here.earned_atomic() == 9 * PRICE_ATOMIC, here.running["settle"], "not settled")

        # One payment at both sellers: the second knows it from the first.
        header = payment_of(here, "one payment")
        body = {**body_of("one payment"), "model": MODEL}
        sellers = [here.seller_url, second_seller]
        with ThreadPoolExecutor(8) as threads:
            paid = list(threads.map(lambda n: pay(sellers[n % 2], header, body), range(8)))
        assert {answer.status_code for answer in paid} <= {200, 409, 503}, [answer.text for answer in paid]
        assert here.runs_by_prompt()["one payment"] == 1
        here.wait_for(lambda: here.earned_atomic() == 10 * PRICE_ATOMIC, here.running["settle"], "not settled")

        spare = payment_of(here, "without a store")
        postgres.stop(crash=True)
        try:
            for url in gateways:
                answer = ask(url, "without a store", "without-a-store")
                assert answer.status_code == 503, answer.text
                assert answers(f"{url}/healthz")
            for url in sellers:
                refused = pay(url, spare, {**body_of("without a store"), "model": MODEL})
                assert refused.status_code == 503, refused.text
                assert "retry-after" in refused.headers
                assert answers(f"{url}/v1/models")
        finally:
            postgres.start()
        assert "without a store" not in here.runs_by_prompt()
        here.wait_for(
            lambda: ask(gateways[1], "with the store", "with-the-store").status_code == 200,
            here.running["serve-2"], "it did not come back",
        )  # fmt: skip
        here.wait_for(lambda: here.earned_atomic() == 11 * PRICE_ATOMIC, here.running["settle"], "not settled")


def payment_of(here: Town, prompt: str) -> str:
    """Sign a payment outside of the pool, for a client that pays both sellers with it."""
    from tests.paying import offer_in, sign_payment

    asked = httpx.post(
        f"{here.seller_url}/v1/chat/completions", json={**body_of(prompt), "model": MODEL}, timeout=PATIENCE_S
    )
    return sign_payment(here.wallet_key, offer_in(asked.headers["PAYMENT-REQUIRED"]))


def pay(url: str, header: str, body: dict[str, object]) -> httpx.Response:
    headers = {"PAYMENT-SIGNATURE": header}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)

"""Clients, model servers and stores that leave at every stage: whoever comes back gets its goods, and pays once."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.evm.devnet import Devnet
from tests.faults.asking import body_of, repeat_until_final
from tests.faults.audit import read_books
from tests.faults.place import Place, check_books, paid_for
from tests.faults.town import Town
from tests.patience import PATIENCE_S
from tests.warm import Warm


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, world: Devnet, warm: Warm) -> Iterator[dict[str, Place]]:
    built = {settle: Place(tmp_path_factory.mktemp(settle), world, warm, settle) for settle in ("auto", "async")}
    yield built
    for place in built.values():
        place.close()


def connect(here: Town, name: str, body: dict[str, Any], *, whole: bool = True) -> socket.socket:
    """Send a request, or all of it but its last bytes, over a connection of our own."""
    host, _, port = here.gateway_url.removeprefix("http://").partition(":")
    # The very bytes that the repetition will have.
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"x-farebox-request-id: {name}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.sendall(head.encode() + (data if whole else data[:-5]))
    return connection


@pytest.mark.parametrize("settle", ["auto", "async"])
@pytest.mark.parametrize("stage", ["in its request", "while the model works", "after the first bytes", "in the stream"])
def test_a_client_that_leaves_and_comes_back_gets_its_goods_for_one_price(
    places: dict[str, Place], settle: str, stage: str
) -> None:
    with places[settle].visit() as here:
        name, before_atomic = f"{settle}, leaves {stage}", here.earned_atomic()
        stream = stage in ("after the first bytes", "in the stream")
        knobs = {"x-test-hold": name} if stage == "while the model works" else {}
        if stage == "in the stream":
            knobs = {"x-test-hold": name, "x-test-hold-after-chunks": "3"}
        body = body_of(name, knobs, stream=stream)
        with connect(here, name, body, whole=stage != "in its request") as connection:
            if stage == "while the model works":
                here.wait_for(lambda: name in here.runs_by_prompt(), here.running["sell"], "the model did not run")
            elif stream:
                assert connection.recv(64).startswith(b"HTTP/1.1 200")
        here.release(name)
        answer = repeat_until_final(here, name, body)
        assert (answer.status, answer.code) == (200, ""), answer
        assert here.runs_by_prompt()[name] == 1
        check_books(here)
        assert paid_for(here, before_atomic) == 1


@pytest.mark.parametrize("settle", ["auto", "async"])
def test_a_model_server_that_dies_before_its_first_byte_is_not_paid_for_nothing(
    places: dict[str, Place], settle: str
) -> None:
    with places[settle].visit() as here:
        name, before_atomic = f"{settle}, the model dies", here.earned_atomic()
        with ThreadPoolExecutor(1) as threads:
            request = threads.submit(repeat_until_final, here, name, body_of(name, {"x-test-hold": name}))
            here.wait_for(lambda: name in here.runs_by_prompt(), here.running["sell"], "the model did not run")
            here.kill("model-server")
            here.start("model-server")
            # The repetition runs in the new one.
            here.release(name)
            answer = request.result()
        assert answer.status == 200, answer
        check_books(here)
        assert paid_for(here, before_atomic) == 1


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the store's write lock, as a process that hangs in a transaction would."""
    with closing(sqlite3.connect(file, timeout=PATIENCE_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("room", ["buyer", "seller"])
def test_a_store_that_is_locked_is_503_and_the_repetition_is_served_and_paid_once(
    places: dict[str, Place], room: str
) -> None:
    with places["auto"].visit() as here:
        name, before_atomic = f"locked {room}", here.earned_atomic()
        assert repeat_until_final(here, f"{name}, before", body_of(f"{name}, before")).status == 200
        url, headers = f"{here.gateway_url}/v1/chat/completions", {"x-farebox-request-id": name}
        with locked(here.pool_file if room == "buyer" else here.seller_file):
            refused = httpx.post(url, json=body_of(name), headers=headers, timeout=PATIENCE_S)
            assert refused.status_code == 503, refused.text
            assert "retry-after" in refused.headers
            assert httpx.get(f"{here.seller_url}/v1/models", timeout=PATIENCE_S).status_code == 200
        assert name not in here.runs_by_prompt()
        assert repeat_until_final(here, name, body_of(name)).status == 200
        check_books(here)
        assert paid_for(here, before_atomic) == 2


def test_a_pool_restored_from_a_backup_never_offers_a_spent_authorization_again(places: dict[str, Place]) -> None:
    with places["async"].visit() as here:
        backup = here.folder / "backup.db"
        with closing(sqlite3.connect(here.pool_file)) as source, closing(sqlite3.connect(backup)) as target:
            source.backup(target)
        used = [f"after the backup {number}" for number in range(3)]
        for name in used:
            assert repeat_until_final(here, name, body_of(name)).status == 200
        here.wait_for(lambda: not read_books(here).outstanding_atomic, here.running["settle"], "not settled")
        before_atomic = here.earned_atomic()
        here.kill("serve")
        for file in here.home.glob("buyer.db-*"):
            file.unlink()
        here.pool_file.write_bytes(backup.read_bytes())
        code, output = here.farebox("process", "--all", expect=None)
        assert code == 0, output
        here.start("serve")
        for number in range(3):
            name = f"after the restoration {number}"
            answer = repeat_until_final(here, name, body_of(name))
            # Refused, or served for an authorization of its own; never with one that was spent.
            assert answer.status in (200, 402, 503), answer
            assert (name in here.runs_by_prompt()) == (answer.status == 200)
        here.wait_for(lambda: not read_books(here).outstanding_atomic, here.running["settle"], "not settled")
        here.farebox("process", "--all")
        books = read_books(here)
        spent = {nonce for nonce, (state, _) in books.by_nonce.items() if state == "spent"}
        assert set(books.used_after) == spent
        assert here.earned_atomic() - before_atomic <= 3 * 1000
        here.kill(*list(here.running))
        places["async"].town = None

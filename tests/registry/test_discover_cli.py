"""Goal: the discover commands tell the truth to people and programs, and print nothing a stranger can misuse.

Method: the commands as a user types them, over an index filled by hand; strangers on loopback.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.address import address_text
from contracts.console import out
from contracts.storage import Connection
from gateway.cli import app
from registry.candidates import Candidate
from registry.card import Card
from registry.fetch import Fetcher, Unfetched
from registry.gather import gather
from registry.index import Index
from registry.probe import Probe
from registry.standing import Finding, store_survey
from registry.verification import OnChain, Step, judge
from tests.patience import PATIENCE_S
from tests.registry.shelf import CHAIN_ID, NOW_S, OWNER, STRANGER, WALLET, add_agent, agent, file_of, offer, shelf

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e[red]boo[/red]"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Give the user's home with an index of two agents: one verified seller, one that is all tricks."""
    monkeypatch.setenv("FAREBOX_HOME", str(tmp_path))
    monkeypatch.delenv("FAREBOX_RPC", raising=False)
    monkeypatch.setattr(out, "width", 300)
    with shelf(tmp_path) as index:
        files = {1: file_of(1, "https://seller.example/v1"), 2: file_of(2, "https://x.example", name=HOSTILE)}
        for number, data in files.items():
            add_agent(index, number, "data:application/json," + data.decode())

        async def fill() -> None:
            async with Fetcher() as fetcher:
                await gather(index.database, fetcher, NOW_S)

        asyncio.run(fill())
        index.database.transact(_survey)
        yield index


def _survey(connection: Connection) -> None:
    """Keep the survey of agent 1 as if its seller had answered."""
    row = connection.execute("SELECT uri_key, uri FROM agents WHERE agent_id = 1").fetchone()
    candidate = Candidate(agent(1), OnChain(OWNER, WALLET, row["uri"]), row["uri_key"], Card())
    probe = Probe("https://seller.example/v1", "https://seller.example/v1", "payable", (offer(),), 402, 7, None, ("m",))
    steps = [Step(name, "ok", "fine") for name in ("chain", "file", "domain", "payee")]
    store_survey(connection, candidate, [Finding(probe, judge(steps))], NOW_S, set())


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["discover", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def document(*arguments: str) -> dict[str, Any]:
    code, text = run(*arguments, "--json")
    assert code == 0, text
    found: dict[str, Any] = json.loads(text)
    return found


def test_search_tells_programs_who_what_and_how_much_and_marks_the_words_of_strangers() -> None:
    first, second = document("search", "code", "--explain")["results"]
    assert first["agent"] == str(agent(1))
    assert (first["state"], first["verdict"], first["price_atomic"]) == ("payable", "verified", "1000")
    assert first["price"] == "0.001 USDC"
    assert first["pay_to"] == address_text(WALLET)
    assert first["untrusted"]["name"] == "Coder 1"
    assert set(first["terms"]) == {"text", "liveness", "verification", "reputation", "price"}
    assert (second["state"], second["verdict"], second["price"]) == ("unprobed", "unknown", None)
    assert set(first) & {"name", "description"} == set()


def test_searching_and_showing_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a search left this machine")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(document("search", "code", "--explain")["results"]) == 2
    assert document("show", f"{CHAIN_ID}:1")["agent"] == str(agent(1))
    assert document("reputation", f"{CHAIN_ID}:1")["score"] is None


def test_hostile_text_is_printed_escaped_and_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    # Wide enough that no name is broken into lines.
    monkeypatch.setenv("COLUMNS", "300")
    for arguments in (("search", "code"), ("show", f"{CHAIN_ID}:2"), ("uri", f"{CHAIN_ID}:2")):
        code, text = run(*arguments)
        assert code == 0
        assert "<script>alert(1)</script>[2J[red]boo[/red]" in text
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_the_id_to_copy_is_in_one_piece_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 60)
    assert f"{CHAIN_ID}:1" in run("search", "code", "--explain")[1]


def test_search_by_price_and_proof_leaves_out_the_others() -> None:
    assert [found["agent"] for found in document("search", "code", "--verified")["results"]] == [str(agent(1))]
    assert document("search", "code", "--max-price", "0.0001")["results"] == []
    assert document("search", "code", "--network", "base")["results"] == []
    assert document("search", "painting")["results"] == []
    assert "nothing found" in run("search", "painting")[1]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("search", "---"), "QUERY"),
        (("search", "code", "--limit", "0"), "--limit"),
        (("search", "code", "--max-price", "cheap"), "--max-price"),
        (("search", "code", "--network", "moon"), "--network"),
        (("show", "nobody"), "AGENT"),
        (("show", "31337:99"), "discover sync --chain eip155:31337"),
        (("sync", "--chain", "moon"), "--chain"),
        (("sync", "--chain", "eip155:31337"), "--rpc"),
        (("verify", "31337:1", "--pin", "0x12"), "--pin"),
        (("reputation", "31337:1", "--trust", "bob"), "--trust"),
        (("count", "--chain", "base"), "base"),
        (("import", "missing.jsonl"), "missing.jsonl"),
        (("uri", "ipfs://x", "--ipfs-gateway", "http://127.0.0.1:8080"), "--allow-private, too"),
        (("verify", "31337:1", "--ipfs-gateway", "ipfs.io"), "--ipfs-gateway"),
    ],
)
def test_a_mistake_is_named_and_ends_with_the_code_of_misuse(arguments: tuple[str, ...], field: str) -> None:
    code, text = run(*arguments)
    assert code == 2
    assert field in text
    assert "Traceback" not in text


def test_show_tells_what_the_index_has_of_an_agent() -> None:
    found = document("show", str(agent(1)))
    assert (found["owner"], found["wallet"]) == (address_text(OWNER), address_text(WALLET))
    assert found["file"]["names_this_id"] is True
    assert (found["standing"]["verdict"], found["standing"]["price"]) == ("verified", "0.001 USDC")


def test_reputation_is_unrated_until_somebody_who_counts_says_something(home: Index) -> None:
    assert document("reputation", f"{CHAIN_ID}:1")["score"] is None
    assert "unrated" in run("reputation", f"{CHAIN_ID}:1")[1]
    home.database.transact(
        lambda connection: connection.execute(
            "INSERT INTO feedback_events (chain_id, block, log_index, transaction_hash, block_hash, time_s, kind,"
            " agent_id, client, feedback_index, value, decimals, tag1) VALUES (?, 1, 0, x'00', x'00', ?, 'given', 1, ?,"
            " 1, '80', 0, 'starred')",
            (CHAIN_ID, NOW_S, STRANGER),
        )
    )
    unrated = document("reputation", f"{CHAIN_ID}:1")
    assert (unrated["score"], unrated["tags"][0]["raw"], unrated["tags"][0]["paid"]) == (None, 1, 0)
    rated = document("reputation", f"{CHAIN_ID}:1", "--trust", address_text(STRANGER))
    assert rated["score"] == pytest.approx(0.8)


def test_an_exported_index_searches_the_same_on_a_machine_without_a_network(tmp_path: Path) -> None:
    here = document("search", "code")
    document("export", str(tmp_path / "index.jsonl.gz"))
    elsewhere = ("--index", str(tmp_path / "elsewhere.db"))
    document("import", str(tmp_path / "index.jsonl.gz"), *elsewhere)
    there = document("search", "code", *elsewhere)
    assert [found["agent"] for found in there["results"]] == [found["agent"] for found in here["results"]]
    assert there["results"][0]["verdict"] == "verified"


def test_without_an_index_the_user_hears_how_to_make_one(tmp_path: Path) -> None:
    code, text = run("search", "code", "--index", str(tmp_path / "none.db"))
    assert code == 2
    assert "discover sync" in text
    assert not (tmp_path / "none.db").exists()


def test_the_gateway_of_the_environment_is_asked_by_every_command(home: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    content = file_of(3, "https://seller.example/v1")
    cid = "b" + base64.b32encode(b"\x01\x55\x12\x20" + hashlib.sha256(content).digest()).decode().lower().rstrip("=")
    add_agent(home, 3, f"ipfs://{cid}")
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        monkeypatch.setenv("FAREBOX_IPFS_GATEWAY", f"http://127.0.0.1:{server.getsockname()[1]}/")
        for arguments in (("uri", f"ipfs://{cid}"), ("verify", f"{CHAIN_ID}:3")):
            asked = pool.submit(_serve_once, server, content)
            monkeypatch.setattr(Fetcher, "ask", _silent)
            code, text = run(*arguments, "--allow-private")
            assert asked.result(PATIENCE_S) == f"GET /ipfs/{cid}?format=raw HTTP/1.1", text
            assert code == 0, text


async def _silent(*_: object, **__: object) -> None:
    raise Unfetched("unreachable")


def _serve_once(server: socket.socket, content: bytes) -> str:
    """Answer one request with `content`, and return its first line. A stand-in for an IPFS gateway."""
    connection, _ = server.accept()
    with connection:
        line = connection.recv(65_536).partition(b"\r\n")[0].decode()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(content) + content
        )
    return line

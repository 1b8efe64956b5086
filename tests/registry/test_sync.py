"""Sync: whatever the endpoints allow, lose or make up, the index ends as a clean run leaves it, byte for byte."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ChainUnavailable, RequestInProgress, UsageError
from contracts.evm.devnet import Devnet
from contracts.evm.registries import place_registries
from contracts.networks import Network
from registry import reading
from registry.chains import chain_of
from registry.index import open_index
from registry.sync import Progress
from tests.patience import PATIENCE_S
from tests.registry.ledger_of_agents import IDENTITY, REPUTATION, Registrar
from tests.registry.odd_node import OddNode
from tests.registry.syncing import CHAIN, Books

URI_UPDATED = "0x3a2c7fff"
REGISTERED = "0xca52e62c"
REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def town() -> Iterator[Registrar]:
    """A chain with twenty agents and some eighty events; no test changes it."""
    with Devnet() as devnet:
        place_registries(devnet)
        registrar = Registrar(devnet)
        registrar.town()
        yield registrar


@pytest.fixture(scope="module")
def clean(town: Registrar, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The export of the town's index as one honest endpoint gives it at one go."""
    return Books(tmp_path_factory.mktemp("clean")).clean(town.devnet.rpc_url)


@pytest.fixture
def own_town(own_chain: Devnet) -> Registrar:
    """The same on a chain of its own, for tests that re-organise it."""
    place_registries(own_chain)
    registrar = Registrar(own_chain)
    registrar.town()
    return registrar


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_the_index_holds_what_the_chain_says_of_every_agent(town: Registrar, books: Books) -> None:
    report = books.sync("own", [town.devnet.rpc_url])
    assert report.agent_count == 20
    for agent_id, owner, wallet, uri in books.rows("own", "SELECT agent_id, owner, wallet, uri FROM agents"):
        on_chain = {
            signature: town.call(IDENTITY, f"{signature}(uint256)", agent_id, returns=(kind,))
            for signature, kind in (("ownerOf", "address"), ("getAgentWallet", "address"), ("tokenURI", "string"))
        }
        shown = {"ownerOf": "0x" + owner.hex(), "getAgentWallet": "0x" + (wallet or bytes(20)).hex(), "tokenURI": uri}
        assert shown == on_chain
    assert books.rows("own", "SELECT agent_id, key, value FROM metadata ORDER BY agent_id") == [
        (7, "x402.supported", b"\x01"),
        (11, "x402.supported", b"\x01"),
    ]
    assert books.rows("own", "SELECT kind, count(*) FROM feedback_events GROUP BY kind ORDER BY kind") == [
        ("answered", 1),
        ("given", 10),
        ("revoked", 1),
    ]


def test_a_second_sync_asks_for_no_log_again(town: Registrar, books: Books) -> None:
    with OddNode(town.devnet.rpc_url) as node:
        books.sync("own", [node.url])
        before = node.calls["eth_getLogs"]
        assert books.sync("own", [node.url]).events == 0
        assert node.calls["eth_getLogs"] == before


@pytest.mark.parametrize(
    "refusal",
    [
        (-32000, "block range is too wide"),
        (-32600, "You can make eth_getLogs requests with up to a 8 block range"),
        (-32602, "eth_getLogs is limited to a 10 range"),
        (-32005, "query returned more than 10000 results"),
        (-32000, "exceed maximum block range: 50"),
        (35, "ranges over 12 blocks are not supported on freetier"),
        (-32614, "something nobody has heard of"),
        None,
    ],
)
def test_a_limited_endpoint_is_asked_for_less(town: Registrar, books: Books, clean: bytes, refusal: Any) -> None:
    with OddNode(town.devnet.rpc_url, range_max=8, refusal=refusal) as node:
        books.sync("own", [node.url])
    assert max(node.spans) <= 8
    assert books.exported("own") == clean


def test_what_an_endpoint_allows_is_known_to_the_next_sync(town: Registrar, books: Books) -> None:
    with OddNode(town.devnet.rpc_url, range_max=8) as node:
        books.sync("own", [node.url])
        with open_index(books.folder / "own.db") as index:
            index.roll_back(CHAIN.chain_id, 10)
        node.calls.clear()
        node.spans.clear()
        books.sync("own", [node.url])
        assert node.calls["eth_getLogs"] == len(node.spans)


def test_an_endpoint_that_tells_few_logs_at_once_is_asked_for_fewer_blocks(
    town: Registrar, books: Books, clean: bytes
) -> None:
    with OddNode(town.devnet.rpc_url, logs_max=20, refusal=(-32000, "Log response size exceeded")) as node:
        books.sync("own", [node.url])
    assert books.exported("own") == clean


def hides_updates(log: dict[str, Any]) -> bool:
    return bool(log["topics"][0].startswith(URI_UPDATED))


def hides_an_agent(log: dict[str, Any]) -> bool:
    return int(log["topics"][-1 if log["topics"][0].startswith("0xddf252ad") else 1], 16) == 6


def hides_a_rating(log: dict[str, Any]) -> bool:
    return bool(log["address"] == REPUTATION.lower() and log["topics"][0].startswith("0x6a4a6174"))


@pytest.mark.parametrize("ways", [{"cut_at": 9}, {"blind_beyond": 12}], ids=str)
def test_the_only_endpoint_cannot_leave_out_logs_for_long(
    town: Registrar, books: Books, clean: bytes, ways: dict[str, Any]
) -> None:
    with OddNode(town.devnet.rpc_url, **ways) as node:
        report = books.sync("own", [node.url])
    assert "left out logs" in " ".join(report.warnings)
    assert books.exported("own") == clean


@pytest.mark.parametrize(
    "ways",
    [
        {"cut_at": 9},
        {"blind_beyond": 1},
        {"hides": hides_an_agent},
        {"hides": hides_updates},
        {"hides": hides_a_rating},
        {"hides": lambda log: log["topics"][0].startswith("0xddf252ad") and int(log["topics"][1], 16) != 0},
    ],
    ids=["cut", "blind", "agent", "updates", "ratings", "transfers"],
)
def test_everything_a_liar_told_is_read_again_elsewhere(
    town: Registrar, books: Books, clean: bytes, ways: dict[str, Any]
) -> None:
    with OddNode(town.devnet.rpc_url, **ways) as liar:
        report = books.sync("own", [liar.url, town.devnet.rpc_url])
    assert any("left out logs" in warning for warning in report.warnings)
    assert books.exported("own") == clean


def test_an_agent_that_was_never_registered_is_forgotten(town: Registrar, books: Books, clean: bytes) -> None:
    found = town.devnet.rpc("eth_getLogs", {"address": IDENTITY, "fromBlock": "0x0"})
    real = next(log for log in found if log["topics"][0].startswith(REGISTERED))
    made_up = real | {"topics": [real["topics"][0], "0x" + f"{99:064x}", real["topics"][2]], "logIndex": "0x77"}
    with OddNode(town.devnet.rpc_url, adds=[made_up]) as liar:
        books.sync("own", [liar.url, town.devnet.rpc_url])
    assert books.exported("own") == clean


def test_an_endpoint_that_only_lies_is_named(town: Registrar, books: Books) -> None:
    with OddNode(town.devnet.rpc_url, hides=hides_an_agent) as liar:
        with pytest.raises(ChainUnavailable, match=r"127\.0\.0\.1#.* leaves out logs"):
            books.sync("own", [liar.url])


def test_another_endpoint_goes_on_where_one_dies(town: Registrar, books: Books, clean: bytes) -> None:
    with OddNode(town.devnet.rpc_url, range_max=10, dies_after=4) as dying:
        with OddNode(town.devnet.rpc_url, range_max=10) as other:
            books.sync("own", [dying.url, other.url])
    assert dying.spans
    assert books.exported("own") == clean


def test_a_sync_whose_only_endpoint_dies_goes_on_where_it_was(town: Registrar, books: Books, clean: bytes) -> None:
    with OddNode(town.devnet.rpc_url, range_max=10, dies_after=4) as dying:
        with pytest.raises(ChainUnavailable, match="got us further"):
            books.sync("own", [dying.url])
    kept = sum(books.rows("own", "SELECT sum(last_block - first_block + 1) FROM ranges")[0])
    assert kept > 0
    with OddNode(town.devnet.rpc_url) as other:
        books.sync("own", [other.url])
    assert sum(other.spans) <= int(town.devnet.rpc("eth_blockNumber"), 16) + 1 - kept
    assert books.exported("own") == clean


def test_a_busy_endpoint_is_given_time(town: Registrar, books: Books, clean: bytes) -> None:
    with OddNode(town.devnet.rpc_url, range_max=20, busy_every=3) as busy:
        books.sync("own", [busy.url])
    assert books.exported("own") == clean


def test_an_endpoint_that_is_behind_is_not_believed_about_the_latest_blocks(
    town: Registrar, books: Books, clean: bytes
) -> None:
    with OddNode(town.devnet.rpc_url, lag_blocks=7) as behind, OddNode(town.devnet.rpc_url) as other:
        books.sync("own", [behind.url, town.devnet.rpc_url, other.url])
    assert books.exported("own") == clean


def test_of_two_endpoints_the_index_goes_as_far_as_both_have_blocks_and_skips_none(
    town: Registrar, books: Books, clean: bytes
) -> None:
    head = int(town.devnet.rpc("eth_blockNumber"), 16)
    with OddNode(town.devnet.rpc_url, lag_blocks=20) as behind:
        urls = [town.devnet.rpc_url, behind.url]
        report = books.sync("own", urls)
        assert report.head_block == head - 20
        assert report.warnings == ["the endpoints are 20 blocks apart; the index goes as far as most of them"]
        behind.ways.lag_blocks = 0
        assert books.sync("own", urls).head_block == head
    assert books.exported("own") == clean


def test_a_head_that_one_of_three_made_up_is_not_believed(town: Registrar, books: Books, clean: bytes) -> None:
    head = int(town.devnet.rpc("eth_blockNumber"), 16)

    def fifty_more(params: list[Any], block: Any) -> Any:
        number = head + 50 if params[0] == "latest" else int(params[0], 16)
        made_up = {"number": hex(number), "timestamp": "0x1"}
        return block if number <= head else made_up | {"hash": other_hash(made_up)}

    with OddNode(town.devnet.rpc_url) as liar, OddNode(town.devnet.rpc_url) as other:
        liar.inject("eth_getBlockByNumber", "lie", times=10**6, lie=fifty_more)
        report = books.sync("own", [liar.url, town.devnet.rpc_url, other.url])
    assert report.head_block == head
    assert books.exported("own") == clean


def test_two_endpoints_that_show_different_blocks_are_named_and_neither_is_believed(
    town: Registrar, books: Books
) -> None:
    with OddNode(town.devnet.rpc_url) as liar:
        liar.inject(
            "eth_getBlockByNumber", "lie", times=10**6, lie=lambda _, block: block | {"hash": other_hash(block)}
        )
        with pytest.raises(ChainUnavailable, match="do not agree about the latest blocks"):
            books.sync("own", [liar.url, town.devnet.rpc_url])
    assert books.rows("own", "SELECT count(*) FROM ranges") == [(0,)]


def other_hash(block: Any) -> str:
    return "0x" + int(block["number"], 16).to_bytes(32, "big").hex()


def test_an_index_does_not_go_back_when_its_endpoint_does(town: Registrar, books: Books, clean: bytes) -> None:
    books.sync("own", [town.devnet.rpc_url])
    with OddNode(town.devnet.rpc_url, lag_blocks=7) as behind:
        report = books.sync("own", [behind.url])
    assert "7 blocks behind" in report.warnings[0]
    assert books.exported("own") == clean


@pytest.mark.parametrize("ahead", [10**6, 2**62, 2**70])
def test_a_head_that_was_made_up_does_not_stop_the_next_sync(
    town: Registrar, books: Books, clean: bytes, ahead: int
) -> None:
    def made_up(params: list[Any], block: Any) -> Any:
        number = int(block["number"], 16) + ahead if params[0] == "latest" else int(params[0], 16)
        return {"number": hex(number), "hash": "0x" + number.to_bytes(32, "big").hex(), "timestamp": "0x1"}

    with OddNode(town.devnet.rpc_url) as liar:
        liar.inject("eth_getBlockByNumber", "lie", times=10**6, lie=made_up)
        liar.inject("eth_getLogs", "refuse before", times=10**6, message="busy")
        with pytest.raises(ChainUnavailable):
            books.sync("own", [liar.url])
    report = books.sync("own", [town.devnet.rpc_url])
    assert report.agent_count == 20
    assert books.exported("own") == clean


def test_a_number_of_agents_that_cannot_be_is_not_counted_with(town: Registrar, books: Books) -> None:
    with OddNode(town.devnet.rpc_url) as liar:
        liar.inject("eth_getStorageAt", "lie", times=10**6, lie=lambda *_: "0x" + "f" * 64)
        with pytest.raises(ChainUnavailable, match="no RPC endpoint got us further"):
            books.sync("own", [liar.url])


def test_an_endpoint_of_another_chain_is_never_asked_for_logs(town: Registrar, books: Books) -> None:
    with OddNode(town.devnet.rpc_url, chain_id=8453) as stranger:
        report = books.sync("own", [stranger.url, town.devnet.rpc_url])
        assert stranger.calls["eth_getLogs"] == 0
        with pytest.raises(ChainUnavailable, match="serves another chain"):
            books.sync("other", [stranger.url])
    assert "serves another chain" in report.warnings[0]


def test_a_chain_without_registries_is_refused(devnet: Devnet, books: Books) -> None:
    with pytest.raises(UsageError, match="no identity registry"):
        books.sync("own", [devnet.rpc_url])
    with pytest.raises(UsageError, match=r"no ERC-8004 registries are known on eip155:999") as refused:
        chain_of(Network(999))
    assert "base-sepolia" in refused.value.advice


def test_contracts_that_are_no_registries_are_refused_and_a_busy_node_is_not_taken_for_that(
    town: Registrar, books: Books, clean: bytes
) -> None:
    with OddNode(town.devnet.rpc_url) as node:
        node.inject("eth_call", "lie", times=2, lie=lambda params, result: "0x")
        with pytest.raises(UsageError, match="are not ERC-8004 registries"):
            books.sync("other", [node.url])
        node.inject("eth_call", "refuse before", message="over capacity")
        books.sync("own", [node.url, town.devnet.rpc_url])
    assert books.exported("own") == clean


def test_agents_are_counted_where_the_registry_keeps_its_counter_elsewhere(
    town: Registrar, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "COUNTER_SLOT", 12345)
    assert books.sync("own", [town.devnet.rpc_url]).agent_count == 20


def test_the_newest_agents_are_found_first(town: Registrar, books: Books) -> None:
    seen: list[list[int]] = []

    def look(_: Progress) -> None:
        seen.append([row[0] for row in books.rows("own", "SELECT agent_id FROM agents WHERE owner IS NOT NULL")])

    with OddNode(town.devnet.rpc_url, range_max=30) as node:
        books.sync("own", [node.url], look)
    assert not {1, 2, 5} & set(seen[0])
    assert set(seen[-1]) == set(range(20))


class Killed(BaseException):
    """Ends a sync as the end of its process would: nothing of ours handles it."""


def test_a_sync_may_be_killed_after_every_window(town: Registrar, books: Books, clean: bytes) -> None:
    def die(_: Progress) -> None:
        raise Killed

    kills = 0
    with OddNode(town.devnet.rpc_url, range_max=7) as node:
        while True:
            try:
                books.sync("own", [node.url], die)
                break
            except Killed:
                kills += 1
    assert kills > 5
    assert books.exported("own") == clean


def test_two_syncs_of_one_chain_do_not_run_at_once(town: Registrar, books: Books) -> None:
    refusals: list[RequestInProgress] = []

    def again(_: Progress) -> None:
        with open_index(books.folder / "own.db") as index:
            with pytest.raises(RequestInProgress) as refused, index.syncing(CHAIN.chain_id):
                pass
            refusals.append(refused.value)

    books.sync("own", [town.devnet.rpc_url], again)
    assert refusals


def reorganise(registrar: Registrar, depth: int) -> None:
    """Replace the last `depth` blocks by one more, in which other things happen."""
    devnet = registrar.devnet
    devnet.rpc("anvil_reorg", depth, [])
    registrar.register(3, "https://after-the-reorg.example/card.json")
    registrar.rate(9, 0)


def test_a_reorg_of_thirty_blocks_leaves_no_trace(own_town: Registrar, books: Books) -> None:
    url = own_town.devnet.rpc_url
    books.sync("own", [url])
    before = books.exported("own")
    reorganise(own_town, 30)
    report = books.sync("own", [url])
    head = int(own_town.devnet.rpc("eth_blockNumber"), 16)
    assert report.rolled_back_to == head - 2 - 30
    assert report.warnings == [], "what was taken back is no lie of the endpoint's"
    assert books.exported("own") == books.clean(url) != before


def test_a_reorg_deeper_than_every_checkpoint_is_survived(own_town: Registrar, books: Books) -> None:
    url = own_town.devnet.rpc_url
    books.sync("own", [url])
    with open_index(books.folder / "own.db") as index:
        index.database.transact(lambda connection: connection.execute("DELETE FROM checkpoints WHERE block < 40"))
    reorganise(own_town, 40)
    books.sync("own", [url])
    assert books.exported("own") == books.clean(url)


def test_a_reorg_in_the_middle_of_a_sync_is_noticed(own_town: Registrar, books: Books) -> None:
    url, windows = own_town.devnet.rpc_url, []

    def move(progress: Progress) -> None:
        windows.append(progress)
        if len(windows) == 3:
            reorganise(own_town, 30)

    with OddNode(url, range_max=6) as node:
        books.sync("own", [node.url], move)
    assert books.exported("own") == books.clean(url)


def test_a_reorg_between_a_kill_and_the_next_sync_is_noticed(own_town: Registrar, books: Books) -> None:
    url, windows = own_town.devnet.rpc_url, []

    def die(progress: Progress) -> None:
        windows.append(progress)
        if len(windows) == 3:
            raise Killed

    with OddNode(url, range_max=6) as node, pytest.raises(Killed):
        books.sync("own", [node.url], die)
    reorganise(own_town, 30)
    books.sync("own", [url])
    assert books.exported("own") == books.clean(url)


def test_an_upgrade_of_the_registry_is_told(own_town: Registrar, books: Books) -> None:
    url = own_town.devnet.rpc_url
    books.sync("own", [url])
    own_town.send(0, IDENTITY, "upgradeToAndCall(address,bytes)", REPUTATION, b"")
    report = books.sync("own", [url])
    assert "was upgraded" in report.warnings[0]
    assert books.rows("own", "SELECT kind FROM identity_events WHERE agent_id IS NULL AND kind = 'upgraded'")


_SYNC = """
import asyncio, sys
from pathlib import Path
from registry.index import open_index
from registry.sync import sync_chain
from tests.registry.syncing import CHAIN
with open_index(Path(sys.argv[1])) as index:
    asyncio.run(sync_chain(index, CHAIN, [sys.argv[2]]))
"""


def test_killed_processes_leave_an_index_that_the_next_one_finishes(
    town: Registrar, books: Books, clean: bytes
) -> None:
    command = [sys.executable, "-c", _SYNC, str(books.folder / "own.db")]
    with OddNode(town.devnet.rpc_url, range_max=3) as node:
        for answers in (3, 4, 5):
            node.spans.clear()
            process = subprocess.Popen([*command, node.url], cwd=REPO)
            while len(node.spans) < answers:
                assert process.poll() is None, "it was to be killed, and ended by itself"
                time.sleep(0.001)
            process.kill()
            process.wait()
        subprocess.run([*command, node.url], cwd=REPO, check=True, timeout=PATIENCE_S)
    assert books.exported("own") == clean

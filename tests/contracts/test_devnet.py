"""The local chain starts ready for use, keeps its promises while it runs, and leaves nothing behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_utils.crypto import keccak

from contracts.evm.devnet import Devnet, DevnetFailed
from contracts.evm.preinstalls import PERMIT2
from contracts.evm.rpc import RpcRefused
from contracts.evm.toolchain import ToolMissing
from tests.patience import PATIENCE_S

PERMIT2_ADDRESS = "0x" + PERMIT2.hex()


def permit2_separator(chain_id: int) -> str:
    types = ["bytes32", "bytes32", "uint256", "address"]
    type_hash = keccak(text="EIP712Domain(string name,uint256 chainId,address verifyingContract)")
    return "0x" + keccak(encode(types, [type_hash, keccak(text="Permit2"), chain_id, PERMIT2_ADDRESS])).hex()


def read_separator(devnet: Devnet, contract: str) -> str:
    selector = "0x" + keccak(text="DOMAIN_SEPARATOR()")[:4].hex()
    separator: str = devnet.rpc("eth_call", {"to": contract, "data": selector}, "latest")
    return separator


def latest_timestamp_s(devnet: Devnet) -> int:
    return int(devnet.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


def answers(rpc_url: str) -> bool:
    port = httpx.URL(rpc_url).port
    assert port is not None
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_ten_accounts_are_funded_and_their_keys_are_theirs(devnet: Devnet) -> None:
    assert len({account.address for account in devnet.accounts}) == 10
    for account in devnet.accounts:
        assert Account.from_key(account.key).address == account.address
        assert int(devnet.rpc("eth_getBalance", account.address, "latest"), 16) >= 10**21


def test_account_keys_do_not_show_in_its_repr(devnet: Devnet) -> None:
    assert devnet.accounts[0].key.hex() not in repr(devnet.accounts[0])


def test_minted_dollars_arrive_in_atomic_units(chain: Devnet) -> None:
    stranger = Account.create().address
    chain.mint(stranger, 1_250_000)
    assert chain.balance_of(stranger) == 1_250_000


def test_minting_leaves_the_accounts_transaction_counts_alone(chain: Devnet) -> None:
    counts = [chain.rpc("eth_getTransactionCount", account.address, "latest") for account in chain.accounts]
    chain.mint(chain.accounts[0].address, 1)
    assert [chain.rpc("eth_getTransactionCount", account.address, "latest") for account in chain.accounts] == counts


def test_gas_money_is_set_to_the_wei_asked_for(chain: Devnet) -> None:
    stranger = Account.create().address
    chain.fund_gas(stranger, 12_345)
    assert int(chain.rpc("eth_getBalance", stranger, "latest"), 16) == 12_345


def test_reverting_restores_the_balances_and_leaves_the_clock_at_now(chain: Devnet) -> None:
    stranger = Account.create().address
    before = chain.snapshot()
    chain.mint(stranger, 7)
    chain.rpc("evm_increaseTime", 5_000)
    chain.mine()
    assert latest_timestamp_s(chain) > time.time() + 4_000

    chain.revert(before)
    chain.mine()

    assert chain.balance_of(stranger) == 0
    assert abs(latest_timestamp_s(chain) - time.time()) < 60


def test_an_old_snapshot_does_not_make_the_chain_clock_lag() -> None:
    with Devnet() as devnet:
        devnet.rpc("evm_setTime", int(time.time()) - 10_000)
        devnet.mine()
        old = devnet.snapshot()
        devnet.revert(old)
        devnet.mine()
        assert abs(latest_timestamp_s(devnet) - time.time()) < 60


def test_a_snapshot_serves_once(chain: Devnet) -> None:
    spent = chain.snapshot()
    chain.revert(spent)
    with pytest.raises(DevnetFailed, match="no snapshot"):
        chain.revert(spent)


def test_mining_adds_that_many_blocks(chain: Devnet) -> None:
    height = int(chain.rpc("eth_blockNumber"), 16)
    chain.mine(3)
    assert int(chain.rpc("eth_blockNumber"), 16) == height + 3


def test_permit2_stands_at_its_address_with_this_chains_domain_separator(devnet: Devnet) -> None:
    assert read_separator(devnet, PERMIT2_ADDRESS) == permit2_separator(devnet.chain_id)


def test_another_chain_id_is_told_by_the_node_and_by_permit2() -> None:
    with Devnet(chain_id=84532) as devnet:
        assert devnet.network == "eip155:84532"
        assert int(devnet.rpc("eth_chainId"), 16) == 84532
        assert read_separator(devnet, PERMIT2_ADDRESS) == permit2_separator(84532)


def test_with_a_block_time_a_transaction_waits_and_minting_does_not() -> None:
    with Devnet(block_time_s=3600) as devnet:
        payer, payee = devnet.accounts[0].address, devnet.accounts[1].address
        transaction = devnet.rpc("eth_sendTransaction", {"from": payer, "to": payee, "value": "0x1"})
        assert devnet.rpc("eth_getTransactionReceipt", transaction) is None

        devnet.mint(payer, 5)

        assert devnet.balance_of(payer) == 5
        assert devnet.rpc("eth_getTransactionReceipt", transaction)["status"] == "0x1"


def test_a_state_file_carries_the_chain_into_the_next_run(tmp_path: Path) -> None:
    state_file = tmp_path / "state.json"
    with Devnet(state_file=state_file) as devnet:
        token, payer = devnet.token, devnet.accounts[0].address
        devnet.mint(payer, 11)
    with Devnet(state_file=state_file) as devnet:
        assert devnet.token == token
        assert devnet.balance_of(payer) == 11


def test_a_log_file_of_ones_own_stays(tmp_path: Path) -> None:
    log_file = tmp_path / "anvil.log"
    with Devnet(log_file=log_file):
        pass
    assert "Listening on" in log_file.read_text()


def test_stopping_ends_the_chain_and_a_second_stop_is_harmless() -> None:
    devnet = Devnet().start()
    rpc_url = devnet.rpc_url
    assert answers(rpc_url)
    devnet.stop()
    devnet.stop()
    assert not answers(rpc_url)
    with pytest.raises(DevnetFailed, match="not running"):
        devnet.rpc("eth_chainId")


def test_starting_a_running_chain_again_is_refused_and_keeps_it_running() -> None:
    with Devnet() as devnet:
        with pytest.raises(DevnetFailed, match="already running"):
            devnet.start()
        assert answers(devnet.rpc_url)


def test_a_program_that_ends_without_stopping_leaves_no_chain_behind() -> None:
    program = "from contracts.evm.devnet import Devnet; print(Devnet().start().rpc_url); devnet = 1 / 0"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert "ZeroDivisionError" in done.stderr
    assert not answers(done.stdout.strip())


def test_a_refused_request_carries_the_nodes_code_and_message(devnet: Devnet) -> None:
    with pytest.raises(RpcRefused) as refused:
        devnet.rpc("eth_noSuchMethod")
    assert refused.value.rpc_code == -32601


def test_a_missing_anvil_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAREBOX_DEVNET_HOME", str(tmp_path))
    with pytest.raises(ToolMissing, match="npm packages are not installed") as missing:
        Devnet().start()
    assert "make setup" in missing.value.advice


def test_an_override_that_is_no_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAREBOX_ANVIL", str(tmp_path / "absent"))
    with pytest.raises(ToolMissing, match="absent") as missing:
        Devnet().start()
    assert "FAREBOX_ANVIL" in missing.value.advice


def test_an_anvil_that_dies_at_once_is_reported_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    anvil = tmp_path / "anvil"
    anvil.write_text("#!/bin/sh\necho out of memory\nexit 3\n")
    anvil.chmod(0o755)
    monkeypatch.setenv("FAREBOX_ANVIL", str(anvil))
    with pytest.raises(DevnetFailed, match=r"code 3: out of memory"):
        Devnet().start()

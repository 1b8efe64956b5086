"""A local chain of one's own: anvil on a free port, with Multicall3, Permit2, the x402 proxies and two test tokens.

For demonstrations and tests only: the ten accounts' keys are derived from a public phrase that everybody knows.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from contracts.address import Address, address_text, parse_address
from contracts.errors import LocalError
from contracts.evm.deploy import deploy
from contracts.evm.preinstalls import preinstalled_code
from contracts.evm.rpc import RpcRefused
from contracts.evm.toolchain import anvil_binary
from contracts.interrupts import held_back
from contracts.keccak import keccak
from contracts.limits import (
    DEVNET_LOG_TAIL_CHARS,
    DEVNET_POLL_S,
    DEVNET_RECEIPT_TIMEOUT_S,
    DEVNET_RPC_TIMEOUT_S,
    DEVNET_START_TIMEOUT_S,
    DEVNET_STOP_TIMEOUT_S,
)
from contracts.nesting import recursion_limit_kept
from contracts.networks import PERMIT2
from contracts.tls import tls_context
from contracts.typed_data import word_of_address, word_of_uint

__all__ = ["DevAccount", "Devnet", "DevnetFailed"]

_PHRASE = "test test test test test test test test test test test junk"
_ACCOUNTS = 10
# Owns the test dollar. Not one of the ten accounts, so that nobody's transaction count moves when it mints.
_OWNER = Address(keccak(b"farebox devnet owner")[12:])
# The first contract an account creates: keccak(rlp([account, 0])).
_TOKEN = Address(keccak(b"\xd6\x94" + _OWNER + b"\x80")[12:])
_TOKEN_ARGUMENTS = ("USDC", "USDC", "2")
# An account of its own, so that a chain kept by an earlier version gets this token at the same address.
_PLAIN_OWNER = Address(keccak(b"farebox devnet plain token owner")[12:])
_PLAIN_TOKEN = Address(keccak(b"\xd6\x94" + _PLAIN_OWNER + b"\x80")[12:])
_PLAIN_ARGUMENTS = ("Plain Dollar", "PLAIN")
_OWNER_WEI = 10**24


class DevnetFailed(LocalError):
    """The local chain did not start, or a transaction of its owner failed."""

    code = "devnet_failed"
    remedy = "read the end of anvil's log in the message; `make setup` installs the pinned anvil"


@dataclass(frozen=True, slots=True)
class DevAccount:
    """A funded account of the local chain: checksummed address and 32-byte key, both public knowledge."""

    address: str
    key: bytes = field(repr=False)


class Devnet:
    """A running local chain. Use as a context manager, or call `start` and `stop`.

    `port` 0 takes a free one. `block_time_s` mines on that interval (our own minting and deploying never waits for it);
    without it every transaction is mined at once. `state_file` keeps the chain from one run to the next. `log_file`
    keeps anvil's log, which otherwise goes with the chain. Starting raises `ToolMissing` or `DevnetFailed`.

    `fork_url` continues a real chain, with its id and its own Permit2, Multicall3 and x402 proxies; only the test
    tokens are ours.

    `token` is the test dollar (EIP-3009, 6 decimals), `plain_token` one that is paid through Permit2 (ERC-2612, 18
    decimals): checksummed addresses. The x402 proxies stand at their canonical addresses.
    """

    def __init__(
        self,
        *,
        chain_id: int = 31337,
        port: int = 0,
        block_time_s: float | None = None,
        state_file: Path | None = None,
        log_file: Path | None = None,
        fork_url: str | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.network = f"eip155:{chain_id}"
        self.token = address_text(_TOKEN)
        self.plain_token = address_text(_PLAIN_TOKEN)
        self.accounts: list[DevAccount] = []
        self.rpc_url = ""
        self._port = port
        self._block_time_s = block_time_s
        self._state_file = state_file
        self._log_file = log_file
        self._fork_url = fork_url
        self._ids = itertools.count(1)
        self._client: httpx.Client | None = None
        self._anvil: tuple[subprocess.Popen[bytes], Path] | None = None
        self._close: weakref.finalize[..., Self] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start anvil, put the contracts in place, and return when the chain is ready for use."""
        if self._close is not None:
            raise DevnetFailed("this devnet is already running", remedy="call stop() first, or make another Devnet")
        binary = anvil_binary()
        folder = Path(tempfile.mkdtemp(prefix="farebox-devnet-"))
        log_file = self._log_file or folder / "anvil.log"
        self._client = httpx.Client(timeout=DEVNET_RPC_TIMEOUT_S, trust_env=False, verify=tls_context())
        try:
            with log_file.open("wb") as log, held_back():
                # A session of its own: an interrupt from the terminal reaches us, and we stop the chain in order.
                process = subprocess.Popen(
                    [str(binary), *self._options()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._anvil = (process, log_file)
                self._close = weakref.finalize(self, _end, process, folder, self._client)
            self.rpc_url = f"http://127.0.0.1:{_listening_port(process, log_file)}"
            self._prepare()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End anvil and everything it started. Safe to call twice; also happens when the interpreter exits."""
        if self._close is not None:
            with held_back():
                self._close()
        self._close = self._client = self._anvil = None
        self.rpc_url = ""

    def check_running(self) -> None:
        """Raise `DevnetFailed`, with the end of anvil's log, when anvil has ended by itself or was never started."""
        if self._anvil is None:
            raise DevnetFailed("this devnet is not running", remedy="call start() first")
        process, log_file = self._anvil
        if process.poll() is not None:
            raise _ended(process, log_file.read_text(errors="replace"))

    def rpc(self, method: str, *params: Any) -> Any:
        """Return the result of one JSON-RPC request. Raises `RpcRefused` or `DevnetFailed`."""
        if self._client is None:
            raise DevnetFailed("this devnet is not running", remedy="call start() first")
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        try:
            answer = self._client.post(self.rpc_url, json=request).json()
        except httpx.HTTPError as error:
            raise DevnetFailed(f"{method}: {type(error).__name__}") from error
        if "error" in answer:
            problem = answer["error"]
            raise RpcRefused(problem.get("message", ""), problem.get("code", 0), problem.get("data"))
        return answer["result"]

    def mint(self, address: str, amount_atomic: int, token: str | None = None) -> None:
        """Give `address` new tokens, in atomic units; test dollars (10**-6) unless `token` says otherwise."""
        self._as_owner(b"mint(address,uint256)", _word(address) + word_of_uint(amount_atomic), token)

    def balance_of(self, address: str, token: str | None = None) -> int:
        """Return what `address` holds in atomic units; test dollars unless `token` says otherwise."""
        return int(self._read(b"balanceOf(address)", _word(address), token), 16)

    def approve_permit2(self, owner: str, amount_atomic: int, token: str | None = None) -> None:
        """Let Permit2 move up to `amount_atomic` of `owner`, one of the ten accounts or one the node impersonates."""
        arguments = word_of_address(PERMIT2) + word_of_uint(amount_atomic)
        self._send(owner, token or self.token, b"approve(address,uint256)", arguments)

    def set_paused(self, paused: bool) -> None:
        """Pause or resume every transfer of the test dollar."""
        if bool(int(self._read(b"paused()"), 16)) != paused:
            self._as_owner(b"pause()" if paused else b"unpause()")

    def set_blocked(self, address: str, blocked: bool) -> None:
        """Put `address` on the test dollar's block list, or take it off."""
        self._as_owner(b"blacklist(address)" if blocked else b"unBlacklist(address)", _word(address))

    def send(self, sender: str, to: str, data: bytes) -> dict[str, Any]:
        """Call a contract from an account that the node signs for, and return the receipt. Raises `DevnetFailed`."""
        transaction = self.rpc("eth_sendTransaction", {"from": sender, "to": to, "data": "0x" + data.hex()})
        self._mine_if_slow()
        deadline = time.monotonic() + DEVNET_RECEIPT_TIMEOUT_S
        while (receipt := self.rpc("eth_getTransactionReceipt", transaction)) is None:
            if time.monotonic() > deadline:
                raise DevnetFailed(f"{transaction}: not mined in {DEVNET_RECEIPT_TIMEOUT_S:.0f} s")
            time.sleep(DEVNET_POLL_S)
        found: dict[str, Any] = receipt
        return found

    def fund_gas(self, address: str, wei: int) -> None:
        """Set the ether balance of `address`, in wei."""
        self.rpc("anvil_setBalance", address, hex(wei))

    def mine(self, n: int = 1) -> None:
        """Mine `n` blocks now."""
        self.rpc("anvil_mine", hex(n))

    def snapshot(self) -> str:
        """Return an id that `revert` takes, once."""
        snapshot_id: str = self.rpc("evm_snapshot")
        return snapshot_id

    def revert(self, snapshot_id: str) -> None:
        """Take the chain back to a snapshot, and its clock back to now. Raises `DevnetFailed` for an unknown id."""
        if not self.rpc("evm_revert", snapshot_id):
            raise DevnetFailed(f"no snapshot {snapshot_id}", remedy="a snapshot is gone once it was reverted to")
        # Anvil resumes at the snapshot's time and would lag by the age of the snapshot ever after.
        self.rpc("evm_setTime", int(time.time()))

    def deploy(self, artifact_name: str, *constructor_args: object) -> str:
        """Deploy a committed artifact and return its checksummed address. Raises `UsageError` or `DeployFailed`."""
        owner = address_text(_OWNER)
        return deploy(self.rpc_url, owner, artifact_name, *constructor_args, after_sending=self._mine_if_slow)

    def _options(self) -> list[str]:
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--hardfork", "prague"]
        options += ["--accounts", str(_ACCOUNTS), "--mnemonic", _PHRASE]
        if self._fork_url is None:
            options += ["--chain-id", str(self.chain_id)]
        else:
            options += ["--fork-url", self._fork_url]
        if self._block_time_s is not None:
            options += ["--block-time", str(self._block_time_s)]
        if self._state_file is not None:
            options += ["--state", str(self._state_file)]
        return options

    def _prepare(self) -> None:
        self.accounts = _derive_accounts()
        if self._fork_url is None:
            for address, code in preinstalled_code(self.chain_id).items():
                self.rpc("anvil_setCode", address_text(address), "0x" + code.hex())
        else:
            self.chain_id = int(self.rpc("eth_chainId"), 16)
            self.network = f"eip155:{self.chain_id}"
            # Keys that everybody knows: on real chains thieves gave these accounts code (EIP-7702).
            for account in self.accounts:
                self.rpc("anvil_setCode", account.address, "0x")
        self._prepare_token(_OWNER, self.token, "TestUSD", *_TOKEN_ARGUMENTS)
        self._prepare_token(_PLAIN_OWNER, self.plain_token, "Plain18", *_PLAIN_ARGUMENTS)

    def _prepare_token(self, owner: Address, token: str, artifact_name: str, *constructor_args: str) -> None:
        sender = address_text(owner)
        self.rpc("anvil_impersonateAccount", sender)
        self.rpc("anvil_setBalance", sender, hex(_OWNER_WEI))
        if self.rpc("eth_getCode", token, "latest") == "0x":
            deploy(self.rpc_url, sender, artifact_name, *constructor_args, after_sending=self._mine_if_slow)

    def _read(self, signature: bytes, arguments: bytes = b"", token: str | None = None) -> str:
        call = {"to": token or self.token, "data": "0x" + (keccak(signature)[:4] + arguments).hex()}
        result: str = self.rpc("eth_call", call, "latest")
        return result

    def _as_owner(self, signature: bytes, arguments: bytes = b"", token: str | None = None) -> None:
        self._send(address_text(_OWNER), token or self.token, signature, arguments)

    def _send(self, sender: str, to: str, signature: bytes, arguments: bytes) -> None:
        if self.send(sender, to, keccak(signature)[:4] + arguments)["status"] != "0x1":
            raise DevnetFailed(f"{signature.decode()}: reverted")

    def _mine_if_slow(self) -> None:
        if self._block_time_s is not None:
            self.mine()


def _word(address: str) -> bytes:
    return word_of_address(parse_address(address))


def _derive_accounts() -> list[DevAccount]:
    with recursion_limit_kept():
        from eth_account.hdaccount import key_from_seed, seed_from_mnemonic
    from eth_keys.datatypes import PrivateKey

    seed = seed_from_mnemonic(_PHRASE, "")
    keys = [key_from_seed(seed, f"m/44'/60'/0'/0/{index}") for index in range(_ACCOUNTS)]
    return [DevAccount(PrivateKey(key).public_key.to_checksum_address(), key) for key in keys]


def _listening_port(process: subprocess.Popen[bytes], log_file: Path) -> int:
    """Wait until anvil names its port; a port we picked ourselves could be taken before anvil binds it."""
    deadline = time.monotonic() + DEVNET_START_TIMEOUT_S
    while True:
        ended = process.poll() is not None
        log = log_file.read_text(errors="replace")
        if found := re.search(r"^Listening on 127\.0\.0\.1:(\d+)", log, re.MULTILINE):
            return int(found[1])
        if ended:
            raise _ended(process, log)
        if time.monotonic() > deadline:
            raise DevnetFailed(
                f"anvil did not listen in {DEVNET_START_TIMEOUT_S:.0f} s: {log[-DEVNET_LOG_TAIL_CHARS:].strip()}"
            )
        time.sleep(DEVNET_POLL_S)


def _ended(process: subprocess.Popen[bytes], log: str) -> DevnetFailed:
    return DevnetFailed(f"anvil ended with code {process.returncode}: {log[-DEVNET_LOG_TAIL_CHARS:].strip()}")


def _end(process: subprocess.Popen[bytes], folder: Path, client: httpx.Client) -> None:
    client.close()
    # Terminating lets anvil write its state file; what does not end in time is killed with all it started.
    process.terminate()
    try:
        process.wait(DEVNET_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)

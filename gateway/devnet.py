"""`farebox devnet`: a local chain to practise on, with funded keys in files."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from contracts.console import exit_on_error, out, print_document
from contracts.errors import UsageError
from gateway.limits import DEVNET_LOOK_EVERY_S
from gateway.options import Json

__all__ = ["devnet"]

# What the practice wallet starts with: 100 of each, with 6 and with 18 decimals.
_BUYER_ATOMIC = 100 * 10**6
_BUYER_PLAIN_ATOMIC = 100 * 10**18


def devnet(
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of the chain's RPC on 127.0.0.1; 0: any.")
    ] = 8545,
    folder: Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Where the key files are written.")] = Path(
        "devnet"
    ),
    as_json: Json = False,
) -> None:
    """Start a local chain to practise on, and stay until interrupted or until the chain itself ends.

    The chain is Anvil, with Multicall3, Permit2, the ERC-8004 registries and two tokens: a test dollar shaped like
    USDC, and "Plain Dollar" (version 1), which has 18 decimals and no EIP-3009.

    Writes buyer.key (a wallet with 100 of both tokens), settler.key (an account with gas) and payee.key (a seller's
    wallet) into --dir. Everybody knows these keys: never use them elsewhere.
    """
    with exit_on_error(as_json=as_json):
        from contracts.evm.devnet import Devnet
        from contracts.evm.registries import place_registries

        with Devnet(port=port) as chain:
            buyer, settler, payee = chain.accounts[:3]
            chain.mint(buyer.address, _BUYER_ATOMIC)
            chain.mint(buyer.address, _BUYER_PLAIN_ATOMIC, chain.plain_token)
            place_registries(chain)
            keys = {"buyer.key": buyer.key, "settler.key": settler.key, "payee.key": payee.key}
            for name, key in keys.items():
                _write_key(folder / name, key)
            document = {
                "ok": True,
                "rpc": chain.rpc_url,
                "network": chain.network,
                "token": chain.token,
                "plain_token": chain.plain_token,
                "buyer": {"address": buyer.address, "key_file": str(folder / "buyer.key")},
                "settler": {"address": settler.address, "key_file": str(folder / "settler.key")},
                "pay_to": payee.address,
            }
            print_document(document, as_json=as_json, human=lambda: _tell(document))
            _wait_for_interrupt(chain.check_running)


def _tell(document: dict[str, object]) -> None:
    out.print("[bold]A local chain is running.[/] Ctrl-C ends it and forgets everything on it.")
    for label in ("rpc", "network", "token", "plain_token", "pay_to"):
        out.print(f"  {label:11} {document[label]}")
    for role in ("buyer", "settler"):
        account = document[role]
        assert isinstance(account, dict)
        out.print(f"  {role:11} {account['address']}  key in {account['key_file']}")


def _write_key(path: Path, key: bytes) -> None:
    """Write a practice key with mode 0600, but never over a file that holds anything else."""
    text = "0x" + key.hex() + "\n"
    try:
        if path.exists() and path.read_text() != text:
            raise UsageError(f"{path} holds another key; it is left alone", remedy="choose another --dir")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"--dir: {path}: {error.strerror}", remedy="choose another --dir") from None


def _wait_for_interrupt(check: Callable[[], None]) -> None:
    """Return on SIGINT or SIGTERM; until then, call `check` every now and then, and let it raise."""
    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: ended.set())
    while not ended.wait(DEVNET_LOOK_EVERY_S):
        check()

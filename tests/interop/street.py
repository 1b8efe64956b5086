"""Where the matrix happens: one chain, one model server, the facilitators, and accounts with money.

Everything is started when the first seller needs it, and ends with the street.
"""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eth_account import Account

from contracts.evm.devnet import DevAccount, Devnet
from gateway.demo.model_server import model_server_app
from tests.conformance.sdk_peers import facilitator_app, serving
from tests.interop.cells import Rail
from tests.interop.goods import MODEL
from tests.interop.node import Node
from tests.processes import farebox_process

__all__ = ["Street"]

# The chain's funded accounts by what they do here; each settles for one party only, so that no two share a nonce.
_ENGINES, _OFFICIAL, _OURS = 1, 2, {Rail.EIP3009: 3, Rail.PERMIT2: 4, Rail.UPTO: 3}
_PURSE_TOKENS = 100
_PURSE_WEI = 10**18


class Street:
    """Everything the sellers and buyers of the matrix share. `folder` keeps keys, books and logs."""

    def __init__(self, folder: Path, chain: Devnet, *, official_facilitator: str | None = None) -> None:
        self.folder, self.chain = folder, chain
        self._given_facilitator = official_facilitator
        self._stack = ExitStack()
        self._names = itertools.count(1)
        self._our_facilitators: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def models_url(self) -> str:
        """The model server's stand-in: what every seller sells."""
        return self._stack.enter_context(serving(model_server_app((MODEL,))))

    @cached_property
    def node(self) -> Node:
        """The TypeScript peers."""
        return self._stack.enter_context(Node())

    @cached_property
    def official_facilitator(self) -> str:
        """The official facilitator code behind the specification's three routes, or what was given in its place."""
        if self._given_facilitator is not None:
            return self._given_facilitator
        return self._stack.enter_context(serving(facilitator_app(self.chain, self.chain.accounts[_OFFICIAL])))

    def our_facilitator(self, rail: Rail) -> str:
        """`farebox facilitator` as a process; it serves one token, so there is one for each."""
        asset = self.asset(rail)
        address = asset["address"]
        if address not in self._our_facilitators:
            folder = self.folder_of(f"facilitator-{asset['symbol']}")
            settings = {
                "listen": "127.0.0.1:0",
                "network": self.chain.network,
                "rpc": [self.chain.rpc_url],
                "asset": asset,
                "key_file": self.key_file(self.chain.accounts[_OURS[rail]]),
                "minimum": "0.000001",
            }
            (folder / "facilitator.yaml").write_text(json.dumps(settings))
            document = self._stack.enter_context(farebox_process(folder, "facilitator", "-c", "facilitator.yaml"))
            self._our_facilitators[address] = document["listening"]
        return self._our_facilitators[address]

    @property
    def engine_account(self) -> DevAccount:
        """The gas account of our sellers that settle themselves."""
        return self.chain.accounts[_ENGINES]

    def asset(self, rail: Rail) -> dict[str, Any]:
        """Return the token of a rail as settings spell it: 18 decimals without EIP-3009 for Permit2, else 6."""
        if rail is Rail.PERMIT2:
            token, named = self.chain.plain_token, {"name": "Plain Dollar", "version": "1", "symbol": "PLAIN"}
            return {"address": token, "decimals": 18, "permit": True, **named}
        return {"address": self.chain.token, "decimals": 6, "name": "USDC", "version": "2", "symbol": "USDC"}

    def payer(self, rail: Rail, *, approved: bool = True) -> DevAccount:
        """Return a new account with money for a rail; where the rail goes through Permit2, that is approved to move it.

        Not `approved`, the account has never sent a transaction and has nothing to pay one with.
        """
        account, asset = Account.create(), self.asset(rail)
        token, amount_atomic = asset["address"], _PURSE_TOKENS * 10 ** asset["decimals"]
        self.chain.mint(account.address, amount_atomic, token)
        if rail is not Rail.EIP3009 and approved:
            self.chain.fund_gas(account.address, _PURSE_WEI)
            self.chain.rpc("anvil_impersonateAccount", account.address)
            self.chain.approve_permit2(account.address, amount_atomic, token)
            self.chain.rpc("anvil_stopImpersonatingAccount", account.address)
        return DevAccount(account.address, bytes(account.key))

    def payee(self) -> str:
        """Return a new address that owns nothing."""
        address: str = Account.create().address
        return address

    def key_file(self, account: DevAccount) -> str:
        """Return a file with an account's key, as our settings and signers want it."""
        path = self.folder / f"{account.address}.key"
        path.touch(0o600)
        path.write_text(account.key.hex())
        return str(path)

    def new_name(self, prefix: str) -> str:
        """Return a name that nothing else on the street has."""
        return f"{prefix}-{next(self._names)}"

    def folder_of(self, name: str) -> Path:
        """Return a new folder whose name begins with `name`."""
        folder = self.folder / self.new_name(name)
        folder.mkdir()
        return folder

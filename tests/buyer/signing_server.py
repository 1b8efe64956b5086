"""A remote signer for tests: a small HTTP server with a key of its own, in the API that `remote:URL` speaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from eth_account import Account

__all__ = ["SigningServer"]


@dataclass
class SigningServer:
    """Signs whatever it is asked to, as such servers do; `misbehave` names what it gets wrong."""

    keys: list[bytes]
    misbehave: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(
        self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        body = (await receive()).get("body", b"")
        status, document = self._answer(scope["method"], scope["path"], body)
        content = b"<html>" if self.misbehave == "html" else msgspec.json.encode(document)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        by_address = {Account.from_key(key).address: key for key in self.keys}
        if (method, path) == ("GET", "/api/v1/keys"):
            return 200, {"keys": list(by_address)}
        _, _, address, what = path.removeprefix("/api/v1").split("/")
        if address not in by_address:
            return 404, {"error": "no such key", "code": "SIGNER_NOT_FOUND", "address": address}
        document = msgspec.json.decode(body)
        self.asked.append(document)
        if self.misbehave == "error":
            return 500, {"error": "hardware is gone", "code": "SIGNING_ERROR", "address": address}
        key = bytes(32 - 1) + b"\x07" if self.misbehave == "wrong key" else by_address[address]
        if what == "transaction":
            fields = {
                "type": 2,
                "chainId": document["chain_id"],
                "to": document["to"],
                "nonce": document["nonce"],
                "gas": document["gas_limit"],
                "maxFeePerGas": document["max_fee_per_gas"],
                "maxPriorityFeePerGas": document["max_priority_fee_per_gas"],
                "value": int(document["value"], 16),
                "data": document["data"],
            }
            return 200, {"signed_transaction": Account.sign_transaction(fields, key).raw_transaction.to_0x_hex()}
        signed = bytearray(Account.sign_typed_data(key, full_message=document).signature)
        if self.misbehave == "no signature":
            return 200, {"signed": True}
        if self.misbehave == "v is 0 or 1":
            signed[64] -= 27
        return 200, {"signature": "0x" + signed.hex()}

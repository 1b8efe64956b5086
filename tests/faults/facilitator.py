"""A double of an x402 facilitator with every fault of the book. It settles on the real chain, or does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.evm.devnet import Devnet
from contracts.evm.token import call_object
from contracts.schemes.exact_eip3009 import decode_payload, transfer_call
from contracts.wire import FacilitatorRequest
from tests.faults.double import Double, Reply
from tests.seller.shop import OTHER

__all__ = ["FAULTS", "DoubleFacilitator", "Fault"]

INVENTED = "0x" + "12" * 32


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go wrong: whether the transfer is mined, and what is answered, given the true hash."""

    settles: bool
    answer: Callable[[str, str], tuple[int, bytes]]
    hangs_s: float = 0.0


def _said(**document: Any) -> Callable[[str, str], tuple[int, bytes]]:
    """Answer 200 with a document; "HASH" and "NETWORK" stand for the true ones."""

    def answer(transaction: str, network: str) -> tuple[int, bytes]:
        known = {"HASH": transaction, "NETWORK": network}
        return 200, json.dumps({name: known.get(str(value), value) for name, value in document.items()}).encode()

    return answer


def _raw(status: int, body: bytes) -> Callable[[str, str], tuple[int, bytes]]:
    return lambda *_: (status, body)


_GOOD = _said(success=True, transaction="HASH", network="NETWORK")

FAULTS: dict[str, Fault] = {
    "500 after the transfer was mined": Fault(True, _raw(500, b"oops")),
    "500 and nothing was sent": Fault(False, _raw(500, b"oops")),
    "hangs after the transfer was mined": Fault(True, _GOOD, hangs_s=1.5),
    "hangs and nothing was sent": Fault(False, _GOOD, hangs_s=1.5),
    "not JSON, and mined": Fault(True, _raw(200, b"<html>busy</html>")),
    "not JSON, and nothing sent": Fault(False, _raw(200, b"<html>busy</html>")),
    "truncated, and mined": Fault(True, lambda *given: (200, _GOOD(*given)[1][:20])),
    "success on the wrong network, and mined": Fault(True, _said(success=True, transaction="HASH", network="eip155:1")),
    "success on the wrong network, and nothing sent": Fault(
        False, _said(success=True, transaction=INVENTED, network="eip155:1")
    ),
    "success without a hash, and mined": Fault(True, _said(success=True, transaction="", network="NETWORK")),
    "success without a hash, and nothing sent": Fault(False, _said(success=True, transaction="", network="NETWORK")),
    "success with an invented hash": Fault(False, _said(success=True, transaction=INVENTED, network="NETWORK")),
    "pending, and mined": Fault(
        True, _said(success=False, errorReason="settlement_pending", transaction="HASH", network="NETWORK")
    ),
    "refused, although mined": Fault(
        True, _said(success=False, errorReason="invalid_transaction_state", transaction="", network="NETWORK")
    ),
    "an answer of 10 MB": Fault(True, _raw(200, b" " * 10_000_000)),
    "a redirect": Fault(False, _raw(307, b"")),
}


class DoubleFacilitator(Double):
    """The double on a free loopback port. Use as a context manager; `fault` None: it does what it should."""

    def __init__(self, chain: Devnet) -> None:
        super().__init__(self._answer)
        self._chain = chain
        self._lock = threading.Lock()
        self.fault: Fault | None = None
        self.calls = 0

    def _answer(self, body: bytes) -> Reply:
        status, answer = self.settle(body)
        return Reply(status, answer, {"location": "/elsewhere"} if status == 307 else {})

    def settle(self, body: bytes) -> tuple[int, bytes]:
        """Answer one POST /settle."""
        fault = self.fault
        with self._lock:
            self.calls += 1
            transaction = self._transfer(body) if fault is None or fault.settles else ""
        time.sleep(fault.hangs_s if fault is not None else 0)
        return (_GOOD if fault is None else fault.answer)(transaction, self._chain.network)

    def _transfer(self, body: bytes) -> str:
        message = msgspec.json.decode(body, type=FacilitatorRequest)
        data = transfer_call(*decode_payload(message.payment_payload.payload))
        token: Any = bytes.fromhex(message.payment_requirements.asset[2:])
        # With gas of its own choice a transfer that reverts is mined like any other.
        call = {"from": self._chain.accounts[OTHER].address, "gas": hex(200_000)} | call_object(token, data)
        transaction: str = self._chain.rpc("eth_sendTransaction", call)
        self._chain.mine()
        return transaction

"""What the engine asks of whoever pays: one call, under a key that makes one payment for ever."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from contracts.errors import FareboxError
from gateway.delegator.journal import Attempt
from gateway.delegator.plan import Node

__all__ = ["Answer", "CallNode", "NodeFailed", "NodeUnknown", "attempt_key"]


class NodeFailed(FareboxError):
    """A call gave no usable answer. `paid_units` is what it cost all the same."""

    code = "node_failed"
    remedy = "another seller is tried, or the node is left out"

    def __init__(self, message: str, *, paid_units: int = 0) -> None:
        super().__init__(message)
        self.paid_units = paid_units


class NodeUnknown(FareboxError):
    """A call was paid for, perhaps, and its answer is not there yet. Only the same key may ask again."""

    code = "node_unknown"
    exit_code = 6
    remedy = "run `farebox delegate resume RUN` later"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answered, and what it was charged."""

    text: str
    paid_units: int


class CallNode(Protocol):
    """Buys the answer to an attempt's prompt. Under one key it pays at most once, however often it is called.

    It pays at most `attempt.price_units`. Raises `NodeFailed` when it is certain that no answer will come and what was
    paid; any other error is taken as `NodeUnknown`: perhaps paid, to be asked again under the same key only.
    """

    async def __call__(self, node: Node, attempt: Attempt, /) -> Answer: ...


def attempt_key(run_id: str, node_id: str, number: int) -> str:
    """Return the name of one attempt's payment: the same for the same attempt, whoever asks and whenever."""
    return hashlib.sha256(f"{run_id}\n{node_id}\n{number}".encode()).hexdigest()[:40]

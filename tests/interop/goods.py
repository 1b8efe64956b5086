"""What is for sale everywhere: chat completions of the model-server stand-in, whole or streamed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.demo.dialects import DIALECTS, answer_text
from tests.interop.cells import Rail

__all__ = [
    "CHAT",
    "INPUT_ATOMIC",
    "MAX_INPUT_TOKENS",
    "MAX_OUTPUT_TOKENS",
    "MODEL",
    "OUTPUT_ATOMIC",
    "PROMPT",
    "Bought",
    "Receipt",
    "chat",
    "is_right",
    "offered_atomic",
    "price_atomic",
    "used_atomic",
]

CHAT = "/v1/chat/completions"
MODEL = "demo-model"
PROMPT = "What does one cell cost?"

# What one token of usage costs in atomic units, and the most that one call may use.
INPUT_ATOMIC, OUTPUT_ATOMIC = 10, 20
MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS = 1000, 2000
_EXACT_ATOMIC = {Rail.EIP3009: 1_000, Rail.PERMIT2: 10**15}


class Receipt(NamedTuple):
    """What a client itself read in a PAYMENT-RESPONSE; `transaction` is empty where settlement is still to come."""

    success: bool
    payer: str
    transaction: str


@dataclass(frozen=True, slots=True)
class Bought:
    """What a client holds after a call: status, body, and `told`, the header that speaks of money, or "".

    `receipt` is what the client made of it, None where it found none. `flowed` tells whether the first piece
    of a stream was there before the seller's model was let go on; None where nobody held it back.
    """

    status: int
    body: str
    told: str
    receipt: Receipt | None
    flowed: bool | None = None


def chat(*, stream: bool = False, hold: str | None = None) -> dict[str, Any]:
    """Return the body of a call; with `hold`, the model waits after its first piece until that hold is released."""
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
    if stream:
        body["stream"] = True
    if hold is not None:
        body["metadata"] = {"x-test-hold": hold, "x-test-hold-after-chunks": "1"}
    return body


def is_right(body: str, *, stream: bool) -> bool:
    """Tell whether an answer is the whole of what was bought."""
    if not stream:
        text = json.loads(body)["choices"][0]["message"]["content"]
        return bool(text == answer_text(PROMPT))
    frames = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(frame) for frame in frames[:-1]]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    return frames[-1] == "[DONE]" and "".join(pieces) == answer_text(PROMPT)


def offered_atomic(rail: Rail) -> int:
    """Return the amount that a rail's offer states: the price, or on upto the ceiling."""
    return used_atomic(MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS) if rail is Rail.UPTO else _EXACT_ATOMIC[rail]


def price_atomic(rail: Rail) -> int:
    """Return what one call costs on a rail, in atomic units of the rail's token; on upto, what the usage comes to."""
    if rail is not Rail.UPTO:
        return _EXACT_ATOMIC[rail]
    usage = DIALECTS[CHAT](chat()).document["usage"]
    return used_atomic(usage["prompt_tokens"], usage["completion_tokens"])


def used_atomic(input_tokens: int, output_tokens: int) -> int:
    """Return the price of a usage."""
    return input_tokens * INPUT_ATOMIC + output_tokens * OUTPUT_ATOMIC

"""A rating with proof of payment: the file, its hash, and the call that posts it. Pure.

The file rides in the rating's own event as a `data:` URI, so nobody has to host it and it cannot change. It is made
from one receipt alone: rating a call twice gives the same file, by which the second time is noticed. Source: EIP-8004,
"Give Feedback" and "Off-Chain Feedback File Structure".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
import pybase64

from contracts.address import Address, address_text
from contracts.erc8004 import FEEDBACK_DECIMALS_MAX, selector
from contracts.errors import UsageError
from contracts.keccak import keccak
from contracts.schemes.authorization import Call
from registry.agent_id import AgentId
from registry.limits import FEEDBACK_NOTE_CHARS_MAX, TAG_CHARS_MAX, URL_CHARS_MAX

__all__ = ["PaidCallFacts", "Verdict", "feedback_call", "feedback_file", "feedback_uri", "parse_verdict"]

_VALUE_MAX = 10**38
_STARS_MAX = 100


@dataclass(frozen=True, slots=True)
class PaidCallFacts:
    """What a receipt says of one paid call: who paid whom, in which transaction, where, and when (Unix seconds)."""

    payer: Address
    payee: Address
    transaction: str
    endpoint: str
    at_s: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A rating: `value` with `decimals`, and the tag that alone says what it means (`starred`: 0 to 100)."""

    value: int
    decimals: int
    tag1: str = "starred"
    tag2: str = ""
    note: str = ""


def parse_verdict(value: str, *, tag1: str = "starred", tag2: str = "", note: str = "") -> Verdict:
    """Return the rating in `value`, a decimal number as "95" or "99.77". Raises `UsageError`."""
    try:
        number = Decimal(value)
        sign, digits, exponent = number.as_tuple()
    except (InvalidOperation, ValueError):
        raise UsageError(f"--value: expected a number, as 95 or 99.77, got {value[:20]!r}") from None
    if not isinstance(exponent, int) or not -FEEDBACK_DECIMALS_MAX <= exponent <= FEEDBACK_DECIMALS_MAX:
        raise UsageError(f"--value: expected a number of at most {FEEDBACK_DECIMALS_MAX} decimals")
    decimals = max(0, -exponent)
    scaled = int("".join(map(str, digits))) * 10 ** max(0, exponent) * (-1 if sign else 1)
    if abs(scaled) > _VALUE_MAX:
        raise UsageError("--value: is larger than the registry takes")
    if tag1 == "starred" and not 0 <= number <= _STARS_MAX:
        raise UsageError("--value: stars go from 0 to 100", remedy="name what else it measures with --tag")
    for option, text, longest in (
        ("--tag", tag1, TAG_CHARS_MAX),
        ("--tag2", tag2, TAG_CHARS_MAX),
        ("--note", note, FEEDBACK_NOTE_CHARS_MAX),
    ):
        if len(text) > longest or not text.isprintable():
            raise UsageError(f"{option}: expected at most {longest} printable characters")
    return Verdict(scaled, decimals, tag1, tag2, note)


def feedback_file(agent: AgentId, verdict: Verdict, paid: PaidCallFacts) -> bytes:
    """Return the file: the same bytes for the same call and verdict."""
    document: dict[str, Any] = {
        "agentRegistry": f"{agent.network.caip2}:{address_text(agent.registry)}",
        "agentId": agent.number,
        "clientAddress": f"{agent.network.caip2}:{address_text(paid.payer)}",
        "createdAt": datetime.fromtimestamp(paid.at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "value": verdict.value,
        "valueDecimals": verdict.decimals,
        "tag1": verdict.tag1,
        "tag2": verdict.tag2,
        "endpoint": paid.endpoint,
        "proofOfPayment": {
            "fromAddress": address_text(paid.payer),
            "toAddress": address_text(paid.payee),
            "chainId": str(agent.chain_id),
            "txHash": paid.transaction,
        },
    }
    if verdict.note:
        document["text"] = verdict.note
    return msgspec.json.encode(document)


def feedback_uri(file: bytes) -> str:
    """Return the URI that holds a feedback file whole. Raises `UsageError` when clients would cut it."""
    uri = "data:application/json;base64," + pybase64.b64encode(file).decode()
    if len(uri) > URL_CHARS_MAX:
        raise UsageError("--note: is too long for a rating", remedy="say it in fewer words")
    return uri


def feedback_call(reputation: Address, agent: AgentId, verdict: Verdict, endpoint: str, file: bytes) -> Call:
    """Return the call that posts a rating with its file."""
    from eth_abi.abi import encode

    types = ("uint256", "int128", "uint8", "string", "string", "string", "string", "bytes32")
    values = (agent.number, verdict.value, verdict.decimals, verdict.tag1, verdict.tag2, endpoint)
    signature = selector("giveFeedback(uint256,int128,uint8,string,string,string,string,bytes32)")
    return Call(reputation, signature + encode(types, (*values, feedback_uri(file), keccak(file))))

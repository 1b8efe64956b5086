"""Multicall3 `aggregate3`: many calls in one transaction, each allowed to fail alone."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.errors import ChainUnavailable
from contracts.keccak import keccak
from contracts.schemes.authorization import Call

__all__ = ["aggregate_call", "aggregate_results"]

_AGGREGATE3 = keccak(b"aggregate3((address,bool,bytes)[])")[:4]


def aggregate_call(calls: Sequence[Call]) -> bytes:
    """Return calldata that makes every one of `calls`, tolerating failures."""
    from eth_abi.abi import encode

    triples = [(bytes(call.to), True, call.data) for call in calls]
    return _AGGREGATE3 + encode(["(address,bool,bytes)[]"], [triples])


def aggregate_results(answer: str, count: int) -> list[bool]:
    """Return which of `count` calls succeeded, from the hex answer of a simulation. Raises `ChainUnavailable`."""
    from eth_abi.abi import decode
    from eth_abi.exceptions import DecodingError

    try:
        (results,) = decode(["(bool,bytes)[]"], bytes.fromhex(answer.removeprefix("0x")))
    except (DecodingError, ValueError, AttributeError):
        results = ()
    if len(results) != count:
        raise ChainUnavailable("there is no Multicall3 on this chain, or its answer is incomplete")
    return [bool(succeeded) for succeeded, _ in results]

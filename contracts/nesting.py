"""JSON of strangers may nest as deep as it is long, and decoders recurse on the C stack.

What stops them is the interpreter's recursion limit. Python before 3.12 lets any library raise it for C code, too: one
that eth_account imports sets 100,000, and then 60 kB of brackets end the process. So this module looks at the nesting
itself wherever that limit cannot be relied on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

import msgspec

from contracts.limits import JSON_DEPTH_MAX

__all__ = ["check_nesting", "recursion_limit_kept"]

# A level costs a decoder about 300 bytes of stack; the smallest usual stack of a thread has 512 kB.
_SAFE_RECURSION_LIMIT = 1500
_LIMIT_COUNTS_C_CODE = sys.version_info < (3, 12)

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]


def check_nesting(data: bytes | bytearray | msgspec.Raw) -> None:
    """Raise `RecursionError` for JSON nested deeper than `JSON_DEPTH_MAX`, where a decoder would not by itself.

    Exact for JSON; of anything else it may raise or not, and a decoder stops where the JSON does.
    """
    if not _LIMIT_COUNTS_C_CODE or sys.getrecursionlimit() <= _SAFE_RECURSION_LIMIT:
        return
    if _depth(bytes(data)) > JSON_DEPTH_MAX:
        raise RecursionError(f"JSON is nested deeper than {JSON_DEPTH_MAX}")


@contextmanager
def recursion_limit_kept() -> Iterator[None]:
    """Import eth_account inside this, and the recursion limit is afterwards what it was before."""
    before = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _depth(data: bytes) -> int:
    if data.count(b"[") + data.count(b"{") <= JSON_DEPTH_MAX:
        return 0  # not even a string full of brackets: the common case, without a look at the strings
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKET)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)

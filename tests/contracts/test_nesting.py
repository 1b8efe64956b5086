"""Deeply nested JSON never reaches a decoder's stack, whatever a library did to the recursion limit."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import nesting
from contracts.limits import JSON_DEPTH_MAX
from contracts.nesting import check_nesting, recursion_limit_kept
from tests.patience import PATIENCE_S

# What decodes deeply nested documents of strangers, in a process whose recursion limit a library has raised. Each
# document is well-formed as far as it goes: a decoder would walk down to its end.
DECODE = """
import asyncio, sys
import msgspec
from contracts.errors import FareboxError
from contracts.headers import decode_payment
from contracts.wire import Requirements, decode_json
from seller.body import model_of

sys.setrecursionlimit(100_000)
deep = b"[" * 60_000 + b"]" * 60_000
documents = {
    "message": lambda: decode_json(b'{"extra":{"x":' + deep + b"}}", Requirements, "body"),
    "raw": lambda: decode_json(deep, object, "body"),
    "model": lambda: model_of([(b"content-type", b"application/json")], b'{"model":' + deep + b"}"),
    "second model": lambda: model_of([(b"content-type", b"application/json")], b'{"a":' + deep + b',"b":"\\\\u0061"}'),
}
for name, decode in documents.items():
    try:
        decode()
    except FareboxError as error:
        print(name, error.http_status)
"""


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behave as where the recursion limit does not protect decoders, on every version of Python."""
    monkeypatch.setattr(nesting, "_LIMIT_COUNTS_C_CODE", True)
    monkeypatch.setattr(nesting, "_SAFE_RECURSION_LIMIT", 0)


def test_a_raised_recursion_limit_does_not_let_a_document_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DECODE], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["message 400", "raw 400", "model 400", "second model 400"]


def test_the_limit_is_what_it_was_after_a_library_raised_it() -> None:
    before = sys.getrecursionlimit()
    with recursion_limit_kept():
        sys.setrecursionlimit(before + 100_000)
    assert sys.getrecursionlimit() == before


def test_no_process_of_ours_raises_the_limit_by_what_it_imports() -> None:
    program = """
import sys
from contracts.evm.devnet import _derive_accounts
from seller.settlement.key import GasKey
before = sys.getrecursionlimit()
_derive_accounts()
GasKey.prepare()
assert "py_ecc" in sys.modules, "nothing raises the limit any more: recursion_limit_kept can go"
print(before, sys.getrecursionlimit())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    before, after = done.stdout.split() or [done.stderr, ""]
    assert after == before


@pytest.mark.usefixtures("unreliable")
@pytest.mark.parametrize("opening", [b"[", b'{"x":', b'[{"x":[', b'["]}", ', b'["\\"]\\\\", '])
def test_nesting_is_refused_beyond_the_cap_and_not_below(opening: bytes) -> None:
    levels = sum(opening.count(bracket) for bracket in (b"[", b"{"))
    fits = JSON_DEPTH_MAX // levels
    check_nesting(opening * fits)
    with pytest.raises(RecursionError, match=f"deeper than {JSON_DEPTH_MAX}"):
        check_nesting(opening * (fits + 1))


@pytest.mark.usefixtures("unreliable")
def test_brackets_inside_of_text_and_side_by_side_are_no_nesting() -> None:
    check_nesting(json.dumps(["[" * 10_000, '"\\' * 500 + "{" * 5000]).encode())
    check_nesting(json.dumps([[{}]] * 10_000).encode())


def depth_of(document: Any) -> int:
    if isinstance(document, dict):
        return 1 + max(map(depth_of, document.values()), default=0)
    return 1 + max(map(depth_of, document), default=0) if isinstance(document, list) else 0


documents = st.recursive(
    st.none() | st.text('[]{}"\\,:a\u00e9', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[]{}"\\', max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(document=documents, ascii_only=st.booleans())
def test_the_depth_found_is_the_documents(document: Any, ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "_LIMIT_COUNTS_C_CODE", True)
        patch.setattr(nesting, "_SAFE_RECURSION_LIMIT", 0)
        patch.setattr(nesting, "JSON_DEPTH_MAX", depth_of(document))
        check_nesting(text)
        patch.setattr(nesting, "JSON_DEPTH_MAX", depth_of(document) - 1)
        with pytest.raises(RecursionError):
            check_nesting(text)
    assert msgspec.json.decode(text) == document

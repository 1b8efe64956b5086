"""Documents of agents: bytes of strangers to a card and warning codes. Pure, and never an exception."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from contracts.nesting import check_nesting
from registry.card import Card, read_card
from registry.limits import DOCUMENT_BYTES_MAX, WARNINGS_MAX

__all__ = ["Document", "read_document", "read_json"]


@dataclass(frozen=True, slots=True)
class Document:
    """What some bytes turned out to be: a card, or None when they are no registration file; and the warning codes."""

    card: Card | None
    warnings: tuple[str, ...] = ()


def read_document(data: bytes, bytes_max: int = DOCUMENT_BYTES_MAX) -> Document:
    """Return the registration file in `data`. Never raises."""
    value, warnings = read_json(data, bytes_max)
    if not isinstance(value, dict):
        return Document(None, (*warnings, *(() if warnings else ("json_not_object",))))
    card, odd = read_card(value)
    return Document(card, (*warnings, *odd)[:WARNINGS_MAX])


def read_json(data: bytes, bytes_max: int) -> tuple[Any, tuple[str, ...]]:
    """Return what `data` decodes to, None when it cannot be read, and the warning codes. Never raises."""
    if len(data) > bytes_max:
        return None, ("document_too_large",)
    warnings: tuple[str, ...] = ()
    if data.startswith(b"\xef\xbb\xbf"):
        data, warnings = data[3:], ("byte_order_mark",)
    try:
        check_nesting(data)
        return msgspec.json.decode(data), warnings
    except RecursionError:
        return None, (*warnings, "json_too_deep")
    except UnicodeDecodeError:
        pass
    except (msgspec.DecodeError, ValueError):
        if data.isascii() or _is_utf8(data):
            return None, (*warnings, "json_malformed")
    try:
        # Replacing what is not UTF-8 leaves the structure: the broken text alone is lost.
        return msgspec.json.decode(data.decode("utf-8", "replace")), (*warnings, "not_utf8")
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None, (*warnings, "json_malformed")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

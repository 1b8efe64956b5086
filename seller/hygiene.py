"""Which headers cross the gate: what steers, caches or pays goes no further than its addressee."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from seller.verify import PAYMENT_HEADERS

__all__ = ["for_application", "for_client", "has_overrides", "without_overrides", "without_payment_headers"]

RawHeaders = list[tuple[bytes, bytes]]

_VARY = b"PAYMENT-SIGNATURE, X-PAYMENT"
_SELLERS_OWN = (b"payment-", b"x-payment", b"settlement-overrides", b"x-farebox-")
# Frameworks take another method or path from these: then another thing would be served than was priced.
_OVERRIDES = (b"x-http-method", b"x-method-override", b"x-original-", b"x-rewrite-")
# A price is for the whole answer as it is now, and a kept answer is given again as it was.
_PARTIAL = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range")
)
# Whatever a cache could use to give a paid answer to somebody else.
_CACHE_HEADERS = frozenset((b"expires", b"age", b"etag", b"last-modified", b"pragma", b"vary", b"warning"))
# Caches of content networks prefer a name of their own: CDN-Cache-Control (RFC 9213), Surrogate-Control and the like.
_CACHE_WORDS = (b"cache", b"surrogate", b"-expires")
# Header names whose verdict is remembered; clients and model servers use some dozens.
_NAMES_MAX = 1024


def for_application(headers: RawHeaders) -> RawHeaders:
    """Return what the application behind a priced route sees: no payment, no override, no wish for a part."""
    return [header for header in headers if _is_for_application(header[0])]


def for_client(headers: RawHeaders) -> RawHeaders:
    """Return what the client of a priced route is told: nothing in the seller's name, and nothing for caches."""
    kept = [header for header in headers if _is_for_client(header[0])]
    vary = b", ".join([value for name, value in headers if name == b"vary"] + [_VARY])
    return [*kept, (b"cache-control", b"no-store"), (b"vary", vary)]


def without_payment_headers(headers: RawHeaders) -> RawHeaders:
    """Drop what only a seller may say: an upstream's receipts and charges are not ours."""
    return [(name, value) for name, value in headers if not name.startswith(_SELLERS_OWN)]


def has_overrides(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request names another method or path than its own."""
    return any(_overrides(name) for name, _ in headers)


def without_overrides(headers: RawHeaders) -> RawHeaders:
    """Drop other methods and paths than the request's own."""
    return [(name, value) for name, value in headers if not _overrides(name)]


def _overrides(name: bytes) -> bool:
    # CGI and WSGI servers cannot tell the two characters apart.
    return name.replace(b"_", b"-").startswith(_OVERRIDES)


@lru_cache(_NAMES_MAX)
def _is_for_application(name: bytes) -> bool:
    return name not in PAYMENT_HEADERS and name not in _PARTIAL and not _overrides(name)


@lru_cache(_NAMES_MAX)
def _is_for_client(name: bytes) -> bool:
    is_for_caches = name in _CACHE_HEADERS or any(word in name for word in _CACHE_WORDS)
    return not is_for_caches and not name.startswith(_SELLERS_OWN)

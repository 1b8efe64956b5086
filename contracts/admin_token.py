"""FAREBOX_ADMIN_TOKEN: guards every admin plane, and must be set where other machines can reach one."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from contracts.errors import ConfigInvalid
from contracts.limits import ADMIN_TOKEN_CHARS_MIN

__all__ = ["ADMIN_TOKEN_VARIABLE", "carries_token", "read_admin_token"]

ADMIN_TOKEN_VARIABLE = "FAREBOX_ADMIN_TOKEN"  # noqa: S105 - the name of a variable


def read_admin_token(environment: Mapping[str, str], *, setting: str, address: str, is_loopback: bool) -> str | None:
    """Return the token that `environment` sets, or None for none.

    `setting` names where `address` was chosen. Raises `ConfigInvalid` where other machines can reach the admin plane
    and no token guards it, and for a weak token.
    """
    token = environment.get(ADMIN_TOKEN_VARIABLE) or None
    if token is None and not is_loopback:
        raise ConfigInvalid(
            f"{setting}: other machines can reach {address}, and {ADMIN_TOKEN_VARIABLE} is not set",
            remedy=f"set {ADMIN_TOKEN_VARIABLE}, or listen on 127.0.0.1",
        )
    if token is not None and (len(token) < ADMIN_TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable()):
        raise ConfigInvalid(
            f"{ADMIN_TOKEN_VARIABLE}: expected {ADMIN_TOKEN_CHARS_MIN} printable ASCII characters or more"
        )
    return token


def carries_token(headers: Iterable[tuple[bytes, bytes]], token: str) -> bool:
    """Tell, in time that does not depend on the guess, whether ASGI `headers` carry `Bearer <token>`, once."""
    given = [value for name, value in headers if name == b"authorization"]
    return len(given) == 1 and hmac.compare_digest(given[0], b"Bearer " + token.encode())

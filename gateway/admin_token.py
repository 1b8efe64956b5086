"""FAREBOX_ADMIN_TOKEN: guards the admin plane, and must be set where other machines can reach it."""

from __future__ import annotations

import hmac
import os

from starlette.types import ASGIApp, Receive, Scope, Send

from contracts.errors import ConfigInvalid
from gateway.admin import HEALTH_PATHS
from gateway.client import Client
from gateway.config import Listen
from gateway.envelope import Problem
from gateway.limits import ADMIN_TOKEN_CHARS_MIN

__all__ = ["TokenCheck", "admin_token"]

_VARIABLE = "FAREBOX_ADMIN_TOKEN"


def admin_token(listen: Listen) -> str | None:
    """Return the token that is set, or None for none. Raises `ConfigInvalid` for a weak one, or where one must be."""
    token = os.environ.get(_VARIABLE) or None
    if token is None and not listen.is_loopback:
        raise ConfigInvalid(
            f"admin_listen: other machines can reach {listen.text}, and {_VARIABLE} is not set",
            remedy=f"set {_VARIABLE}, or listen on 127.0.0.1",
        )
    if token is not None and (len(token) < ADMIN_TOKEN_CHARS_MIN or not token.isascii() or not token.isprintable()):
        raise ConfigInvalid(f"{_VARIABLE}: expected {ADMIN_TOKEN_CHARS_MIN} printable ASCII characters or more")
    return token


class TokenCheck:
    """Wants `Authorization: Bearer <token>` for everything but health; without a token, nothing."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._wanted = None if token is None else b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._wanted is not None and scope["type"] == "http" and scope["path"] not in HEALTH_PATHS:
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not hmac.compare_digest(given[0], self._wanted):
                problem = Problem(
                    401,
                    "unauthorized",
                    f"authorization: send Bearer and the value of {_VARIABLE}",
                    headers=[(b"www-authenticate", b'Bearer realm="farebox admin"')],
                )
                await Client(receive, send).problem(scope["path"], problem)
                return
        await self._app(scope, receive, send)
